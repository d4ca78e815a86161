"""IDC's augmentation: flip, then all colour changes, then exactly one of crop, scale and rotate, then cutout.

Source: specs/idc_dream_pdd.md section 1.8 (misc/augment.py of the reference). Each step is taken when the strategy names it; which of
crop, scale and rotate is drawn, among those named, once for the batch even where the parameters are drawn for each image.
Unlike `raydd.augment.dsa`, a batch goes through several operations.
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from raydd.augment import operations
from raydd.augment.classes import ClassDraw, draw_stages
from raydd.augment.operations import Values

_ORDER = (("flip",), ("color",), ("crop", "scale", "rotate"), ("cutout",))


@dataclass(frozen=True)
class DiffAugDraw:
    """The operations that a batch of B images goes through, in order, each with its parameters: tensors (B,), or (1,) for all images."""

    steps: tuple[tuple[str, Values], ...]

    def to(self, device: torch.device | str) -> "DiffAugDraw":
        """The same draw with its parameters on a device."""
        return DiffAugDraw(tuple((name, {key: value.to(device) for key, value in values.items()}) for name, values in self.steps))


def stages(strategy: str) -> tuple[tuple[str, ...], ...]:
    """The operations of a strategy (names joined by `_`, in any order) step by step; of several in one step, one is drawn."""
    named = strategy.split("_")
    found = (tuple(name for name in step if name in named) for step in _ORDER)
    return tuple(step for step in found if step)


def draw(generator: Generator, strategy: str, count: int, side: int, parameters: str) -> DiffAugDraw | None:
    """Draw the steps of `strategy` for `count` images of `side` pixels; None when it is `none`.

    `parameters` is "per-image" (each image its own values) or "shared" (one for all, which then fit a batch of any size).
    """
    if strategy == "none":
        return None
    steps = []
    for names in stages(strategy):
        name = names[int(torch.randint(len(names), (), generator=generator))]
        steps.append((name, operations.draw(name, generator, count if parameters == "per-image" else 1, side)))
    return DiffAugDraw(tuple(steps))


def draw_classes(generator: Generator, strategy: str, classes: int, side: int) -> ClassDraw | None:
    """Draw the steps for each of C classes, shared by all images of the class; None when the strategy is `none`."""
    return None if strategy == "none" else draw_stages(generator, stages(strategy), classes, side)


def apply(images: Tensor, drawn: DiffAugDraw | None) -> Tensor:
    """Augment images (B, C, H, W), square; differentiable in the images, any float dtype, on the draw's device."""
    for name, values in drawn.steps if drawn else ():
        images = operations.apply(name, images, values)
    return images
