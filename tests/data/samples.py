"""Pictures made of noise, encoded or not."""

import io

import numpy as np
from PIL import Image


def encode(pixels: np.ndarray, form: str = "PNG") -> bytes:
    """Uint8 (H, W) or (H, W, 3) as an encoded image."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


def noise(count: int, side: int = 8, channels: int = 3, seed: int = 0) -> list[np.ndarray]:
    """Uint8 images (side, side, 3), or (side, side) for one channel."""
    shape = (count, side, side, 3) if channels == 3 else (count, side, side)
    return list(np.random.default_rng(seed).integers(0, 256, shape, np.uint8))
