"""Synthetic images as pictures: from pixel values to 8-bit pixels, and from these to PNG files, strips and grids."""

import io
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor


@dataclass(frozen=True)
class Colours:
    """Mean and standard deviation of pixel values, and the mean saturation; None for grey images. All 0..1."""

    mean: float
    std: float
    saturation: float | None


def colours(values: Tensor) -> Colours:
    """The colour statistics of pixel values (n, C, H, W), clipped to 0..1; saturation is that of HSV, (max - min) / max, 0 for black."""
    shown = torch.nan_to_num(values.detach().float().cpu(), nan=0.0).clamp(0, 1)
    saturation = None
    if shown.shape[1] == 3:
        high, low = shown.amax(dim=1), shown.amin(dim=1)
        saturation = torch.where(high > 0, (high - low) / high.clamp_min(1e-12), 0.0).mean().item()
    return Colours(shown.mean().item(), shown.std(correction=0).item(), saturation)


def pixels(values: Tensor) -> np.ndarray:
    """Pixel values (n, C, H, W), nominally 0..1, as uint8 pixels: clipped to 0..1 and rounded to 255ths; NaN becomes black."""
    return (torch.nan_to_num(values.detach().float().cpu(), nan=0.0).clamp(0, 1) * 255).round().to(torch.uint8).numpy()


def clipped_share(values: Tensor) -> float:
    """The share (0..1) of pixel values that lie outside 0..1 by more than half a 255th, and so are not shown as they are."""
    return float(((values < -1 / 510) | (values > 1 + 1 / 510)).float().mean())


def picture(image: np.ndarray) -> Image.Image:
    """One uint8 image (1, H, W) or (3, H, W) as a grey or colour picture."""
    return Image.fromarray(image[0]) if len(image) == 1 else Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))


def png(image: np.ndarray) -> bytes:
    """One uint8 image (1, H, W), (3, H, W) or, with transparency, (4, H, W) as a PNG file."""
    buffer = io.BytesIO()
    picture(image).save(buffer, format="PNG")
    return buffer.getvalue()


def grid(rows: list[np.ndarray], scale: int = 1, gap: int = 1) -> np.ndarray:
    """Rows of uint8 images (n_i, C, H, W) as one uint8 picture (4, h, w) with transparent gaps.

    Every image pixel becomes `scale` x `scale` pixels (nearest neighbour); `gap` is counted after that. Shorter rows end early.
    """
    height, width = (length * scale for length in rows[0].shape[2:])
    columns = max(len(row) for row in rows)
    canvas = np.zeros((4, len(rows) * (height + gap) - gap, columns * (width + gap) - gap), dtype=np.uint8)
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            top, left = y * (height + gap), x * (width + gap)
            # A single grey channel spreads over red, green and blue.
            canvas[:3, top : top + height, left : left + width] = image.repeat(scale, axis=1).repeat(scale, axis=2)
            canvas[3, top : top + height, left : left + width] = 255
    return canvas


def stacked(parts: list[np.ndarray], gap: int) -> np.ndarray:
    """Pictures with transparency, uint8 (4, h_i, w_i), one below the other with `gap` transparent pixels between them."""
    height, width = sum(part.shape[1] for part in parts) + gap * (len(parts) - 1), max(part.shape[2] for part in parts)
    canvas, top = np.zeros((4, height, width), dtype=np.uint8), 0
    for part in parts:
        canvas[:, top : top + part.shape[1], : part.shape[2]] = part
        top += part.shape[1] + gap
    return canvas
