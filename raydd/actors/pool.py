"""The pool of workers that scores candidates and differentiates the chosen one."""

from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup

from raydd.actors.crew import Answer, Call, Crew
from raydd.actors.options import WorkerOptions
from raydd.actors.placement import actor_options
from raydd.actors.worker import Factory, Worker
from raydd.types import Candidate


def assign(candidates: list[Candidate], workers: int) -> list[int]:
    """The worker of each candidate: at most ceil(M / K) for each, its expert's owner (expert % K) where there is room.

    The owner has that expert resident. Nothing that a candidate returns depends on this.
    """
    most = -(-len(candidates) // workers)
    load, chosen = [0] * workers, []
    for candidate in candidates:
        owner = candidate.expert % workers
        worker = owner if load[owner] < most else min(range(workers), key=lambda index: load[index])
        load[worker] += 1
        chosen.append(worker)
    return chosen


class WorkerPool:
    """`workers` actors with one method each, built by `factory` in their processes.

    With a placement group, worker k lives in bundle k + 1; bundle 0 is the driver's. Waits until the workers are ready. Raises
    what the factory or the method raises, and `WorkerError` when the workers keep dying.
    """

    def __init__(self, factory: Factory, workers: int, placement_group: PlacementGroup | None, options: WorkerOptions):
        packed = ray.cloudpickle.dumps(factory)

        def spawn(index: int) -> Any:
            placed = actor_options(options.threads, options.gpus, placement_group, index + 1)
            return Worker.options(**placed).remote(index, packed, options.threads, options.device)

        self._crew = Crew(spawn, workers, options, depth=2)
        try:
            self._crew.wait_ready()
        except BaseException:
            self._crew.close()
            raise

    def ask(self, method: str, arguments: Sequence[tuple[Any, ...]], prefers: Sequence[int | None]) -> list[Answer]:
        """Call a method of the workers once for each tuple of arguments, beside one another; the answers in that order."""
        return self.ask_each([(method, each) for each in arguments], prefers)

    def ask_each(self, requests: Sequence[tuple[str, tuple[Any, ...]]], prefers: Sequence[int | None]) -> list[Answer]:
        """The same for requests (method, arguments) of several kinds."""
        calls = [
            Call(place, _asking(method, arguments), worker)
            for place, ((method, arguments), worker) in enumerate(zip(requests, prefers, strict=True))
        ]
        return sorted(self._crew.run(calls), key=lambda answer: answer.key)

    @property
    def pids(self) -> list[int | None]:
        """The process of every worker; None while it is being replaced."""
        return [slot.about.get("pid") for slot in self._crew.slots]

    def drain_events(self) -> list[tuple[str, str]]:
        """Faults mended since the last time: (kind, text)."""
        return self._crew.drain_events()

    def close(self) -> None:
        """End the workers."""
        self._crew.close()


def _asking(method: str, arguments: tuple[Any, ...]) -> Callable[[Any], Any]:
    return lambda actor: getattr(actor, method).remote(*arguments)
