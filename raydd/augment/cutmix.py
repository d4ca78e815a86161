"""CutMix: a rectangle of every image of a batch is pasted over from another image, and the loss counts both labels by area.

Source: specs/idc_dream_pdd.md section 1.5 (misc/utils.py 170-186 and train.py 200-216 of the reference).
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor


@dataclass(frozen=True)
class CutMixDraw:
    """One rectangle for a batch of B images.

    partners  int64 (B,), a permutation: which image each one gets pixels from
    box       first row, first column, last row and last column (both exclusive)
    ratio     share of the pixels that an image keeps, 0..1
    """

    partners: Tensor
    box: tuple[int, int, int, int]
    ratio: float

    def to(self, device: torch.device | str) -> "CutMixDraw":
        """The same draw with its permutation on a device."""
        return CutMixDraw(self.partners.to(device), self.box, self.ratio)


def draw(generator: Generator, count: int, side: int, probability: float) -> CutMixDraw | None:
    """Decide, once for a batch of `count` images of `side` pixels, whether to mix (None: not), and draw how.

    The area of the box before clipping is 1 - lambda, lambda ~ Beta(1, 1), which is uniform; its centre is uniform over the pixels.
    """
    if float(torch.rand((), generator=generator)) >= probability:
        return None
    kept = float(torch.rand((), generator=generator, dtype=torch.float64))
    row, column = torch.randint(side, (2,), generator=generator).tolist()
    return mixing(torch.randperm(count, generator=generator), kept, side, row, column)


def mixing(partners: Tensor, kept: float, side: int, row: int, column: int) -> CutMixDraw:
    """The draw with given numbers: lambda `kept`, centre (row, column)."""
    top, left, bottom, right = bounds = box(kept, side, row, column)
    return CutMixDraw(partners, bounds, 1 - (bottom - top) * (right - left) / side**2)


def box(kept: float, side: int, row: int, column: int) -> tuple[int, int, int, int]:
    """First row, first column, last row, last column (exclusive) of the box around a centre, clipped to the image."""
    half = int(side * math.sqrt(1 - kept)) // 2
    edges = (row - half, column - half, row + half, column + half)
    return tuple(min(max(edge, 0), side) for edge in edges)  # type: ignore[return-value]


def apply(images: Tensor, drawn: CutMixDraw | None) -> Tensor:
    """Images (B, C, H, W) with the box of each one's partner; differentiable, the input is left as it is."""
    if drawn is None:
        return images
    top, left, bottom, right = drawn.box
    mixed = images.clone()
    mixed[..., top:bottom, left:right] = images[..., top:bottom, left:right][drawn.partners]
    return mixed


def cross_entropy(logits: Tensor, labels: Tensor, drawn: CutMixDraw | None) -> Tensor:
    """Mean cross-entropy of logits (B, classes) of mixed images: by `ratio` for the own labels (B,), by the rest for the partners'."""
    own = F.cross_entropy(logits, labels)
    if drawn is None:
        return own
    return drawn.ratio * own + (1 - drawn.ratio) * F.cross_entropy(logits, labels[drawn.partners])


def chances(labels: Tensor, classes: int, drawn: CutMixDraw | None) -> Tensor:
    """Labels (B,) as they are, or of mixed images the chances (B, classes) whose cross-entropy is that of `cross_entropy`."""
    if drawn is None:
        return labels
    own = F.one_hot(labels, classes).to(torch.get_default_dtype())
    return drawn.ratio * own + (1 - drawn.ratio) * own[drawn.partners]
