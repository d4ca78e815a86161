"""What the data layer hands around: raw splits as a source lists them, and decoded sets as the rest of raydd uses them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

Picture = bytes | Path | np.ndarray
"""An encoded image, the path of one, or decoded pixels: uint8 (H, W) or (H, W, 3)."""

Progress = Callable[[int, int], None]
"""Called with (images done, images in all) while a set is decoded."""


@dataclass(frozen=True)
class SourceInfo:
    """What is known of a named set before any of it is read, so that a plan needs no data on disk.

    shape                       (C, H, W), after `data.size` and `data.channels`
    classes                     how many
    train_images, test_images   images in each split
    mean, std                   published constants per channel, pixels in [0, 1]; None: computed from the training images
    """

    shape: tuple[int, int, int]
    classes: int
    train_images: int
    test_images: int
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


@dataclass(frozen=True)
class RawSplit:
    """One split before decoding.

    labels    int64 (n,)
    pictures  gives n pairs (where, picture) in the order of `labels`; `where` names file and row in errors
    """

    labels: np.ndarray
    pictures: Callable[[], Iterator[tuple[str, Picture]]]


@dataclass(frozen=True)
class Content:
    """The class names, in the order of the labels, and both splits."""

    classes: tuple[str, ...]
    train: RawSplit
    test: RawSplit


@dataclass(frozen=True)
class Source:
    """What a source function returns. Nothing is decoded yet, and `read` is called only where the cache has no copy.

    name      short name for titles and file names
    read      lists the content; may raise `DataError`
    files     (name within the set, path) of every file whose bytes make the set
    identity  names content that is in no file, for example generated images; change it when they change
    """

    name: str
    read: Callable[[], Content]
    files: tuple[tuple[str, Path], ...] = ()
    identity: str = ""


@dataclass(frozen=True)
class ImageSet:
    """Decoded images: uint8 (n, C, H, W), a read-only memory map or some rows of one; labels int64 (n,), from 0 to classes - 1."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """A whole data set.

    mean, std    per channel, for pixels in [0, 1]
    fingerprint  sha-256 over pixels, labels, class names, mean and std: equal on every machine that decodes equal pixels. Of a part of
                 a set, over the whole set's and what the part is
    """

    name: str
    train: ImageSet
    test: ImageSet
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image; H equals W."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width
