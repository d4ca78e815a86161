"""DSA against the recorded reference operations, plus the properties that the papers rely on."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import affine_grid, grid_sample

from raydd.augment import dsa
from raydd.config import DSA_OPERATIONS, DSA_STRATEGY
from raydd.rng import stream

# Our parameter names beside those of the recorded cases.
RECORDED = {
    "color": {"brightness": "u_brightness", "saturation": "u_saturation", "contrast": "u_contrast"},
    "crop": {"rows": "tx", "columns": "ty"},
    "cutout": {"row": "ox", "column": "oy"},
    "flip": {"flip": "u_flip"},
    "scale": {"x": "u_scale_x", "y": "u_scale_y"},
    "rotate": {"angle": "u_rotate"},
}


def recorded_draw(case: dict[str, np.ndarray], operation: str, prefix: str) -> dsa.DsaDraw:
    values = {ours: torch.tensor(case[f"{prefix}_{theirs}"]) for ours, theirs in RECORDED[operation].items()}
    return dsa.DsaDraw(operation, values)


@pytest.mark.golden
@pytest.mark.parametrize("case_name", ["dsa_ops_align_true", "dsa_ops_align_false"])
@pytest.mark.parametrize("kind", ["per_image", "shared"])
@pytest.mark.parametrize("operation", DSA_OPERATIONS)
def test_equals_the_reference(golden, case_name: str, kind: str, operation: str) -> None:
    case = golden(case_name)
    expected = torch.tensor(case[f"out_{operation}_{kind}"])
    images = torch.tensor(case["in_images"]).to(expected.dtype)
    actual = dsa.apply(images, recorded_draw(case, operation, f"in_{operation}_{kind}"))
    tolerance = 1e-12 if expected.dtype == torch.float64 else 2e-5
    assert (actual - expected).abs().max() <= tolerance


@pytest.mark.parametrize("side", [8, 32, 33])
def test_scale_and_rotate_equal_torch_grid_sample(side: int) -> None:
    images = torch.randn(3, 2, side, side, dtype=torch.float64, generator=stream(0, 0, "images"))
    u = torch.tensor([0.1, 0.5, 0.95], dtype=torch.float64)
    angle, factor = (u - 0.5) * 30 * math.pi / 180, 1 / 1.2 + u * (1.2 - 1 / 1.2)
    zero = torch.zeros_like(u)
    matrices = {
        "rotate": [[torch.cos(angle), -torch.sin(angle), zero], [torch.sin(angle), torch.cos(angle), zero]],
        "scale": [[factor, zero, zero], [zero, factor, zero]],
    }
    for operation, values in (("rotate", {"angle": u}), ("scale", {"x": u, "y": u})):
        matrix = torch.stack([torch.stack(row, -1) for row in matrices[operation]], 1)
        grid = affine_grid(matrix, list(images.shape), align_corners=True)
        expected = grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=True)
        torch.testing.assert_close(dsa.apply(images, dsa.DsaDraw(operation, values)), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("operation", DSA_OPERATIONS)
def test_is_differentiable_in_the_images(operation: str) -> None:
    drawn = dsa.draw(stream(3, 0, "augment"), operation, 2, 6, "per-image")
    images = torch.randn(2, 3, 6, 6, dtype=torch.float64, generator=stream(1, 0, "images")).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: dsa.apply(x, drawn), images)


def test_draws_each_operation_equally_often_and_repeats_with_the_stream() -> None:
    names = [dsa.draw(stream(0, step, "augment"), DSA_STRATEGY, 4, 32, "per-image").operation for step in range(600)]
    assert set(names) == set(DSA_OPERATIONS)
    assert all(60 <= names.count(name) <= 140 for name in DSA_OPERATIONS)
    one, two = (dsa.draw(stream(0, 9, "augment"), DSA_STRATEGY, 4, 32, "per-image") for _ in range(2))
    assert one.operation == two.operation and all(torch.equal(one.values[k], two.values[k]) for k in one.values)


def test_parameter_ranges_are_the_reference_ones() -> None:
    crop = torch.stack([dsa.draw(stream(0, s, "a"), "crop", 64, 32, "per-image").values["rows"] for s in range(50)])
    cutout = torch.stack([dsa.draw(stream(0, s, "a"), "cutout", 64, 32, "per-image").values["row"] for s in range(50)])
    assert (crop.min(), crop.max()) == (-4, 4)
    assert (cutout.min(), cutout.max()) == (0, 32)


def test_shared_parameters_are_equal_and_per_image_ones_are_not() -> None:
    for operation in DSA_OPERATIONS:
        shared = dsa.draw(stream(0, 0, "a"), operation, 8, 32, "shared").values
        own = dsa.draw(stream(0, 0, "a"), operation, 8, 32, "per-image").values
        assert all((value == value[0]).all() for value in shared.values())
        assert any((value != value[0]).any() for value in own.values())


def test_none_changes_nothing() -> None:
    images = torch.rand(2, 3, 8, 8)
    assert dsa.draw(stream(0, 0, "a"), "none", 2, 8, "per-image") is None
    assert dsa.apply(images, None) is images
