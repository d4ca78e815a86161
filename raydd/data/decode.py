"""One picture to uint8 pixels: modes, transparency, orientation and size.

Rules, in this order. Of several frames the first is used. An orientation tag is applied. Transparent pixels are laid over
white. 16-bit grey is divided by 257. With a side given, a picture that is not square is cropped to its largest centred
square; any other side is resized with Pillow's bilinear filter, which averages when it shrinks.
"""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from raydd.data.types import Picture
from raydd.errors import DataError

_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, struct.error, zlib.error, Image.DecompressionBombError)
_ORIENTATION = 0x0112
_GREY = ("1", "L", "LA", "La")
_COLOUR = ("RGB", "RGBX", "RGBA", "RGBa", "P", "PA", "CMYK", "YCbCr", "HSV", "LAB")


def decode(where: str, picture: Picture, side: int | None, channels: int) -> tuple[np.ndarray, bool]:
    """Pixels uint8 (channels, H, W), and whether the picture has colour channels of its own (a palette counts as colour).

    Raises `DataError`, naming `where`, for anything that cannot be read as an image of 8 or 16 bits.
    """
    try:
        image = _upright(Image.fromarray(picture) if isinstance(picture, np.ndarray) else _open(picture))
    except _UNREADABLE as error:
        raise DataError(f"{where}: cannot be decoded ({error}). Replace or remove the image.") from error
    colour = image.mode == "RGB"
    image = image.convert("L" if channels == 1 else "RGB")
    if side is not None and image.size != (side, side):
        image = _square(image).resize((side, side), Image.Resampling.BILINEAR)
    pixels = np.asarray(image)
    return (pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)), colour


def _square(image: Image.Image) -> Image.Image:
    width, height = image.size
    short = min(width, height)
    left, top = (width - short) // 2, (height - short) // 2
    return image.crop((left, top, left + short, top + short))


def _open(picture: bytes | Path) -> Image.Image:
    image = Image.open(io.BytesIO(picture if isinstance(picture, bytes) else picture.read_bytes()))
    image.load()
    return image


def _upright(image: Image.Image) -> Image.Image:
    """As mode L or RGB, turned as the orientation tag says."""
    if image.getexif().get(_ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode in ("L", "RGB"):
        return image
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        return Image.fromarray(np.rint(np.asarray(image).astype(np.float64) / 257).astype(np.uint8))
    if image.mode not in _GREY + _COLOUR:
        raise ValueError(f"its pixel mode is {image.mode}; 8-bit grey, 8-bit colour and 16-bit grey are read")
    if image.has_transparency_data:
        image = image.convert("RGBA") if image.mode in _COLOUR else image.convert("LA")
        paper = Image.new(image.mode, image.size, (255,) * len(image.getbands()))
        image = _over(paper, image)
    return image.convert("L" if image.mode in _GREY else "RGB")


def _over(paper: Image.Image, image: Image.Image) -> Image.Image:
    paper.paste(image, mask=image.getchannel("A"))
    return paper
