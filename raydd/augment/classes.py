"""Augmentation of all classes in one pass, where the images of a class share one draw and the classes draw apart.

Gradient and distribution matching augment the real and the synthetic images of a class alike (specs/dc_dsa_dm_cafe_selection_cl.md
section 5.1, specs/idc_dream_pdd.md section 1.8). The reference programs do so class by class; here the classes go through together.
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from raydd.augment import operations
from raydd.augment.operations import Values


@dataclass(frozen=True)
class Stage:
    """One operation for each of C classes, out of `names`.

    choice  int64 (C,) on the CPU: the place in `names` of each class's operation
    values  the parameters of each of `names`, tensors (C,); a class uses those of its choice alone
    """

    names: tuple[str, ...]
    choice: Tensor
    values: tuple[Values, ...]

    def to(self, device: torch.device | str) -> "Stage":
        """The same draw with its parameters on a device; the choices stay on the CPU, where they are read."""
        return Stage(self.names, self.choice, tuple({key: value.to(device) for key, value in values.items()} for values in self.values))

    def part(self, start: int, stop: int) -> "Stage":
        """The draw of the classes start to stop, exclusive."""
        values = tuple({key: value[start:stop] for key, value in values.items()} for values in self.values)
        return Stage(self.names, self.choice[start:stop], values)


@dataclass(frozen=True)
class ClassDraw:
    """The stages that the images of C classes go through, in order."""

    stages: tuple[Stage, ...]

    def to(self, device: torch.device | str) -> "ClassDraw":
        """The same draw on a device."""
        return ClassDraw(tuple(stage.to(device) for stage in self.stages))

    def part(self, start: int, stop: int) -> "ClassDraw":
        """The draw of the classes start to stop, exclusive: for passes over some of the classes at a time."""
        return ClassDraw(tuple(stage.part(start, stop) for stage in self.stages))


def draw_stages(generator: Generator, stages: tuple[tuple[str, ...], ...], classes: int, side: int) -> ClassDraw:
    """Draw for each class and stage one of the stage's operations, all equally likely, and its parameters, for images of `side` pixels."""
    drawn = []
    for names in stages:
        choice = torch.randint(len(names), (classes,), generator=generator)
        drawn.append(Stage(names, choice, tuple(operations.draw(name, generator, classes, side) for name in names)))
    return ClassDraw(tuple(drawn))


def apply_classes(images: Tensor, drawn: ClassDraw | None) -> Tensor:
    """Augment images (C, n, ch, H, W), square, n from 0, each class by its own draw.

    Differentiable, any float dtype, on the draw's device. Equal images of a class stay equal, whatever else is in the batch.
    """
    for stage in drawn.stages if drawn and images.shape[1] else ():
        images = _apply_stage(images, stage)
    return images


def _apply_stage(images: Tensor, stage: Stage) -> Tensor:
    groups = [torch.nonzero(stage.choice == place).squeeze(1) for place in range(len(stage.names))]
    parts = [
        _apply_one(name, images if len(rows) == len(images) else images[rows], {key: value[rows] for key, value in values.items()})
        for name, values, rows in zip(stage.names, stage.values, groups, strict=True)
        if len(rows)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)[torch.cat(groups).argsort()]


def _apply_one(name: str, images: Tensor, values: Values) -> Tensor:
    each = {key: value.repeat_interleave(images.shape[1]) for key, value in values.items()}
    return operations.apply(name, images.flatten(0, 1), each).view(images.shape)
