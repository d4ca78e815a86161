"""The baseline that any distilled set must beat: as many real images, drawn by lot."""

import torch
from torch import Tensor

from raydd.config import Config
from raydd.data import Resident, class_indices
from raydd.errors import DataError
from raydd.evaluate.scratch import Evaluation, evaluate
from raydd.models import FlatModel
from raydd.rng import stream

REAL_LR = 0.01
"""The rate at which the reference trains networks on real images: that of its experts (specs/mtt_pdd.md section 1.2)."""


def random_real(train: Resident, classes: int, ipc: int, seed: int) -> tuple[Tensor, Tensor]:
    """`ipc` distinct training images of every class, drawn by lot: float32 (classes x ipc, C, H, W) and labels, class-major.

    Raises `DataError` when a class has fewer images.
    """
    chosen = []
    for label in range(classes):
        rows = class_indices(train.labels, label)
        if len(rows) < ipc:
            raise DataError(f"--ipc={ipc} is more than the {len(rows)} training images of class {label}; lower it.")
        order = torch.randperm(len(rows), generator=stream(seed, 0, "random-real", label))[:ipc]
        chosen.append(rows[order.to(rows.device)])
    return train.batch(torch.cat(chosen))


def evaluate_random_real(
    config: Config,
    model: FlatModel,
    train: Resident,
    test: Resident,
    device: torch.device | str,
    lr: float = REAL_LR,
    nets: int | None = None,
    seed: int | None = None,
) -> Evaluation:
    """`evaluate` on `config.ipc` random real images of every class, by the protocol that distilled images get.

    There is no learned rate here; `lr` stands in its place. One draw of images serves all networks; another `seed` draws others.
    """
    images, labels = random_real(train, model.classes, config.ipc, config.seed if seed is None else seed)
    return evaluate(config, model, images, labels, lr, test, device, nets, seed)
