"""Augmenting all classes in one pass equals augmenting them one by one, each with its own draw."""

import pytest
import torch
from torch import Tensor

from raydd.augment import diffaug, dsa, operations
from raydd.augment.classes import ClassDraw, apply_classes
from raydd.config import DSA_STRATEGY
from raydd.rng import stream

FAMILIES = {"dsa": (dsa, DSA_STRATEGY), "diffaug": (diffaug, "color_crop_cutout_flip_scale_rotate"), "crop alone": (diffaug, "color_crop")}
CLASSES, SIDE = 6, 8


def drawn(family: str, step: int, classes: int = CLASSES) -> ClassDraw:
    module, strategy = FAMILIES[family]
    return module.draw_classes(stream(0, step, "a"), strategy, classes, SIDE)


def images(count: int, seed: int = 0) -> Tensor:
    return torch.randn(CLASSES, count, 3, SIDE, SIDE, dtype=torch.float64, generator=stream(seed, 0, "x"))


def one_by_one(batch: Tensor, draw: ClassDraw) -> Tensor:
    """Class after class, operation after operation, with the class's own numbers."""
    result = []
    for label, rows in enumerate(batch):
        for stage in draw.stages:
            place = int(stage.choice[label])
            rows = operations.apply(stage.names[place], rows, {key: value[label : label + 1] for key, value in stage.values[place].items()})
        result.append(rows)
    return torch.stack(result)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("count", [1, 4])
def test_equals_class_by_class(family: str, count: int) -> None:
    for step in range(5):
        batch = images(count).requires_grad_()
        whole, parts = apply_classes(batch, drawn(family, step)), one_by_one(batch, drawn(family, step))
        torch.testing.assert_close(whole, parts, rtol=0, atol=1e-14)
        weight = images(count, seed=9)
        gradients = [torch.autograd.grad((out * weight).sum(), batch)[0] for out in (whole, parts)]
        torch.testing.assert_close(*gradients, rtol=0, atol=1e-13)


def test_classes_draw_apart_and_images_of_a_class_alike() -> None:
    """A real and a synthetic batch with equal images come out equal within a class, and not between classes."""
    same = images(1)[:1].expand(CLASSES, 3, -1, -1, -1)
    for family in FAMILIES:
        real, synthetic = (apply_classes(same[:, :count], drawn(family, 0)) for count in (3, 1))
        torch.testing.assert_close(real, synthetic.expand_as(real), rtol=0, atol=0)
        # DSA may draw for two classes what changes nothing, such as a flip that is not made.
        assert len({tuple(row[0].flatten().tolist()) for row in real}) >= (2 if family == "dsa" else CLASSES), family


def test_dsa_draws_one_operation_for_each_class_and_each_equally_often() -> None:
    choices = torch.cat([drawn("dsa", step, 60).stages[0].choice for step in range(20)])
    counts = torch.bincount(choices, minlength=6)
    assert len(counts) == 6 and (counts > 150).all() and (counts < 250).all()


def test_a_part_of_the_classes_is_treated_as_in_the_whole() -> None:
    for family in FAMILIES:
        draw, batch = drawn(family, 3), images(2)
        whole = apply_classes(batch, draw)
        parts = [apply_classes(batch[start : start + 4], draw.part(start, start + 4)) for start in (0, 4)]
        torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-14)


def test_none_changes_nothing() -> None:
    batch = images(2)
    assert dsa.draw_classes(stream(0, 0, "a"), "none", 2, 8) is None and diffaug.draw_classes(stream(0, 0, "a"), "none", 2, 8) is None
    assert apply_classes(batch, None) is batch
