"""The synthetic images of a report: class by class, start beside end, limited to what a page can hold."""

import base64
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from raydd import pictures
from raydd.artifact import Artifact

CLASSES = 100
"""Classes shown at most."""
PER_CLASS = 10
"""Images of a class shown at most."""
PIXELS = 600_000
"""Pixels of all images shown at most: keeps the page below about 5 MB."""
_SIDE, _WIDTH = 96, 1020
"""Wanted side of an image and greatest width of a row, in CSS pixels; the enlargement is a whole number."""


@dataclass(frozen=True)
class Row:
    """One class: its name, and its first images at the start and at the end, as strips (data URIs) of the same size in CSS pixels."""

    name: str
    before: str
    after: str
    width: int
    height: int


@dataclass(frozen=True)
class Gallery:
    """Pages of rows and what is left out: images of a class shown and there are, classes shown and there are, share of clipped values.

    `held` is how many training images a stored one holds side by side.
    """

    pages: list[list[Row]]
    shown: int
    per_class: int
    classes_shown: int
    classes: int
    clipped: float
    held: int


def gallery(artifact: Artifact) -> Gallery:
    """The gallery of a result file."""
    images = artifact.synthetic.images
    before, after = by_class(artifact, artifact.initial_images), by_class(artifact, images)
    shown, side = max(map(len, after)), images.shape[-1]
    scale = max(1, min(round(_SIDE / side), _WIDTH // (shown * (side + 1))))
    page = 24 if shown <= 2 else 10
    rows = [_row(name, *strips, scale) for name, *strips in zip(artifact.classes, before, after)]
    per_class = int(np.bincount(artifact.synthetic.labels.numpy(), minlength=1).max())
    return Gallery(
        pages=[rows[start : start + page] for start in range(0, len(rows), page)],
        shown=shown,
        per_class=per_class,
        classes_shown=len(rows),
        classes=len(artifact.classes),
        clipped=pictures.clipped_share(artifact.pixels(images)),
        held=artifact.decode.factor**2,
    )


def by_class(artifact: Artifact, images: Tensor) -> list[np.ndarray]:
    """The first images of each of the first classes as uint8 pixels, a list of (n, C, H, W) in order of labels.

    Of several stages, the first images of each, as many of every stage.
    """
    labels, count = artifact.synthetic.labels, len(artifact.stage_step_sizes)
    classes = min(CLASSES, len(artifact.classes))
    limit = min(PER_CLASS, max(1, PIXELS // (classes * images.shape[2] * images.shape[3])))
    chosen = [_spread((labels == label).nonzero().flatten(), limit, count) for label in range(classes)]
    return [pictures.pixels(artifact.pixels(images[places])) for places in chosen]


def _spread(places: Tensor, limit: int, stages: int) -> Tensor:
    """At most `limit` places of a class, whose images are in the order of their stages: the first of each stage."""
    if stages == 1 or len(places) <= limit:
        return places[:limit]
    return places.unflatten(0, (stages, -1))[:, : max(1, limit // stages)].flatten()[:limit]


def data_uri(png: bytes) -> str:
    """A PNG file as a URI that holds all of it."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _row(name: str, before: np.ndarray, after: np.ndarray, scale: int) -> Row:
    if not len(after):
        return Row(name, "", "", 0, 0)
    # The page enlarges: the strips keep one pixel for a pixel, which keeps the report small.
    strips = [pictures.grid([images]) for images in (before, after)]
    height, width = strips[0].shape[1:]
    return Row(name, *(data_uri(pictures.png(strip)) for strip in strips), width * scale, height * scale)
