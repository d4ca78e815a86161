"""The six differentiable augmentations, each a function of images (B, C, H, W) and of its parameters, drawn before.

Source: specs/mtt_pdd.md section 1.4, specs/dc_dsa_dm_cafe_selection_cl.md section 5.2. Parameters are tensors (B,), one value for each
image, or (1,), one for the whole batch:

color:  brightness, saturation, contrast, uniform in [0, 1)
crop:   rows, columns, whole pixels by which the window moves
cutout: row, column, the centre of the square that is set to 0
flip:   flip, uniform in [0, 1); below 0.5 mirrors
scale:  x, y, uniform in [0, 1)
rotate: angle, uniform in [0, 1)

Outside the image is 0, which is the data set's mean in training space. Any float dtype.
"""

import math

import torch
from torch import Generator, Tensor

BRIGHTNESS, SATURATION, CONTRAST = 1.0, 2.0, 0.5
CROP, CUTOUT, SCALE, ROTATE = 0.125, 0.5, 1.2, 15.0

Values = dict[str, Tensor]


def draw(operation: str, generator: Generator, count: int, side: int) -> Values:
    """`count` independent draws of an operation's parameters for images of `side` pixels: each name with a tensor (count,)."""

    def uniform() -> Tensor:
        return torch.rand(count, generator=generator)

    def whole(low: int, high: int) -> Tensor:
        return torch.randint(low, high + 1, (count,), generator=generator)

    shift = int(side * CROP + 0.5)
    # An even square may be centred one past the last row; the reference draws that offset too.
    last = side - int(side * CUTOUT + 0.5) % 2
    return {
        "color": lambda: {"brightness": uniform(), "saturation": uniform(), "contrast": uniform()},
        "crop": lambda: {"rows": whole(-shift, shift), "columns": whole(-shift, shift)},
        "cutout": lambda: {"row": whole(0, last), "column": whole(0, last)},
        "flip": lambda: {"flip": uniform()},
        "scale": lambda: {"x": uniform(), "y": uniform()},
        "rotate": lambda: {"angle": uniform()},
    }[operation]()


def apply(operation: str, images: Tensor, values: Values) -> Tensor:
    """Images (B, C, H, W), square, after one operation; differentiable in the images, on the device of the values."""
    return _OPERATIONS[operation](images, **values)


def _color(images: Tensor, brightness: Tensor, saturation: Tensor, contrast: Tensor) -> Tensor:
    brightness, saturation, contrast = (_per_image(value, images) for value in (brightness, saturation, contrast))
    images = images + (brightness - 0.5) * BRIGHTNESS
    grey = images.mean(dim=1, keepdim=True)
    images = (images - grey) * (saturation * SATURATION) + grey
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return (images - mean) * (contrast + CONTRAST) + mean


def _crop(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    row, column = _pixels(images)
    return _take(images, row + rows[:, None, None], column + columns[:, None, None])


def _cutout(images: Tensor, row: Tensor, column: Tensor) -> Tensor:
    side = images.shape[-1]
    size = int(side * CUTOUT + 0.5)
    position = torch.arange(side, device=images.device)

    def covered(centre: Tensor) -> Tensor:
        # The reference clamps the square's pixels to the image, so a square centred past the edge still covers the edge row.
        low = (centre - size // 2).clamp(0, side - 1)[:, None]
        high = (centre - size // 2 + size - 1).clamp(0, side - 1)[:, None]
        return (position >= low) & (position <= high)

    hole = covered(row)[:, None, :, None] & covered(column)[:, None, None, :]
    return images * (~hole).to(images.dtype)


def _flip(images: Tensor, flip: Tensor) -> Tensor:
    return torch.where((flip < 0.5)[:, None, None, None], images.flip(3), images)


def _scale(images: Tensor, x: Tensor, y: Tensor) -> Tensor:
    factor_x, factor_y = (_centred(1 / SCALE + value * (SCALE - 1 / SCALE), images) for value in (x, y))
    row, column, centre = _coordinates(images)
    return _bilinear(images, centre + factor_y * (row - centre), centre + factor_x * (column - centre))


def _rotate(images: Tensor, angle: Tensor) -> Tensor:
    radians = _centred((angle - 0.5) * 2 * ROTATE * math.pi / 180, images)
    row, column, centre = _coordinates(images)
    x, y = column - centre, row - centre
    return _bilinear(
        images,
        centre + torch.sin(radians) * x + torch.cos(radians) * y,
        centre + torch.cos(radians) * x - torch.sin(radians) * y,
    )


def _per_image(value: Tensor, images: Tensor) -> Tensor:
    return value.to(images.dtype)[:, None, None, None]


def _centred(value: Tensor, images: Tensor) -> Tensor:
    return value.to(images.dtype)[:, None, None]


def _pixels(images: Tensor) -> tuple[Tensor, Tensor]:
    height, width = images.shape[-2:]
    row = torch.arange(height, device=images.device)[None, :, None]
    return row, torch.arange(width, device=images.device)[None, None, :]


def _coordinates(images: Tensor) -> tuple[Tensor, Tensor, float]:
    row, column = _pixels(images)
    return row.to(images.dtype), column.to(images.dtype), (images.shape[-1] - 1) / 2


def _take(images: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Pixels (B, C, H, W) at whole positions (B or 1, H, W), 0 outside the image."""
    batch, channels, height, width = images.shape
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    place = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
    place = place.expand(batch, height, width).reshape(batch, 1, -1).expand(batch, channels, -1)
    taken = images.reshape(batch, channels, -1).gather(2, place).view(batch, channels, height, width)
    return taken * inside[:, None].to(images.dtype)


def _bilinear(images: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Bilinear samples at positions in pixels (B, H, W), 0 outside.

    Four gathers in place of `grid_sample`, because its CUDA backward is not deterministic.
    """
    top, left = row.floor(), column.floor()
    down, right = (row - top)[:, None], (column - left)[:, None]
    top, left = top.long(), left.long()
    upper = _take(images, top, left) * (1 - right) + _take(images, top, left + 1) * right
    lower = _take(images, top + 1, left) * (1 - right) + _take(images, top + 1, left + 1) * right
    return upper * (1 - down) + lower * down


_OPERATIONS = {"color": _color, "crop": _crop, "cutout": _cutout, "flip": _flip, "scale": _scale, "rotate": _rotate}
