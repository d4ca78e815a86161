"""The executor whose methods live on Ray workers."""

import time
import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ray
import torch
from ray.util.placement_group import PlacementGroup

from raydd.actors.ahead import Ahead
from raydd.actors.crew import Answer
from raydd.actors.faults import storing
from raydd.actors.options import WorkerOptions
from raydd.actors.packing import pack, unpack
from raydd.actors.pool import WorkerPool, assign
from raydd.actors.worker import Factory, Parcel
from raydd.types import Candidate, Network, Score, SyntheticSet, Update

# What is sent where only the draws matter.
_NOTHING = SyntheticSet(torch.empty(0), torch.empty(0), torch.empty(0), torch.empty(0))


class RayExecutor:
    """Scores candidates on `workers` actors in parallel and has the chosen one differentiated by the one that scored it.

    The set and the draws are put into Ray's store once for a step. Answers are those of `raydd.executor.InlineExecutor`, bit
    for bit on one kind of device, whatever died on the way: a lost answer is computed again for the same candidate.
    """

    def __init__(
        self,
        factory: Factory,
        workers: int,
        options: WorkerOptions,
        placement_group: PlacementGroup | None = None,
        independent: bool = False,
    ):
        """`independent`: networks train without a look at the set, so that one trains while another worker updates."""
        self._pool = WorkerPool(factory, workers, placement_group, options)
        self._workers, self._parcels = workers, 0
        self._sent: tuple[weakref.ref[SyntheticSet], Any, tuple[object, ...]] | None = None
        self._reference: Any = None
        self._scored_by: dict[Candidate, int] = {}
        self._looks_ahead = independent and workers > 1
        self._ahead: Ahead | None = None
        self._next: Ahead | None = None
        self.transfer_seconds = 0.0
        """Of the last call: its wall time less the longest time that one worker computed."""

    def score(self, synthetic: SyntheticSet, candidates: list[Candidate], draws: Any) -> list[Score]:
        """The matching loss of every candidate, in their order. Raises what the method raises, and `WorkerError`."""
        started = time.perf_counter()
        parcel = self._send(synthetic, draws)
        answers = self._pool.ask("score", [(parcel, pack(candidate)) for candidate in candidates], assign(candidates, self._workers))
        self._scored_by = {candidate: answer.worker for candidate, answer in zip(candidates, answers, strict=True)}
        self._note_transfer(started, answers, [answer.value[1] for answer in answers])
        return [Score(*answer.value) for answer in answers]

    def update(self, synthetic: SyntheticSet, candidate: Candidate, draws: Any) -> Update:
        """The exact gradient of that loss for one candidate, on the CPU. Raises what the method raises, and `WorkerError`."""
        started = time.perf_counter()
        worker = self._scored_by.get(candidate, candidate.expert % self._workers)
        beside: list[tuple[str, Candidate, Any]] = []
        if self._looks_ahead:
            if self._ahead is None or not self._ahead.fits(candidate.network, draws):
                self._ahead = Ahead(candidate.network, draws)
            beside = self._ahead.requests(candidate, targets=self._workers > 2)
            candidate = self._ahead.candidate(candidate)
        requests = [("update", (self._send(synthetic, draws), pack(candidate))), *map(self._asking, beside)]
        answers = self._pool.ask_each(requests, [(worker + place) % self._workers for place in range(len(requests))])
        if self._ahead is not None:
            answers += self._look_ahead(answers[1:], candidate)
        loss, images, step_size, seconds = answers[0].value
        update = Update(loss, images.join(), step_size.join(), seconds)
        self._note_transfer(started, answers, [answer.value[-1] for answer in answers])
        return update

    def _look_ahead(self, answers: list[Answer], candidate: Candidate) -> list[Answer]:
        """Note what was done beside an update. With three workers, what starts the chain of the steps to come is done now, with nothing
        beside it: once in a network lifetime. Returns the answers to that.
        """
        self._ahead, self._next = self._ahead.answered([unpack(answer.value[0]) for answer in answers])
        if self._next is not None or self._workers < 3:
            return []
        requests = self._ahead.requests(candidate, targets=True)
        found = self._pool.ask_each(list(map(self._asking, requests)), list(range(len(requests))))
        self._ahead, self._next = self._ahead.answered([unpack(answer.value[0]) for answer in found])
        return found

    def _asking(self, request: tuple[str, Candidate, Any]) -> tuple[str, tuple[Any, ...]]:
        method, candidate, draws = request
        return method, (self._key_parcel(draws), pack(candidate))

    def begin(self, births: list[int]) -> list[Network]:
        """New networks with these numbers. Raises what the method raises, and `WorkerError`."""
        return self._networks("begin", [(born,) for born in births], births)

    def prepare(self, candidates: list[Candidate], draws: Any) -> list[Candidate]:
        """The candidates with their networks prepared for a first update."""
        parcel = self._key_parcel(draws)
        networks = self._networks("prepare", [(parcel, pack(candidate)) for candidate in candidates], range(len(candidates)))
        return [replace(candidate, network=network) for candidate, network in zip(candidates, networks, strict=True)]

    def advance(self, synthetic: SyntheticSet, candidates: list[Candidate], draws: Any) -> list[Network]:
        """The candidates' networks after the training that follows an update."""
        known = self._ahead
        if known is not None and len(candidates) == 1 and known.fits(candidates[0].network, draws):
            self.transfer_seconds, self._ahead = 0.0, self._next
            return [known.following]
        parcel = self._send(synthetic, draws)
        return self._networks("advance", [(parcel, pack(candidate)) for candidate in candidates], range(len(candidates)))

    def _networks(self, method: str, arguments: list[tuple[Any, ...]], places: Sequence[int]) -> list[Network]:
        started = time.perf_counter()
        answers = self._pool.ask(method, arguments, [place % self._workers for place in places])
        self._note_transfer(started, answers, [answer.value[1] for answer in answers])
        return [unpack(answer.value[0]) for answer in answers]

    def _note_transfer(self, started: float, answers: list[Answer], seconds: list[float]) -> None:
        busy = [0.0] * self._workers
        for answer, took in zip(answers, seconds, strict=True):
            busy[answer.worker] += took
        self.transfer_seconds = time.perf_counter() - started - max(busy)

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
            with storing():
                self._reference = ray.put(Parcel.pack(self._parcels, synthetic, draws))
            # A weak reference: an old set must not be kept in memory for the sake of this comparison.
            self._sent = (weakref.ref(synthetic), draws, versions)
        return self._reference

    def _key_parcel(self, draws: Any) -> Parcel:
        """A parcel for what needs the draws alone; small where they are a key."""
        self._parcels += 1
        return Parcel.pack(self._parcels, _NOTHING, draws)


def _versions(synthetic: SyntheticSet) -> tuple[object, ...]:
    """Changes with every write to a tensor, so that a set changed in place is not taken for the one that was sent.

    Tensors of inference mode count no writes; they are always sent anew.
    """
    parts = (synthetic.images, synthetic.labels, synthetic.step_size, synthetic.stages)
    return tuple(object() if part.is_inference() else part._version for part in parts)
