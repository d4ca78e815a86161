"""Differentiable Siamese augmentation: six operations, of which each batch draws one.

Source: specs/mtt_pdd.md section 1.4 (mode S of the reference). Parameters are drawn before use, so that the same draw can be
applied to real and synthetic images, to every candidate of a step, and again on the way back of the trajectory gradient.
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from raydd.augment import operations
from raydd.augment.classes import ClassDraw, draw_stages
from raydd.augment.operations import Values


@dataclass(frozen=True)
class DsaDraw:
    """One operation for a batch of B images; `values` maps each parameter's name (`raydd.augment.operations`) to a tensor (B,)."""

    operation: str
    values: Values

    def to(self, device: torch.device) -> "DsaDraw":
        """The same draw with its parameters on a device."""
        return DsaDraw(self.operation, {name: value.to(device) for name, value in self.values.items()})


def draw(generator: Generator, strategy: str, count: int, side: int, parameters: str) -> DsaDraw | None:
    """Draw one operation of `strategy` (joined by `_`) for `count` images of `side` pixels; None when it is `none`.

    `parameters` is "per-image" (each image its own values) or "shared" (one value for the batch, the Siamese form).
    """
    if strategy == "none":
        return None
    names = strategy.split("_")
    operation = names[int(torch.randint(len(names), (), generator=generator))]
    values = operations.draw(operation, generator, count if parameters == "per-image" else 1, side)
    return DsaDraw(operation, {name: value.expand(count) for name, value in values.items()})


def draw_classes(generator: Generator, strategy: str, classes: int, side: int) -> ClassDraw | None:
    """Draw for each of C classes one operation and one set of parameters, shared by all images of the class.

    The Siamese form of a matching step: applied to real and to synthetic images alike. None when the strategy is `none`.
    """
    return None if strategy == "none" else draw_stages(generator, (tuple(strategy.split("_")),), classes, side)


def apply(images: Tensor, drawn: DsaDraw | None) -> Tensor:
    """Augment images (B, C, H, W), square; differentiable in the images, any float dtype, on the draw's device."""
    return images if drawn is None else operations.apply(drawn.operation, images, drawn.values)
