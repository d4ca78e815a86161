"""Arrays cut for the journey between processes.

Ray copies a buffer of 1 MiB or more into its store with six threads. Where the cores are busy, and here they always are, those
wait for each other: 3 MB take three times as long as in smaller pieces (`benchmarks/ray_overhead.py`).
"""

import warnings
from dataclasses import dataclass

import numpy as np
import torch

PIECE_BYTES = 2**20 - 2**10


@dataclass(frozen=True)
class Pieces:
    """An array of this shape, cut into views below 1 MiB. They may lie in memory shared with other processes: never write there."""

    shape: tuple[int, ...]
    pieces: list[np.ndarray]

    @classmethod
    def cut(cls, tensor: torch.Tensor) -> "Pieces":
        """No copy is made of a contiguous tensor on the CPU."""
        flat = tensor.detach().cpu().contiguous().numpy().reshape(-1)
        length = max(1, PIECE_BYTES // flat.itemsize)
        return cls(tuple(tensor.shape), [flat[start : start + length] for start in range(0, max(1, flat.size), length)])

    def join(self, device: torch.device | str = "cpu") -> torch.Tensor:
        """A new tensor on `device` that belongs to the caller alone."""
        whole = torch.empty(self.shape, dtype=_dtype(self.pieces[0]), device=device)
        flat, start = whole.view(-1), 0
        with warnings.catch_warnings():
            # torch warns of read-only memory; it is only read here.
            warnings.simplefilter("ignore", UserWarning)
            for piece in self.pieces:
                flat[start : start + piece.size].copy_(torch.from_numpy(piece))
                start += piece.size
        return whole


def _dtype(array: np.ndarray) -> torch.dtype:
    return torch.from_numpy(np.empty(0, array.dtype)).dtype
