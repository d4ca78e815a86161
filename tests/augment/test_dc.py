"""DC's augmentation against slow forms of each operation."""

import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage

from raydd.augment import dc
from raydd.rng import stream


@pytest.fixture
def images() -> torch.Tensor:
    return 3 + torch.randn(40, 2, 12, 12, generator=stream(0, 0, "images"), dtype=torch.float64)


def augmented(images: torch.Tensor, strategy: str) -> tuple[torch.Tensor, dc.DcDraw]:
    drawn = dc.draw(stream(0, 0, "draw"), strategy, images.shape)
    before = images.clone()
    result = dc.apply(images, drawn)
    assert torch.equal(images, before) and result.shape == images.shape
    return result, drawn


def one(drawn: dc.DcDraw, image: int) -> dict[str, torch.Tensor]:
    ((_, rows, values),) = drawn.steps
    assert rows.tolist() == list(range(40))
    return {name: value[image] for name, value in values.items()}


def test_crop_is_a_window_of_the_image_in_its_mean_colour(images: torch.Tensor) -> None:
    result, drawn = augmented(images, "crop")
    colour = [images[:, channel].mean() for channel in range(2)]
    for place, image in enumerate(images):
        values = one(drawn, place)
        row, column = int(values["rows"]) + 4, int(values["columns"]) + 4
        assert 0 <= row < 8 and 0 <= column < 8
        padded = torch.stack([F.pad(part, (4, 4, 4, 4), value=float(fill)) for part, fill in zip(image, colour, strict=True)])
        torch.testing.assert_close(result[place], padded[:, row : row + 12, column : column + 12])


def test_scale_is_centred(images: torch.Tensor) -> None:
    result, drawn = augmented(images, "scale")
    sizes = set()
    for place, image in enumerate(images):
        height, width = int(one(drawn, place)["height"]), int(one(drawn, place)["width"])
        sizes |= {height, width}
        longest = max(height, width, 12)
        square = torch.zeros(2, longest, longest, dtype=torch.float64)
        top, left, start = (longest - height) // 2, (longest - width) // 2, (longest - 12) // 2
        square[:, top : top + height, left : left + width] = F.interpolate(image[None], (height, width))[0]
        assert torch.equal(result[place], square[:, start : start + 12, start : start + 12])
    assert sizes == {9, 10, 11, 12, 13, 14}


def test_rotate_turns_about_the_centre(images: torch.Tensor) -> None:
    result, drawn = augmented(images, "rotate")
    fill = float(images.mean())
    for place, image in enumerate(images):
        angle = int(one(drawn, place)["degrees"])
        assert -45 <= angle < 45
        turned = ndimage.rotate(image.numpy(), angle, axes=(-2, -1), reshape=False, order=1, mode="grid-constant", cval=fill)
        torch.testing.assert_close(result[place], torch.from_numpy(turned), rtol=1e-5, atol=1e-5)


def test_noise_is_small(images: torch.Tensor) -> None:
    result, _ = augmented(images, "noise")
    assert (result - images).std().item() == pytest.approx(0.001, rel=0.05)


def test_every_image_draws_its_own_operation(images: torch.Tensor) -> None:
    result, drawn = augmented(images, "crop_noise")
    assert sorted(row for _, rows, _ in drawn.steps for row in rows.tolist()) == list(range(40))
    assert {name: 10 < len(rows) < 30 for name, rows, _ in drawn.steps} == {"crop": True, "noise": True}
    noisy = {name: rows for name, rows, _ in drawn.steps}["noise"]
    assert (result[noisy] - images[noisy]).abs().max() < 0.01
    assert dc.draw(stream(0, 0, "draw"), "none", images.shape) is None and dc.apply(images, None) is images
