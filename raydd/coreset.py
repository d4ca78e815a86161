"""Choosing real images: the initial images of a run, and the baselines that a distilled set must beat."""

import torch
from torch import Tensor

from raydd.errors import DataError
from raydd.rng import stream


def random_rows(labels: Tensor, classes: int, ipc: int, seed: int, purpose: str, draw: int = 0) -> Tensor:
    """Rows of `ipc` different images of each class, drawn by lot: int64 (classes x ipc,), class-major.

    `draw` tells independent draws for one purpose apart. Raises `DataError` when a class has fewer images.
    """
    chosen = []
    for label in range(classes):
        rows = torch.nonzero(labels == label).squeeze(1)
        if len(rows) < ipc:
            raise DataError(f"--ipc={ipc} is more than the {len(rows)} training images of class {label}; lower it.")
        chosen.append(rows[torch.randperm(len(rows), generator=stream(seed, draw, purpose, label))[:ipc]])
    return torch.cat(chosen)
