"""IDC's augmentation against the recorded reference, and how its steps are drawn."""

import numpy as np
import pytest
import torch

from raydd.augment import diffaug, operations
from raydd.rng import stream
from tests.augment.test_dsa import RECORDED

MEAN, STD = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)))
CASES = {
    "match": ("color", "crop", "cutout"),
    "train": ("color", "crop"),
    "eval_crop": ("flip", "color", "crop"),
    "eval_scale": ("flip", "color", "scale"),
    "eval_rotate": ("flip", "color", "rotate"),
    "shared_flip": ("flip",),
    "shared_scale": ("scale",),
    "shared_rotate": ("rotate",),
}


def recorded(case: dict[str, np.ndarray], name: str) -> diffaug.DiffAugDraw:
    def values(operation: str) -> dict[str, torch.Tensor]:
        return {ours: torch.tensor(case[f"in_{name}_{theirs}"]).reshape(-1) for ours, theirs in RECORDED[operation].items()}

    return diffaug.DiffAugDraw(tuple((operation, values(operation)) for operation in CASES[name]))


@pytest.mark.golden
@pytest.mark.parametrize("name", CASES)
def test_equals_the_reference(golden, name: str) -> None:
    case = golden("idc_diffaug")
    expected = torch.tensor(case[f"out_{name}"])
    images = (torch.tensor(case["in_images_uint8"]).double() / 255 - MEAN) / STD
    actual = diffaug.apply(images[: len(expected)].to(expected.dtype), recorded(case, name))
    assert (actual - expected).abs().max() <= (1e-11 if expected.dtype == torch.float64 else 3e-5)


@pytest.mark.parametrize(
    ("strategy", "steps"),
    [
        ("color_crop_cutout", (("color",), ("crop",), ("cutout",))),
        ("color_crop", (("color",), ("crop",))),
        ("color_crop_scale_rotate", (("color",), ("crop", "scale", "rotate"))),
        ("color_crop_flip_scale_rotate", (("flip",), ("color",), ("crop", "scale", "rotate"))),
        ("cutout_rotate_flip", (("flip",), ("rotate",), ("cutout",))),
    ],
)
def test_steps_are_those_named_in_a_fixed_order(strategy: str, steps: tuple) -> None:
    assert diffaug.stages(strategy) == steps


def test_one_of_crop_scale_and_rotate_is_drawn_for_each_batch() -> None:
    draws = [diffaug.draw(stream(0, s, "a"), "color_crop_flip_scale_rotate", 4, 8, "per-image") for s in range(300)]
    names = [tuple(name for name, _ in drawn.steps) for drawn in draws]
    assert all(len(steps) == 3 and steps[:2] == ("flip", "color") for steps in names)
    drawn = [steps[2] for steps in names]
    assert all(70 <= drawn.count(name) <= 130 for name in ("crop", "scale", "rotate"))


def test_a_shared_draw_treats_equal_images_equally_in_batches_of_any_size() -> None:
    """What makes matching Siamese: real and synthetic batches see one transformation."""
    image = torch.randn(1, 3, 8, 8, dtype=torch.float64, generator=stream(0, 0, "x"))
    for step in range(20):
        drawn = diffaug.draw(stream(0, step, "a"), "color_crop_cutout_flip_scale_rotate", 64, 8, "shared")
        one, many = diffaug.apply(image, drawn), diffaug.apply(image.expand(5, -1, -1, -1), drawn)
        torch.testing.assert_close(many, one.expand(5, -1, -1, -1), rtol=0, atol=0)
    own = diffaug.draw(stream(0, 0, "a"), "color_crop", 5, 8, "per-image")
    assert (diffaug.apply(image.expand(5, -1, -1, -1), own)[1:] != diffaug.apply(image, drawn)).any()


def test_is_differentiable_and_none_changes_nothing() -> None:
    images = torch.randn(2, 3, 6, 6, dtype=torch.float64, generator=stream(1, 0, "x")).requires_grad_()
    for step, parameters in enumerate(("per-image", "shared")):
        drawn = diffaug.draw(stream(0, step, "a"), "color_crop_flip_scale_rotate_cutout", 2, 6, parameters)
        assert torch.autograd.gradcheck(diffaug.apply, (images, drawn))
    assert diffaug.draw(stream(0, 0, "a"), "none", 2, 8, "shared") is None and diffaug.apply(images, None) is images


@pytest.mark.parametrize("operation", operations._OPERATIONS)
def test_one_value_for_all_is_that_value_for_each(operation: str) -> None:
    images = torch.randn(3, 3, 8, 8, dtype=torch.float64, generator=stream(2, 0, "x"))
    values = operations.draw(operation, stream(0, 0, "a"), 1, 8)
    each = {name: value.expand(3) for name, value in values.items()}
    torch.testing.assert_close(operations.apply(operation, images, values), operations.apply(operation, images, each), rtol=0, atol=0)
