"""Expert snapshots on a method's device: views of the memory map on a CPU, kept copies on a GPU while they fit."""

import torch

from raydd.experts.store import Store


class Snapshots:
    """`theta(expert, epoch)` as float32 (P,) on one device; the `Trajectories` of `raydd.methods.base`.

    On a CPU each is a view of the file, which must never be written to. On a GPU each is copied on first use and kept until
    `budget` bytes are taken, then copied at every use. `dtype` float64 is for tests of exactness.
    """

    def __init__(self, store: Store, device: torch.device | str, dtype: torch.dtype = torch.float32, budget: int | None = None):
        """`budget` defaults to half of the device memory that is free now."""
        self._store, self._device, self._dtype = store, torch.device(device), dtype
        if budget is None:
            budget = torch.cuda.mem_get_info(self._device)[0] // 2 if self._device.type == "cuda" else 0
        self._left, self._kept = budget, dict[tuple[int, int], torch.Tensor]()

    def theta(self, expert: int, epoch: int) -> torch.Tensor:
        """One snapshot. Raises `StoreError` when the store does not have it."""
        place = (expert, epoch)
        if place not in self._kept:
            theta = self._store.tensor(expert, epoch).to(self._device, self._dtype)
            size = theta.numel() * theta.element_size()
            if size > self._left:
                return theta
            self._left -= size
            self._kept[place] = theta
        return self._kept[place]
