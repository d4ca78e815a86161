"""Recorded cases of gradient matching, with parameters in the order of raydd's ConvNet."""

import torch
from torch import Tensor

from raydd.config import ModelConfig
from raydd.models import FlatModel, build


def network(case: dict, classes: int) -> FlatModel:
    """The ConvNet of depth 3 and width 16 that all these cases use."""
    return build(ModelConfig(width=16, depth=3), tuple(case["in_images_syn"].shape[-3:]), classes)


def tensor(case: dict, name: str) -> Tensor:
    return torch.tensor(case[name])


def block_by_block(theta: Tensor, shapes: Tensor, depth: int = 3) -> Tensor:
    """IDC keeps weights and biases of all convolutions, then of all norms, then the classifier; raydd goes block by block."""
    parts = list(theta.split([int(row[row >= 0].prod()) for row in shapes]))
    convolutions, norms, classifier = parts[: 2 * depth], parts[2 * depth : 4 * depth], parts[4 * depth :]
    blocks = [part for block in range(depth) for group in (convolutions, norms) for part in group[2 * block : 2 * block + 2]]
    return torch.cat([*blocks, *classifier])


def assert_near(actual: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    """Relative to the largest entry, as the recorded cases state their tolerance."""
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()
