"""Independent jobs on actors: many at once (experts, evaluations after a run), or one after another beside the loop."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import ray
import torch
from ray.util.placement_group import PlacementGroup

from raydd.actors.crew import Call, Crew
from raydd.actors.options import WorkerOptions
from raydd.actors.placement import about_this_process, actor_options
from raydd.errors import WorkerError

MakeWorker = Callable[[], Callable[[Any], Any]]


@ray.remote
class JobWorker:
    """Calls `make_worker` once and then the result for every job."""

    def __init__(self, index: int, make_worker: bytes, threads: int):
        torch.set_num_threads(max(1, threads))
        self._index, self._make_worker = index, make_worker
        self._work: Callable[[Any], Any] | None = None

    def __repr__(self) -> str:
        return f"raydd-job-worker-{self._index}"

    def ready(self) -> dict[str, Any]:
        """In `__init__` Ray would turn an exception into the death of the actor."""
        self._work = ray.cloudpickle.loads(self._make_worker)()
        return about_this_process()

    def call(self, job: Any) -> Any:
        return self._work(job)


def run_jobs(
    make_worker: MakeWorker,
    jobs: Sequence[Any],
    on_result: Callable[[int, Any], None],
    workers: int,
    options: WorkerOptions,
    placement_group: PlacementGroup | None = None,
    first_bundle: int = 1,
    on_events: Callable[[list[tuple[str, str]]], None] = lambda events: None,
    on_wait: Callable[[], None] = lambda: None,
) -> None:
    """Have every job done by one of `workers` actors; `on_result(index of the job, result)` is called here as each finishes.

    `make_worker()` is called once in each actor. Jobs are handed out one by one and must be pure or idempotent: one whose
    worker died is done again elsewhere. Arrays in a result are read-only. With a placement group, actor k lives in bundle
    `first_bundle + k`. Faults go to `on_events` as (kind, text). `on_wait()` is called twice a second; what it raises ends the
    jobs. Raises what a job or `make_worker` raises, and `WorkerError`
    when the workers keep dying.
    """
    if not jobs:
        return
    packed = ray.cloudpickle.dumps(make_worker)

    def spawn(index: int) -> Any:
        placed = actor_options(options.threads, options.gpus, placement_group, first_bundle + index)
        return JobWorker.options(**placed).remote(index, packed, options.threads)

    crew = Crew(spawn, min(workers, len(jobs)), options)
    try:
        crew.add([Call(index, _doing(job)) for index, job in enumerate(jobs)])
        while crew.busy:
            for answer in crew.poll(0.5):
                on_result(answer.key, answer.value)
            on_events(crew.drain_events())
            on_wait()
    finally:
        on_events(crew.drain_events())
        crew.close()


class Background:
    """One actor for jobs that run beside the loop, in the order of their submission; it is started by the first of them.

    A job whose actor died is done again. The actor asks for no CPU, so that it fits beside the driver in its bundle.
    """

    def __init__(self, make_worker: MakeWorker, options: WorkerOptions, placement_group: PlacementGroup | None = None, bundle: int = 0):
        packed = ray.cloudpickle.dumps(make_worker)

        def spawn(index: int) -> Any:
            placed = actor_options(0, options.gpus, placement_group, bundle)
            return JobWorker.options(**placed).remote(index, packed, options.threads)

        self._make_crew = lambda: Crew(spawn, 1, options)
        self._crew: Crew | None = None
        self._done: list[tuple[Any, Any]] = []
        self._under_way: list[Any] = []

    def submit(self, tag: Any, job: Any) -> None:
        """Have a job done; its result comes from `poll` or `drain` under `tag`."""
        self._crew = self._crew or self._make_crew()
        self._under_way.append(tag)
        self._crew.add([Call(tag, _doing(job))])
        self._collect(0.0)

    def poll(self) -> list[tuple[Any, Any]]:
        """(tag, result) of what has finished since the last time; never waits. Raises what a job raised, and `WorkerError`."""
        self._collect(0.0)
        done, self._done = self._done, []
        return done

    def drain(self, timeout: float | None = None) -> list[tuple[Any, Any]]:
        """Wait for all jobs and return (tag, result) of what was not returned before.

        Raises `WorkerError` naming the unfinished tags after `timeout` seconds; what has finished can still be polled.
        """
        end = None if timeout is None else time.monotonic() + timeout
        while self._under_way:
            self._collect(0.2)
            if self._under_way and end is not None and time.monotonic() > end:
                unfinished = ", ".join(map(str, self._under_way))
                raise WorkerError(f"Background jobs did not finish within {timeout:g} s: {unfinished}. Allow more time or fewer epochs.")
        return self.poll()

    def drain_events(self) -> list[tuple[str, str]]:
        """Faults that were mended since the last time: (kind, text)."""
        return self._crew.drain_events() if self._crew else []

    def close(self) -> None:
        """End the actor; unfinished jobs are forgotten."""
        if self._crew:
            self._crew.close()
        self._under_way.clear()

    def _collect(self, timeout: float) -> None:
        if self._crew is None:
            return
        for answer in self._crew.poll(timeout):
            self._under_way.remove(answer.key)
            self._done.append((answer.key, answer.value))


def _doing(job: Any) -> Callable[[Any], Any]:
    return lambda actor: actor.call.remote(job)
