"""From pixel values to what a screen can show."""

import colorsys

import numpy as np
import pytest
import torch

from raydd.pictures import clipped_share, colours, pixels, stacked


def test_values_are_clipped_and_rounded() -> None:
    values = torch.tensor([-1.0, 0.5, 0.9995, 2.0, float("nan"), float("inf")]).view(1, 1, 1, 6).requires_grad_()
    shown = pixels(values)
    assert shown.dtype == np.uint8 and shown.tolist() == [[[[0, 128, 255, 255, 0, 255]]]]


def test_the_clipped_share_counts_what_lies_outside_by_more_than_rounding() -> None:
    assert clipped_share(torch.tensor([-0.001, 0.0, 1.001, 1.1])) == 0.25


def test_colours_are_those_of_the_standard_library() -> None:
    values = torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 1.4 - 0.2
    clipped = np.clip(values.numpy(), 0, 1)
    saturations = [colorsys.rgb_to_hsv(*pixel)[1] for pixel in clipped.transpose(0, 2, 3, 1).reshape(-1, 3)]
    found = colours(values)
    assert found.mean == pytest.approx(clipped.mean(), abs=1e-6) and found.std == pytest.approx(clipped.std(), abs=1e-6)
    assert found.saturation == pytest.approx(np.mean(saturations), abs=1e-6)
    assert colours(torch.zeros(1, 3, 2, 2)).saturation == 0 and colours(torch.ones(1, 1, 2, 2)).saturation is None


def test_pictures_below_one_another() -> None:
    high, wide = (np.full((4, height, width), value, np.uint8) for height, width, value in ((3, 2, 7), (1, 4, 9)))
    found = stacked([high, wide], gap=2)
    assert found.shape == (4, 6, 4) and (found[:, :3, :2] == 7).all() and (found[:, 5] == 9).all()
    assert not found[:, 3:5].any() and not found[:, :3, 2:].any()
