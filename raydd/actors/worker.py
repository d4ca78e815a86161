"""The worker actor: one method, built in its own process, asked for scores and updates."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch

from raydd.actors.placement import about_this_process
from raydd.devices import resolve
from raydd.methods.base import Method
from raydd.types import Candidate, SyntheticSet

Factory = Callable[[], Method]


@dataclass(frozen=True)
class Parcel:
    """A synthetic set and the draws of its step, as they travel: float32 and int64 numpy arrays, and whatever the draws are.

    `key` tells parcels of one executor apart, so that a worker unpacks each once.
    """

    key: int
    images: np.ndarray
    labels: np.ndarray
    step_size: np.ndarray
    stages: np.ndarray
    draws: Any

    @staticmethod
    def pack(key: int, synthetic: SyntheticSet, draws: Any) -> "Parcel":
        """No copy is made for a set on the CPU; putting the parcel into Ray's store makes it."""
        parts = (synthetic.images, synthetic.labels, synthetic.step_size, synthetic.stages)
        return Parcel(key, *(part.detach().cpu().numpy() for part in parts), draws)

    def unpack(self, device: torch.device) -> SyntheticSet:
        """Tensors that belong to the caller alone. The arrays lie in memory shared with other processes: nobody may write there."""
        return SyntheticSet(*(_own(part, device) for part in (self.images, self.labels, self.step_size, self.stages)))


def _own(array: np.ndarray, device: torch.device) -> torch.Tensor:
    if device.type == "cpu":
        return torch.from_numpy(array.copy())
    with warnings.catch_warnings():
        # torch warns of read-only memory; it is only read here, on its way to the device.
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(array).to(device)


@ray.remote
class Worker:
    """Holds the method; everything that it answers is a pure function of what it is asked."""

    def __init__(self, index: int, factory: Factory, threads: int, device: str):
        torch.set_num_threads(max(1, threads))
        self._index, self._factory, self._device_name = index, factory, device
        self._method: Method | None = None
        self._device = torch.device("cpu")
        self._key, self._synthetic = -1, None

    def __repr__(self) -> str:
        return f"raydd-worker-{self._index}"

    def ready(self) -> dict[str, Any]:
        """Build the method. Not done in `__init__`, where Ray would turn an exception into the death of the actor."""
        self._device = resolve(self._device_name)
        self._method = self._factory()
        return about_this_process()

    def score(self, parcel: Parcel, candidate: Candidate) -> tuple[float, float]:
        """(loss, seconds) of a candidate on the parcel's set."""
        score = self._method.score(self._unpacked(parcel), candidate, parcel.draws)
        return score.loss, score.seconds

    def update(self, parcel: Parcel, candidate: Candidate) -> tuple[float, np.ndarray, np.ndarray, float]:
        """(loss, gradient of the images, gradient of the step size, seconds) of a candidate on the parcel's set."""
        update = self._method.update(self._unpacked(parcel), candidate, parcel.draws)
        images, step_size = (gradient.detach().cpu().numpy() for gradient in (update.grad_images, update.grad_step_size))
        return update.loss, images, step_size, update.seconds

    def _unpacked(self, parcel: Parcel) -> SyntheticSet:
        if parcel.key != self._key:
            self._synthetic = None
            self._key, self._synthetic = parcel.key, parcel.unpack(self._device)
        return self._synthetic
