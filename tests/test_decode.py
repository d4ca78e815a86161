"""Decoding against the recorded reference, against torch's interpolation, and what the rest relies on: counts, order, bound."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from raydd import decode as decoding_module
from raydd.data.transform import Transform
from raydd.decode import Decoding, bounded, count, decode, sources, stored_pixels, training_images, uniform
from raydd.errors import ConfigError
from raydd.rng import stream

RECORDED = {
    "uniform_f2": ("32", 2, Decoding(factor=2)),
    "uniform_f3": ("32", 2, Decoding(factor=3)),
    "uniform_16_f3": ("16", 2, Decoding(factor=3)),
    "multi_16_f3": ("16", 2, Decoding(factor=3, kind="multi")),
    "bound20_16_f3": ("16", 7, Decoding(factor=3, kind="bound", bound=20)),
    "bound31_16_f3": ("16", 7, Decoding(factor=3, kind="bound", bound=31)),
}


def stored(*shape: int) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=stream(0, 0, "x"))


@pytest.mark.golden
@pytest.mark.parametrize("name", RECORDED)
def test_equals_the_reference(golden, name: str) -> None:
    case = golden("idc_decode")
    size, n, decoding = RECORDED[name]
    images, labels = torch.tensor(case[f"in_images_{size}"])[:n], torch.tensor(case[f"in_labels_{size}"])[:n]
    expected = torch.tensor(case[f"out_{name}"])
    actual = decode(images, decoding)
    assert actual.shape == expected.shape and (actual - expected).abs().max() <= 1e-12
    assert torch.equal(labels[sources(decoding, n)], torch.tensor(case[f"out_{name}_labels"]))


@pytest.mark.parametrize(("side", "factor"), [(8, 2), (8, 3), (9, 2), (7, 7), (5, 3), (4, 4)])
def test_every_crop_is_torch_interpolation_of_its_place(side: int, factor: int) -> None:
    images, crop = stored(3, 2, side, side), -(-side // factor)
    missing = crop * factor - side
    padded = F.pad(images, (0, missing, 0, missing), value=0.5)
    views = [
        F.interpolate(padded[:, :, y : y + crop, x : x + crop], size=(side, side), mode="bilinear", align_corners=False)
        for y in range(0, crop * factor, crop)
        for x in range(0, crop * factor, crop)
    ]
    torch.testing.assert_close(uniform(images, factor), torch.cat(views), rtol=0, atol=1e-13)


@pytest.mark.parametrize("decoding", [Decoding(factor=2), Decoding(factor=3, kind="multi"), Decoding(factor=3, kind="bound", bound=11)])
def test_classes_together_equal_classes_apart(decoding: Decoding) -> None:
    images = stored(4, 5, 2, 6, 6)
    together = decode(images, decoding)
    assert together.shape == (4, count(decoding, 5), 2, 6, 6) and len(sources(decoding, 5)) == count(decoding, 5)
    assert torch.equal(together, torch.stack([decode(rows, decoding) for rows in images]))


def test_factor_1_changes_nothing_and_float32_stays() -> None:
    images = stored(3, 1, 6, 6).float()
    assert torch.equal(decode(images, Decoding()), images)
    assert decode(images, Decoding(factor=2)).dtype == torch.float32


@pytest.mark.parametrize("decoding", [Decoding(factor=2), Decoding(factor=2, kind="multi"), Decoding(factor=2, kind="bound", bound=6)])
def test_is_differentiable(decoding: Decoding) -> None:
    assert torch.autograd.gradcheck(lambda x: decode(x, decoding), stored(3, 1, 5, 5).requires_grad_())


def test_bound_is_kept_and_every_image_is_used() -> None:
    for n in (1, 3, 10, 20, 50, 127, 128):
        for factor in (1, 2, 3, 5):
            used = sources(Decoding(factor=factor, kind="bound", bound=128), n)
            assert len(used) <= 128 and used.unique().tolist() == list(range(n))
    assert bounded(130, 3, 128) == [(0, 130, 1)]  # no room to decode: each as it is


def test_training_images_are_decoded_then_normalised_and_never_clamped() -> None:
    transform = Transform.standard((2, 6, 6), (0.4, 0.5), (0.2, 0.3)).to("cpu", torch.float64)
    images, labels = stored(6, 2, 6, 6) * 3 - 1, torch.tensor([0, 0, 0, 1, 1, 1])
    found, targets = training_images(images, labels, Decoding("pixels", 2), transform)
    mean, std = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in ((0.4, 0.5), (0.2, 0.3)))
    torch.testing.assert_close(found, (uniform(images, 2) - mean) / std, rtol=0, atol=1e-6)
    assert torch.equal(targets, labels.repeat(4)) and found.max() > (1 - 0.4) / 0.2
    same, targets = training_images(images, labels, Decoding(), transform)
    assert torch.equal(same, images) and torch.equal(targets, labels)


def test_a_bound_is_for_matching_alone() -> None:
    transform, images, labels = Transform.standard((1, 6, 6), (0.0,), (1.0,)), stored(6, 1, 6, 6), torch.tensor([1, 0, 1, 0, 1, 1])
    found, targets = training_images(images, labels, Decoding(factor=2, kind="bound", bound=9), transform)
    assert torch.equal(found, uniform(images, 2)) and torch.equal(targets, labels.repeat(4))


def test_pictures_show_what_is_stored() -> None:
    transform = Transform.standard((1, 4, 4), (0.5,), (0.25,))
    images = stored(2, 1, 4, 4).float()
    assert torch.equal(stored_pixels(images, Decoding("pixels", 2), transform), images)
    torch.testing.assert_close(stored_pixels(images, Decoding(), transform), images * 0.25 + 0.5)


@pytest.mark.parametrize("factor", [0, -1, 9])
def test_a_factor_that_does_not_fit_is_refused(factor: int) -> None:
    with pytest.raises(ConfigError, match=rf"--idc\.factor={factor} does not fit images of 8 pixels.* from 1 to 8"):
        decode(stored(1, 1, 8, 8), Decoding(factor=factor))


def test_a_bound_below_one_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--idc\.batch_syn_max=0"):
        decode(stored(1, 1, 8, 8), Decoding(factor=2, kind="bound", bound=0))


def test_rows_of_the_enlarging_matrix_sum_to_one() -> None:
    for crop, side in ((1, 4), (3, 8), (16, 32), (5, 5)):
        torch.testing.assert_close(decoding_module._enlarging(crop, side).sum(1), torch.ones(side, dtype=torch.float64))
