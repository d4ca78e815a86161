"""Every kind of picture that turns up in real folders: read by a stated rule, or refused by name."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raydd.data.decode import decode
from raydd.errors import DataError


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


GREY = np.arange(64, dtype=np.uint8).reshape(8, 8)
COLOUR = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)


def test_colour_and_grey_keep_their_values():
    pixels, colour = decode("x", encoded(Image.fromarray(COLOUR)), None, 3)
    assert colour and np.array_equal(pixels, COLOUR.transpose(2, 0, 1))
    pixels, colour = decode("x", encoded(Image.fromarray(GREY)), None, 3)
    assert not colour and np.array_equal(pixels, np.stack([GREY] * 3))
    pixels, _ = decode("x", encoded(Image.fromarray(GREY)), None, 1)
    assert np.array_equal(pixels, GREY[None])


def test_arrays_and_paths_are_pictures_too(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(encoded(Image.fromarray(COLOUR)))
    assert np.array_equal(decode("x", COLOUR, None, 3)[0], decode("x", tmp_path / "a.png", None, 3)[0])


def test_colour_to_grey_uses_the_luma_weights():
    pixels, colour = decode("x", COLOUR, None, 1)
    assert colour
    assert np.abs(pixels[0] - COLOUR @ [0.299, 0.587, 0.114]).max() <= 0.51


def test_palette_counts_as_colour():
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([0, 0, 0, 10, 200, 30])
    pixels, colour = decode("x", encoded(palette), None, 3)
    assert colour and pixels[:, 0, 0].tolist() == [10, 200, 30]


@pytest.mark.parametrize(
    ("mode", "value", "expected"), [("RGBA", (0, 100, 200, 0), 255), ("RGBA", (7, 7, 7, 255), 7), ("LA", (9, 0), 255), ("LA", (9, 255), 9)]
)
def test_transparent_pixels_lie_over_white(mode: str, value: tuple[int, ...], expected: int):
    pixels, colour = decode("x", encoded(Image.new(mode, (2, 2), value)), None, 3)
    assert (pixels == expected).all() and colour == (mode == "RGBA")


def test_half_transparent_is_blended():
    pixels, _ = decode("x", encoded(Image.new("RGBA", (1, 1), (0, 0, 0, 128))), None, 3)
    assert pixels[0, 0, 0] in (127, 128)


def test_transparent_palette_entry_lies_over_white():
    image = Image.new("P", (1, 1), 0)
    image.putpalette([10, 20, 30])
    assert (decode("x", encoded(image, transparency=0), None, 3)[0] == 255).all()


def test_one_bit_and_sixteen_bit_grey():
    assert (decode("x", encoded(Image.new("1", (2, 2), 1)), None, 1)[0] == 255).all()
    deep = Image.fromarray(np.array([[0, 257, 65535, 128 * 257]], np.uint16))
    pixels, colour = decode("x", encoded(deep), None, 1)
    assert not colour and pixels[0, 0].tolist() == [0, 1, 255, 128]


def test_cmyk_is_converted():
    pixels, colour = decode("x", encoded(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "JPEG"), None, 3)
    assert colour and (pixels >= 254).all()


def test_floating_point_pixels_are_refused():
    with pytest.raises(DataError, match=r"shot\.tif.*pixel mode is F"):
        decode("shot.tif", encoded(Image.new("F", (2, 2), 0.5), "TIFF"), None, 3)


def test_orientation_tag_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held so that the picture must turn clockwise
    data = encoded(Image.fromarray(COLOUR), "PNG", exif=exif)
    assert np.array_equal(decode("x", data, None, 3)[0], np.rot90(COLOUR, -1).transpose(2, 0, 1))


@pytest.mark.parametrize("damage", [lambda d: d[: len(d) // 2], lambda d: b"", lambda d: b"not an image"])
@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_damaged_pictures_are_named(damage, form: str):
    data = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)), form)
    with pytest.raises(DataError, match="row 7: cannot be decoded"):
        decode("row 7", damage(data), None, 3)


def test_wide_picture_loses_its_sides_then_shrinks():
    wide = np.zeros((8, 16, 3), np.uint8)
    wide[:, 4:12] = COLOUR
    assert np.array_equal(decode("x", wide, 8, 3)[0], COLOUR.transpose(2, 0, 1))
    small = decode("x", wide, 4, 3)[0]
    expected = np.asarray(Image.fromarray(COLOUR).resize((4, 4), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert np.array_equal(small, expected)


def test_shrinking_averages_instead_of_skipping():
    stripes = np.zeros((32, 32), np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(decode("x", stripes, 8, 1)[0].astype(int) - 128)[:, 1:-1, 1:-1].max() < 8


def test_altered_png_fails_its_checksum():
    data = encoded(Image.fromarray(COLOUR))
    with pytest.raises(DataError, match="row 7: cannot be decoded"):
        decode("row 7", data[:60] + bytes([data[60] ^ 255]) + data[61:], None, 3)
