"""DC's augmentation of evaluation batches: every image goes through one operation of its own.

Source: specs/dc_dsa_dm_cafe_selection_cl.md section 3 (DatasetCondensation utils.py:365 augment).

crop    pad by 4 pixels of the batch's mean colour, then a window of the old size anywhere
scale   height and width by independent factors in [0.8, 1.2), nearest pixel, centred, 0 outside
rotate  by a whole angle from -45 to 44 degrees, the mean of the mean colour outside; bilinear, where the program has cubic splines
noise   plus 0.001 N(0, 1)
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from raydd.augment import operations
from raydd.augment.operations import Values

OPERATIONS = ("crop", "scale", "rotate", "noise")
CROP, SCALE, ROTATE, NOISE = 4, 0.2, 45, 0.001


@dataclass(frozen=True)
class DcDraw:
    """For each operation drawn: the rows int64 (n,) of the batch that go through it, and its parameters for them."""

    steps: tuple[tuple[str, Tensor, Values], ...]

    def to(self, device: torch.device | str) -> "DcDraw":
        """The same draw on a device."""
        return DcDraw(
            tuple((name, rows.to(device), {key: value.to(device) for key, value in values.items()}) for name, rows, values in self.steps)
        )


def draw(generator: Generator, strategy: str, shape: torch.Size | tuple[int, ...]) -> DcDraw | None:
    """Draw for a batch of this shape (B, C, H, W) one operation of `strategy` (joined by `_`) for each image; None when it is `none`."""
    if strategy == "none":
        return None
    names = strategy.split("_")
    choice = torch.randint(len(names), (shape[0],), generator=generator)
    found = ((name, torch.nonzero(choice == place).squeeze(1)) for place, name in enumerate(names))
    return DcDraw(tuple((name, rows, _values(name, generator, len(rows), shape)) for name, rows in found if len(rows)))


def apply(images: Tensor, drawn: DcDraw | None) -> Tensor:
    """Augment images (B, C, H, W), square, on the draw's device; the input is left as it is."""
    if drawn is None:
        return images
    colour, result = images.mean((0, 2, 3), keepdim=True), images.clone()
    for name, rows, values in drawn.steps:
        result[rows] = _OPERATIONS[name](images[rows], colour, **values)
    return result


def _values(name: str, generator: Generator, count: int, shape: torch.Size | tuple[int, ...]) -> Values:
    """The parameters of `count` images."""
    side = shape[-1]

    def whole(low: int, high: int) -> Tensor:
        return torch.randint(low, high, (count,), generator=generator)

    def length() -> Tensor:
        return ((1 - SCALE + 2 * SCALE * torch.rand(count, generator=generator)) * side).long()

    return {
        "crop": lambda: {"rows": whole(-CROP, CROP), "columns": whole(-CROP, CROP)},
        "scale": lambda: {"height": length(), "width": length()},
        "rotate": lambda: {"degrees": whole(-ROTATE, ROTATE)},
        "noise": lambda: {"noise": torch.randn(count, *shape[1:], generator=generator)},
    }[name]()


def _crop(images: Tensor, colour: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    # What the shared operations leave outside is 0; it becomes a colour by taking that off before and putting it back after.
    return operations.apply("crop", images - colour, {"rows": rows, "columns": columns}) + colour


def _rotate(images: Tensor, colour: Tensor, degrees: Tensor) -> Tensor:
    fill = colour.mean()
    return operations.apply("rotate", images - fill, {"angle": degrees / (2 * operations.ROTATE) + 0.5}) + fill


def _scale(images: Tensor, colour: Tensor, height: Tensor, width: Tensor) -> Tensor:
    side = images.shape[-1]
    row, row_inside = _nearest(height, torch.maximum(height, width), side)
    column, column_inside = _nearest(width, torch.maximum(height, width), side)
    picked = images.gather(2, row[:, None, :, None].expand_as(images)).gather(3, column[:, None, None, :].expand_as(images))
    return picked * (row_inside[:, None, :, None] & column_inside[:, None, None, :])


def _nearest(length: Tensor, longest: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Which old pixel each new one shows along an axis scaled to `length` (B,), int64 (B, side), and whether it shows one.

    The scaled image lies in the middle of a square of `longest` pixels, or of `side` where that is more, and so does the window.
    """
    square = longest.clamp_min(side)
    place = torch.arange(side, device=length.device) + ((square - side) // 2 - (square - length) // 2)[:, None]
    inside = (place >= 0) & (place < length[:, None])
    return (place * side // length[:, None]).clamp(0, side - 1), inside


def _noise(images: Tensor, colour: Tensor, noise: Tensor) -> Tensor:
    return images + NOISE * noise.to(images.dtype)


_OPERATIONS = {"crop": _crop, "scale": _scale, "rotate": _rotate, "noise": _noise}
