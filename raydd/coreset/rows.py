"""Rows of real images, class by class: drawn by lot, or by any rule that picks within a class."""

from collections.abc import Callable

import torch
from torch import Tensor

from raydd.errors import DataError
from raydd.rng import stream

Pick = Callable[[int, Tensor], Tensor]
"""`(label, rows of the class (n,) ascending) -> places among them (ipc,)`, in the order of the choice."""


def per_class(labels: Tensor, classes: int, ipc: int, pick: Pick) -> Tensor:
    """Rows of `ipc` images of each class as `pick` chooses them: int64 (classes x ipc,), class-major, on the CPU.

    Raises `DataError` when a class has fewer images.
    """
    chosen = []
    for label in range(classes):
        rows = torch.nonzero(labels.cpu() == label).squeeze(1)
        if len(rows) < ipc:
            raise DataError(f"--ipc={ipc} is more than the {len(rows)} training images of class {label}; lower it.")
        chosen.append(rows[pick(label, rows).cpu()])
    return torch.cat(chosen)


def random_rows(labels: Tensor, classes: int, ipc: int, seed: int, purpose: str, draw: int = 0) -> Tensor:
    """Rows of `ipc` different images of each class, drawn by lot: int64 (classes x ipc,), class-major.

    `draw` tells independent draws for one purpose apart. Raises `DataError` when a class has fewer images.
    """

    def by_lot(label: int, rows: Tensor) -> Tensor:
        return torch.randperm(len(rows), generator=stream(seed, draw, purpose, label))[:ipc]

    return per_class(labels, classes, ipc, by_lot)
