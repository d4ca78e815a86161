"""Real training images resident on a device, picked by class."""

from dataclasses import dataclass

import torch
from torch import Tensor

from raydd.data.resident import Resident
from raydd.data.transform import Transform
from raydd.data.types import ImageSet
from raydd.rng import stream


@dataclass(frozen=True)
class RealData:
    """The training split in training space, and the rows of every class (each int64 (n_c,) on the CPU, ascending)."""

    resident: Resident
    rows: tuple[Tensor, ...]

    @classmethod
    def load(cls, train: ImageSet, transform: Transform, classes: int, device: torch.device | str) -> "RealData":
        """Move the split to a device once."""
        labels = torch.tensor(train.labels)
        return cls(Resident.load(train, transform, device), tuple(torch.nonzero(labels == c).squeeze(1) for c in range(classes)))

    def images(self, rows: Tensor) -> Tensor:
        """Images in training space, (*rows.shape, C, H, W), of the rows int64 (...)."""
        found, _ = self.resident.batch(rows.flatten())
        return found.unflatten(0, rows.shape)

    def random_rows(self, count: int, seed: int, step: int, purpose: str, index: int = 0) -> Tensor:
        """`count` different rows of every class, by lot: int64 (classes, count). Every class must have as many."""
        generator = stream(seed, step, purpose, index)
        return torch.stack([rows[torch.randperm(len(rows), generator=generator)[:count]] for rows in self.rows])

    def next_rows(self, count: int, seed: int, batch: int, purpose: str, index: int = 0) -> Tensor:
        """Batch number `batch` of every class, where each goes through its images in shuffled passes: int64 (classes, count).

        No image comes again before the pass is over; what is left of a pass below `count` sits it out.
        """
        chosen = []
        for label, rows in enumerate(self.rows):
            passes, place = divmod(batch, len(rows) // count)
            order = torch.randperm(len(rows), generator=stream(seed, passes, f"{purpose}-{label}", index))
            chosen.append(rows[order[place * count : (place + 1) * count]])
        return torch.stack(chosen)
