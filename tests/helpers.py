"""Small networks, sets and experts that many tests share."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from raydd.augment import dsa
from raydd.config import Config, ModelConfig
from raydd.metagrad import InnerBatch
from raydd.models import FlatModel, build
from raydd.types import SyntheticSet

SMALL = ModelConfig(width=8, depth=2)


@dataclass(frozen=True)
class Table:
    """Expert snapshots held in memory: (experts, epochs + 1, P)."""

    thetas: Tensor

    def theta(self, expert: int, epoch: int) -> Tensor:
        return self.thetas[expert, epoch]


def model(config: ModelConfig = SMALL, shape: tuple[int, int, int] = (1, 8, 8), classes: int = 4) -> FlatModel:
    return build(config, shape, classes)


def table(network: FlatModel, experts: int, epochs: int, dtype: torch.dtype = torch.float32) -> Table:
    """Random walks in place of trained experts: near enough for a finite loss."""
    generator = torch.Generator().manual_seed(5)
    starts = torch.stack([network.init(generator) for _ in range(experts)]).to(dtype)
    steps = torch.randn(experts, epochs, network.size, generator=generator, dtype=dtype) * 0.01
    return Table(torch.cat([starts[:, None], starts[:, None] + steps.cumsum(1)], dim=1))


def synthetic(network: FlatModel, ipc: int = 2, step_size: float = 0.02, dtype: torch.dtype = torch.float32) -> SyntheticSet:
    generator = torch.Generator().manual_seed(7)
    count = network.classes * ipc
    return SyntheticSet(
        images=torch.randn(count, *network.shape, generator=generator, dtype=dtype),
        labels=torch.arange(network.classes).repeat_interleave(ipc),
        step_size=torch.tensor(step_size, dtype=dtype),
        stages=torch.ones(count, dtype=torch.int64),
    )


def batches(config: Config, count: int, side: int, step: int = 0) -> tuple[InnerBatch, ...]:
    from raydd.methods import mtt

    labels = torch.arange(count)
    images = SyntheticSet(torch.empty(count, 1, side, side), labels, torch.empty(()), torch.ones_like(labels))
    return mtt.draw(config, images, step, 0).batches


def recorded_batches(indices: np.ndarray, augmentation: list[dsa.DsaDraw | None] | None = None) -> tuple[InnerBatch, ...]:
    """Inner batches of a recorded case: rows padded with -1."""
    rows = [torch.tensor(row[row >= 0]) for row in indices]
    return tuple(InnerBatch(row, drawn) for row, drawn in zip(rows, augmentation or [None] * len(rows), strict=True))
