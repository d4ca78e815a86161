"""Where work is done: the three services that a run asks for, and their form without Ray."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from raydd.executor import Executor, InlineExecutor
from raydd.experts.jobs import MakeWorker, inline_jobs
from raydd.methods.base import Method


class Background(Protocol):
    """Jobs that run beside the loop; results come back by their tag."""

    def submit(self, tag: Any, job: Any) -> None: ...

    def poll(self) -> list[tuple[Any, Any]]:
        """(tag, result) of what has finished since the last call; does not wait."""
        ...

    def close(self) -> None: ...


class Services(Protocol):
    """An executor for steps, independent jobs in parallel, and jobs in the background."""

    def executor(self, factory: Callable[[], Method], independent: bool = False) -> Executor:
        """Where the method is asked. `independent`: its networks train without a look at the set, so that this may run beside an update."""
        ...

    def run_jobs(
        self, make_worker: MakeWorker, jobs: Sequence[Any], on_result: Callable[[Any], None], on_wait: Callable[[], None] = ...
    ) -> None:
        """Have every job done; `on_result(result)` is called as each finishes. What `on_wait()`, called now and then, raises ends them."""
        ...

    def background(self, make_worker: MakeWorker) -> Background: ...

    def drain_events(self) -> list[tuple[str, str]]:
        """Faults that were mended since the last call: (kind, text)."""
        ...


class InlineServices:
    """Everything in this process, one thing after another."""

    def __init__(self, device: torch.device):
        self._device = device

    def executor(self, factory: Callable[[], Method], independent: bool = False) -> Executor:
        return InlineExecutor(factory(), self._device)

    def run_jobs(
        self, make_worker: MakeWorker, jobs: Sequence[Any], on_result: Callable[[Any], None], on_wait: Callable[[], None] = lambda: None
    ) -> None:
        def heed(result: Any) -> None:
            on_result(result)
            on_wait()

        on_wait()
        inline_jobs(make_worker, jobs, heed)

    def background(self, make_worker: MakeWorker) -> Background:
        return InlineBackground(make_worker)

    def drain_events(self) -> list[tuple[str, str]]:
        return []


class InlineBackground:
    """Without Ray there is nothing beside the loop: a job runs when it is submitted."""

    def __init__(self, make_worker: MakeWorker):
        self._make_worker, self._work, self._done = make_worker, None, []

    def submit(self, tag: Any, job: Any) -> None:
        self._work = self._work or self._make_worker()
        self._done.append((tag, self._work(job)))

    def poll(self) -> list[tuple[Any, Any]]:
        done, self._done = self._done, []
        return done

    def close(self) -> None:
        """Nothing to release."""
