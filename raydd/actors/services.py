"""The services of a run on Ray: the executor, jobs in parallel, and a background actor. Inline form: `raydd.services`."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ray.util.placement_group import PlacementGroup

from raydd.actors.executor import RayExecutor
from raydd.actors.jobs import Background, MakeWorker, run_jobs
from raydd.actors.options import WorkerOptions
from raydd.actors.worker import Factory


class RayServices:
    """Actors in the worker bundles of a placement group (or anywhere, without one). See `raydd.services.Services`.

    The executor and `run_jobs` take the same room, so close the one before the other. How long a job may take is not known,
    so `answer_timeout` holds for the executor alone. `events` are faults to tell of from before.
    """

    def __init__(
        self,
        workers: int,
        options: WorkerOptions,
        placement_group: PlacementGroup | None = None,
        events: Sequence[tuple[str, str]] = (),
    ):
        self._workers, self._options, self._placement_group = workers, options, placement_group
        self._patient = replace(options, answer_timeout=math.inf)
        self._events = list(events)
        self._sources: list[RayExecutor | Background] = []

    def executor(self, factory: Factory, independent: bool = False) -> RayExecutor:
        """An executor whose workers are ready; `independent` as `RayExecutor` has it. Raises what the factory raises, and `WorkerError`."""
        executor = RayExecutor(factory, self._workers, self._options, self._placement_group, independent)
        self._sources.append(executor)
        return executor

    def run_jobs(
        self, make_worker: MakeWorker, jobs: Sequence[Any], on_result: Callable[[Any], None], on_wait: Callable[[], None] = lambda: None
    ) -> None:
        """Have every job done; `on_result(result)` is called here as each finishes, and `on_wait()` now and then.

        Raises what a job or `on_wait` raises, and `WorkerError`.
        """
        run_jobs(
            make_worker,
            jobs,
            lambda index, result: on_result(result),
            self._workers,
            self._patient,
            self._placement_group,
            on_events=self._events.extend,
            on_wait=on_wait,
        )

    def background(self, make_worker: MakeWorker) -> Background:
        """An actor beside the driver, or beside the first worker where that has a GPU, which it then shares."""
        bundle = 1 if self._options.gpus else 0
        background = Background(make_worker, replace(self._patient, gpus=0.0), self._placement_group, bundle)
        self._sources.append(background)
        return background

    def drain_events(self) -> list[tuple[str, str]]:
        """Faults that were mended since the last time: (kind, text)."""
        events, self._events = self._events, []
        return events + [event for source in self._sources for event in source.drain_events()]
