"""Stored images and the images that networks train on: several of these in one stored image, in pixels or in training space.

Source: specs/idc_dream_pdd.md section 1.1 (IDC's multi-formation). A stored image is cut into factor x factor crops, and each crop is
enlarged to the full side. Enlarging is a product with a fixed matrix on both sides: differentiable, in any float dtype, and with a
backward pass that adds in a fixed order on every device, which torch's own interpolation does not on CUDA.
"""

from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from raydd.data.transform import Transform
from raydd.errors import ConfigError

PADDING = 0.5
"""What a side that `factor` does not divide is filled up with, at the bottom and at the right: grey, in pixels."""


@dataclass(frozen=True)
class Decoding:
    """How stored images become training images.

    space   what stored values are: training space, or pixels (0..1, not clamped) that are still to be normalised
    factor  f, crops along each side; 1 takes stored images as they are
    kind    single: each image gives f^2. multi: it gives those of every factor from 1 to f. bound: a class gives at most `bound`, see
            `bounded`
    bound   images of a class at most, where `kind` is bound
    """

    space: Literal["training", "pixels"] = "training"
    factor: int = 1
    kind: Literal["single", "multi", "bound"] = "single"
    bound: int = 128

    def check(self, side: int) -> None:
        """Raise `ConfigError` unless images of `side` pixels can be decoded so."""
        if not 1 <= self.factor <= side:
            raise ConfigError([f"--idc.factor={self.factor} does not fit images of {side} pixels a side; it must be from 1 to {side}."])
        if self.kind == "bound" and self.bound < 1:
            raise ConfigError([f"--idc.batch_syn_max={self.bound} must be at least 1."])


def decode(images: Tensor, decoding: Decoding) -> Tensor:
    """Stored images (..., n, ch, H, W) decoded: (..., m, ch, H, W) with m = `count(decoding, n)`, in the space of the stored ones.

    Leading dimensions are apart, so that the classes of (C, ipc, ch, H, W) go through together. The order is that of `sources`.
    Raises `ConfigError` where the factor does not fit the side.
    """
    decoding.check(images.shape[-1])
    runs = _runs(decoding, images.shape[-4])
    if len(runs) == 1:
        return uniform(images, runs[0][2])
    return torch.cat([uniform(images[..., first:stop, :, :, :], factor) for first, stop, factor in runs], dim=-4)


def sources(decoding: Decoding, n: int) -> Tensor:
    """Which of the n stored images each decoded one comes from: int64 (m,). Labels go the same way: `labels[sources]`."""
    return torch.cat([torch.arange(first, stop).repeat(factor**2) for first, stop, factor in _runs(decoding, n)])


def count(decoding: Decoding, n: int) -> int:
    """How many images n stored ones (of one class, where `kind` is bound) are decoded to."""
    return sum((stop - first) * factor**2 for first, stop, factor in _runs(decoding, n))


def uniform(images: Tensor, factor: int) -> Tensor:
    """Every crop of the images (..., n, ch, H, W), enlarged bilinearly: (..., n f^2, ch, H, W).

    Crop by crop, row by row: the crops (0, 0) of all images, then all (0, 1) and so on. A crop has ceil(H / f) pixels a side.
    """
    if factor == 1:
        return images
    side = images.shape[-1]
    crop = -(-side // factor)
    lead, (n, channels), missing = images.shape[:-4], images.shape[-4:-2], factor * crop - side
    if missing:
        images = F.pad(images, (0, missing, 0, missing), value=PADDING)
    crops = images.reshape(-1, n, channels, factor, crop, factor, crop).permute(0, 3, 5, 1, 2, 4, 6)
    matrix = _enlarging(crop, side).to(images)
    return (matrix @ crops @ matrix.T).reshape(*lead, factor**2 * n, channels, side, side)


def training_images(images: Tensor, labels: Tensor, decoding: Decoding, transform: Transform) -> tuple[Tensor, Tensor]:
    """What networks are trained on: images (N, ch, H, W) and labels (N,) decoded, and normalised where pixels are stored.

    Pixels are not clamped, as in the reference. A bound, which limits a matching step alone, does not apply: every crop is used.
    """
    whole = replace(decoding, kind="single") if decoding.kind == "bound" else decoding
    decoded, targets = decode(images, whole), labels[sources(whole, len(images)).to(labels.device)]
    return transform.forward(decoded) if decoding.space == "pixels" else decoded, targets


def stored_pixels(images: Tensor, decoding: Decoding, transform: Transform) -> Tensor:
    """Stored images (n, ch, H, W) as pixels, not clamped, for pictures: one for one, crops side by side as they are stored."""
    return images if decoding.space == "pixels" else transform.inverse(images)


def _runs(decoding: Decoding, n: int) -> list[tuple[int, int, int]]:
    """Runs of stored images (first, stop, exclusive) and the factor by which they are decoded, in order."""
    if decoding.kind == "single":
        return [(0, n, decoding.factor)]
    if decoding.kind == "multi":
        return [(0, n, factor) for factor in range(1, decoding.factor + 1)]
    return bounded(n, decoding.factor, decoding.bound)


def bounded(n: int, factor: int, bound: int) -> list[tuple[int, int, int]]:
    """Decoding of n images of a class to at most `bound`: as many as possible by the greatest factor, and so on down to 1.

    One place is kept for every image that is still to come, so that each is used. A class of more than `bound` images is used as it
    is, by factor 1.
    """
    runs, first, spare = [], 0, bound - n
    for now in range(factor, 0, -1):
        stop = n if now == 1 else min(n, first + max(0, spare) // now**2)
        if stop > first:
            runs.append((first, stop, now))
        spare -= (stop - first) * (now**2 - 1)
        first = stop
    return runs


@cache
def _enlarging(crop: int, side: int) -> Tensor:
    """The matrix (side, crop), float64, of bilinear enlargement with pixels as areas (align_corners=False): rows sum to 1."""
    place = ((torch.arange(side, dtype=torch.float64) + 0.5) * crop / side - 0.5).clamp(0, crop - 1)
    distance = (place[:, None] - torch.arange(crop, dtype=torch.float64)).abs()
    return (1 - distance).clamp(min=0)
