"""The worker actor: one method, built in its own process, asked for scores, updates and networks."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
import torch

from raydd.actors.packing import pack, unpack
from raydd.actors.pieces import Pieces
from raydd.actors.placement import about_this_process
from raydd.devices import resolve
from raydd.methods.base import Method, NetworkMethod
from raydd.types import Candidate, Network, SyntheticSet

Factory = Callable[[], Method | NetworkMethod]


@dataclass(frozen=True)
class Parcel:
    """A synthetic set and the packed draws of its step, as they travel. `key` tells the parcels of one executor apart, so that a
    worker unpacks each once.
    """

    key: int
    images: Pieces
    labels: Pieces
    step_size: Pieces
    stages: Pieces
    frozen: int
    draws: bytes

    @classmethod
    def pack(cls, key: int, synthetic: SyntheticSet, draws: Any) -> "Parcel":
        """No copy is made of a set on the CPU; putting the parcel into Ray's store makes it."""
        parts = (synthetic.images, synthetic.labels, synthetic.step_size, synthetic.stages)
        return cls(key, *map(Pieces.cut, parts), synthetic.frozen, pack(draws))

    def unpack(self, device: torch.device) -> tuple[SyntheticSet, Any]:
        """Set and draws that belong to the caller alone."""
        parts = (self.images, self.labels, self.step_size, self.stages)
        return SyntheticSet(*(part.join(device) for part in parts), self.frozen), unpack(self.draws)


@ray.remote
class Worker:
    """Holds the method; everything that it answers is a pure function of what it is asked."""

    def __init__(self, index: int, factory: bytes, threads: int, device: str):
        torch.set_num_threads(max(1, threads))
        self._index, self._factory, self._device_name = index, factory, device
        self._method: Method | NetworkMethod | None = None
        self._device = torch.device("cpu")
        self._key = -1
        self._held: tuple[SyntheticSet, Any] | None = None

    def __repr__(self) -> str:
        return f"raydd-worker-{self._index}"

    def ready(self) -> dict[str, Any]:
        """Unpack the factory and build the method. In `__init__` Ray would turn an exception into the death of the actor."""
        self._device = resolve(self._device_name)
        self._method = ray.cloudpickle.loads(self._factory)()
        return about_this_process()

    def score(self, parcel: Parcel, candidate: bytes) -> tuple[float, float, float]:
        """(loss, seconds, size) of a packed candidate on the parcel's set."""
        synthetic, draws = self._unpacked(parcel)
        score = self._method.score(synthetic, self._candidate(candidate), draws)
        return score.loss, score.seconds, score.size

    def update(self, parcel: Parcel, candidate: bytes) -> tuple[float, Pieces, Pieces, float]:
        """(loss, gradient of the images, gradient of the step size, seconds) of a packed candidate on the parcel's set."""
        synthetic, draws = self._unpacked(parcel)
        update = self._method.update(synthetic, self._candidate(candidate), draws)
        return update.loss, Pieces.cut(update.grad_images), Pieces.cut(update.grad_step_size), update.seconds

    def begin(self, born: int) -> tuple[bytes, float]:
        """(a new network, packed; seconds)."""
        return _timed(lambda: self._method.begin(born))

    def prepare(self, parcel: Parcel, candidate: bytes) -> tuple[bytes, float]:
        """(the candidate's network as it is prepared for its first update, packed; seconds)."""
        _, draws = self._unpacked(parcel)
        return _timed(lambda: self._method.prepare(self._candidate(candidate).network, draws))

    def advance(self, parcel: Parcel, candidate: bytes) -> tuple[bytes, float]:
        """(the candidate's network after the training that follows an update, packed; seconds)."""
        synthetic, draws = self._unpacked(parcel)
        return _timed(lambda: self._method.advance(synthetic, self._candidate(candidate).network, draws))

    def target(self, parcel: Parcel, candidate: bytes) -> tuple[bytes, float]:
        """(the candidate's network with the real targets of its step in its memory, packed; seconds)."""
        _, draws = self._unpacked(parcel)
        return _timed(lambda: self._method.target(self._candidate(candidate), draws))

    def _candidate(self, packed: bytes) -> Candidate:
        return unpack(packed).to(self._device)

    def _unpacked(self, parcel: Parcel) -> tuple[SyntheticSet, Any]:
        if parcel.key != self._key:
            self._held = None
            self._key, self._held = parcel.key, parcel.unpack(self._device)
        return self._held


def _timed(work: Callable[[], Network]) -> tuple[bytes, float]:
    started = time.perf_counter()
    network = work().to("cpu")
    return pack(network), time.perf_counter() - started
