"""What synthetic images start from, against the recorded reference and by definition."""

import pytest
import torch
from torch import Tensor

from raydd.decode import uniform
from raydd.errors import ConfigError
from raydd.initial import central_rows, class_rows, first_rows, mix, noise, random_rows
from raydd.rng import stream

LABELS = torch.tensor([1, 0, 1, 1, 0, 2, 2, 0, 1, 2, 2, 2])
NAMES = ("cat", "dog", "bird")


@pytest.mark.golden
@pytest.mark.parametrize(("factor", "ipc"), [(2, 2), (3, 1)])
def test_mix_equals_the_reference(golden, factor: int, ipc: int) -> None:
    case = golden("idc_mix_init")
    images = torch.tensor(case[f"in_f{factor}_images_uint8"])[:, : ipc * factor**2].double() / 255
    assert torch.equal(mix(images, factor), torch.tensor(case[f"out_f{factor}_data"]))


@pytest.mark.parametrize(("side", "factor", "ipc"), [(8, 2, 3), (8, 4, 1), (9, 3, 2), (6, 1, 4)])
def test_crop_p_of_stored_image_i_is_real_image_p_ipc_plus_i(side: int, factor: int, ipc: int) -> None:
    """So decoding, whose order is the same, gives back the real images of a class in their order."""
    images = torch.rand(2, ipc * factor**2, 3, side, side, dtype=torch.float64, generator=stream(0, 0, "x"))
    stored = mix(images, factor).view(2, ipc, 3, side, side)
    crop, shrink = side // factor, factor
    for place in range(ipc * factor**2):
        (y, x), i = divmod(place // ipc, factor), place % ipc
        patch = stored[:, i, :, y * crop : (y + 1) * crop, x * crop : (x + 1) * crop]
        assert torch.equal(patch, images[:, place, :, ::shrink, ::shrink])
    flat = images[:, :, :, :1, :1].expand(-1, -1, -1, side, side)
    stored = mix(flat, factor).view(2, ipc, 3, side, side)
    torch.testing.assert_close(uniform(stored, factor), flat, rtol=0, atol=1e-14)


def test_a_remainder_goes_to_the_first_patches() -> None:
    """32 pixels by 3: patches of 11, 11 and 10, which the decoder pads to 33 and cuts at 11 and 22."""
    images = torch.arange(9, dtype=torch.float64)[None, :, None, None, None].expand(1, 9, 1, 32, 32)
    stored = mix(images, 3)[0, 0]
    assert stored[:, 0].tolist() == [0.0] * 11 + [3.0] * 11 + [6.0] * 10
    assert stored[31].tolist() == [6.0] * 11 + [7.0] * 11 + [8.0] * 10


def test_noise_lies_in_its_space() -> None:
    pixels = noise((50, 1, 8, 8), "pixels", stream(0, 0, "n"))
    assert pixels.min() == 0 and pixels.max() == 1 and abs(pixels.mean() - 0.5) < 0.02
    inner = pixels[(pixels > 0) & (pixels < 1)]
    assert 0.2 < inner.std() < 0.25
    training = noise((50, 1, 8, 8), "training", stream(0, 0, "n"))
    assert torch.equal(training, torch.randn(50, 1, 8, 8, generator=stream(0, 0, "n")))


def test_rows_are_of_their_class_first_or_by_lot() -> None:
    rows = class_rows(LABELS, NAMES, 3, "--ipc=3")
    assert [own.tolist() for own in rows] == [[1, 4, 7], [0, 2, 3, 8], [5, 6, 9, 10, 11]]
    assert first_rows(rows, 2).tolist() == [[1, 4], [0, 2], [5, 6]]
    drawn = torch.stack([random_rows(rows, 3, seed, "init") for seed in range(30)])
    assert (LABELS[drawn] == torch.arange(3)[:, None]).all()
    assert all(len(set(own.tolist())) == 3 for draw in drawn for own in draw)
    assert {row for draw in drawn for row in draw[2].tolist()} == {5, 6, 9, 10, 11}
    assert torch.equal(random_rows(rows, 3, 4, "init"), drawn[4])


def test_central_rows_are_those_nearest_to_the_centres_of_their_class() -> None:
    places = torch.arange(12, dtype=torch.float64)[:, None]

    def embed(rows: Tensor) -> Tensor:
        return places[rows]

    rows = class_rows(LABELS, NAMES, 1, "--ipc=1")
    # Means are 4, 3.25 and 8.2; the nearest rows of the classes are 4, 3 and 9.
    assert central_rows(rows, 1, embed, 0, "init").tolist() == [[4], [3], [9]]
    all_of_class_0 = central_rows(rows[:1], 3, embed, 0, "init")
    assert sorted(all_of_class_0[0].tolist()) == [1, 4, 7]


def test_a_class_with_too_few_images_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"--ipc=1 with --idc\.factor=2 needs 4 training images of each class; too few has: cat \(3\)"):
        class_rows(LABELS, NAMES, 4, "--ipc=1 with --idc.factor=2")
