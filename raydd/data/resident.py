"""A split on one device, ready for batches."""

import warnings
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from raydd.data.transform import Transform
from raydd.data.types import ImageSet
from raydd.errors import DataError

FLOAT_BUDGET = 2 << 30  # bytes up to which `auto` keeps float32: CIFAR takes 0.6 GB, Tiny-ImageNet 4.9 GB
_CHUNK = 1024


@dataclass(frozen=True)
class Resident:
    """Images and labels of one split on one device.

    stored     float32 (n, C, H, W) in training space, or uint8 (n, C, H, W) pixels, which each batch transforms
    labels     int64 (n,)
    transform  how pixels become training space
    """

    stored: Tensor
    labels: Tensor
    transform: Transform

    @classmethod
    def load(
        cls,
        image_set: ImageSet,
        transform: Transform,
        device: torch.device | str = "cpu",
        storage: Literal["auto", "float", "uint8"] = "auto",
        budget: int = FLOAT_BUDGET,
    ) -> "Resident":
        """Move a split to a device once.

        float   transformed once; 4 bytes per value
        uint8   transformed per batch, with the same bits; 1 byte per value, and on the CPU no copy of the memory map
        auto    float where it fits `budget` bytes, and always for ZCA, whose product is too dear to repeat

        Raises `DataError` for uint8 with ZCA.
        """
        transform = transform.to(device)
        if storage == "auto":
            storage = "float" if transform.rule == "zca" or 4 * image_set.images.size <= budget else "uint8"
        if storage == "uint8" and transform.rule == "zca":
            raise DataError("storage 'uint8' does not go with ZCA whitening; use 'float' or 'auto'.")
        with warnings.catch_warnings():  # a view of the read-only memory map, which nothing here writes to
            warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
            pixels, labels = torch.from_numpy(image_set.images), torch.from_numpy(image_set.labels)
        stored = pixels.to(device) if storage == "uint8" else _transformed(pixels, transform, device)
        return cls(stored, labels.clone().to(device), transform)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def images(self) -> Tensor:
        """All images in training space, float32 (n, C, H, W); a new tensor of that size where uint8 is stored."""
        return self.stored if self.stored.dtype != torch.uint8 else _transformed(self.stored, self.transform, self.stored.device)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Images float32 (b, C, H, W) in training space and labels int64 (b,) of the rows named by int64 indices (b,)."""
        rows = indices.to(self.labels.device)
        images = self.stored[rows]
        return (self.transform.forward(images) if images.dtype == torch.uint8 else images), self.labels[rows]


def _transformed(pixels: Tensor, transform: Transform, device: torch.device | str) -> Tensor:
    """Training space, chunk by chunk, so that no second copy of the set exists."""
    images = torch.empty(pixels.shape, dtype=torch.float32, device=device)
    for start in range(0, len(pixels), _CHUNK):
        images[start : start + _CHUNK] = transform.forward(pixels[start : start + _CHUNK].to(device))
    return images


def class_indices(labels: Tensor, label: int) -> Tensor:
    """Rows of one class in ascending order, int64 (k,)."""
    return torch.nonzero(labels == label).squeeze(1)
