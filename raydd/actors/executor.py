"""The executor whose methods live on Ray workers."""

import time
import weakref
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup

from raydd.actors.options import WorkerOptions
from raydd.actors.pool import WorkerPool
from raydd.actors.worker import Factory, Parcel
from raydd.types import Candidate, Score, SyntheticSet, Update


class RayExecutor:
    """Scores candidates on `workers` actors in parallel and has the chosen one differentiated by the one that scored it.

    The set and the draws are put into Ray's store once for a step. Answers are those of `raydd.executor.InlineExecutor`, bit
    for bit on one kind of device, whatever died on the way: a lost answer is computed again for the same candidate.
    """

    def __init__(self, factory: Factory, workers: int, options: WorkerOptions, placement_group: PlacementGroup | None = None):
        self._pool = WorkerPool(factory, workers, placement_group, options)
        self._workers, self._parcels = workers, 0
        self._sent: tuple[weakref.ref[SyntheticSet], Any, tuple[object, ...]] | None = None
        self._reference: Any = None
        self._scored_by: dict[Candidate, int] = {}
        self.transfer_seconds = 0.0
        """Of the last call: its wall time less the longest time that one worker computed."""

    def score(self, synthetic: SyntheticSet, candidates: list[Candidate], draws: Any) -> list[Score]:
        """The matching loss of every candidate, in their order. Raises what the method raises, and `WorkerError`."""
        started = time.perf_counter()
        values, workers = self._pool.score(self._send(synthetic, draws), candidates)
        self._scored_by = dict(zip(candidates, workers, strict=True))
        busy = [sum(value[1] for value, by in zip(values, workers, strict=True) if by == worker) for worker in set(workers)]
        self.transfer_seconds = time.perf_counter() - started - max(busy, default=0.0)
        return [Score(loss, seconds) for loss, seconds in values]

    def update(self, synthetic: SyntheticSet, candidate: Candidate, draws: Any) -> Update:
        """The exact gradient of that loss for one candidate, on the CPU. Raises what the method raises, and `WorkerError`."""
        started = time.perf_counter()
        worker = self._scored_by.get(candidate, candidate.expert % self._workers)
        loss, images, step_size, seconds = self._pool.update(self._send(synthetic, draws), candidate, worker)
        update = Update(loss, images.join(), step_size.join(), seconds)
        self.transfer_seconds = time.perf_counter() - started - seconds
        return update

    def drain_events(self) -> list[tuple[str, str]]:
        """Faults that were mended since the last time: (kind, text)."""
        return self._pool.drain_events()

    @property
    def pids(self) -> list[int | None]:
        """The process of every worker; None while it is being replaced."""
        return self._pool.pids

    def close(self) -> None:
        """End the workers and free the memory."""
        self._pool.close()
        self._sent = self._reference = None

    def _send(self, synthetic: SyntheticSet, draws: Any) -> Any:
        """A reference to the set and the draws; the one of the last call if both are what they were then."""
        versions = _versions(synthetic)
        if self._sent is None or self._sent[0]() is not synthetic or self._sent[1] is not draws or self._sent[2] != versions:
            self._parcels += 1
            self._reference = ray.put(Parcel.pack(self._parcels, synthetic, draws))
            # A weak reference: an old set must not be kept in memory for the sake of this comparison.
            self._sent = (weakref.ref(synthetic), draws, versions)
        return self._reference


def _versions(synthetic: SyntheticSet) -> tuple[object, ...]:
    """Changes with every write to a tensor, so that a set changed in place is not taken for the one that was sent.

    Tensors of inference mode count no writes; they are always sent anew.
    """
    parts = (synthetic.images, synthetic.labels, synthetic.step_size, synthetic.stages)
    return tuple(object() if part.is_inference() else part._version for part in parts)
