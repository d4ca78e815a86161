"""From pixel values to what a screen can show."""

import numpy as np
import torch

from raydd.pictures import clipped_share, pixels


def test_values_are_clipped_and_rounded() -> None:
    values = torch.tensor([-1.0, 0.5, 0.9995, 2.0, float("nan"), float("inf")]).view(1, 1, 1, 6).requires_grad_()
    shown = pixels(values)
    assert shown.dtype == np.uint8 and shown.tolist() == [[[[0, 128, 255, 255, 0, 255]]]]


def test_the_clipped_share_counts_what_lies_outside_by_more_than_rounding() -> None:
    assert clipped_share(torch.tensor([-0.001, 0.0, 1.001, 1.1])) == 0.25
