"""Runs in which something happens at one exact place: the process that gets there says so, and waits to be struck.

A place is a part of a run: `score`, `update` or `advance` of a worker in one step, `between` the scores and the update of a step,
`driver` before the update of a step, a job of `experts` or of a `transition`, an `evaluation`. In its folder the file `armed` makes
the first process that comes to the place write `struck`, with its process id, and wait. Whoever does that piece of work again, and has
done it, writes `answered`.
"""

import errno
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray

from raydd.actors.hosting import HostedRun
from raydd.methods.base import Method
from raydd.session import Report
from raydd.types import Candidate, Network, Score, SyntheticSet, Update

# No part of an installed package: its objects travel whole.
ray.cloudpickle.register_pickle_by_value(__import__(__name__, fromlist=["_"]))

STEP = 4
# Longer than it takes to notice a dead node, to start another, and to have a worker there.
WAIT_SECONDS = 120.0


@dataclass(frozen=True)
class Place:
    """Where a run is struck. Whoever gets there waits to die, or until it is released."""

    folder: Path
    part: str
    step: int = STEP

    def arm(self) -> None:
        self.folder.mkdir(parents=True)
        (self.folder / "armed").touch()

    def reached(self, part: str, step: int, key: Any, pid: int | None = None) -> None:
        """Called before a piece of work; `pid` is whom to strike, by default this process."""
        if part != self.part or step != self.step or not _taken(self.folder / "armed"):
            return
        whole = self.folder / "struck.tmp"
        whole.write_text(json.dumps({"pid": pid or os.getpid(), "key": repr(key)}))
        whole.rename(self.folder / "struck")
        end = time.monotonic() + WAIT_SECONDS
        while not (self.folder / "released").exists() and time.monotonic() < end:
            time.sleep(0.01)

    def done(self, part: str, step: int, key: Any) -> None:
        """Called after it."""
        if part == self.part and step == self.step and self.struck and self.struck["key"] == repr(key):
            answered = self.folder / "answered"
            if not answered.exists():
                answered.touch()

    def release(self) -> None:
        """Let whoever waits go on."""
        (self.folder / "released").touch()

    @property
    def struck(self) -> dict[str, Any] | None:
        path = self.folder / "struck"
        return json.loads(path.read_text()) if path.exists() else None


def _taken(path: Path) -> bool:
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True


@dataclass(frozen=True)
class HauntedMethod:
    """A method on a worker."""

    method: Method
    place: Place

    def score(self, synthetic: SyntheticSet, candidate: Candidate, draws: Any) -> Score:
        return self._at("score", draws, candidate.index, lambda: self.method.score(synthetic, candidate, draws))

    def update(self, synthetic: SyntheticSet, candidate: Candidate, draws: Any) -> Update:
        return self._at("update", draws, candidate.index, lambda: self.method.update(synthetic, candidate, draws))

    def advance(self, synthetic: SyntheticSet, network: Network, draws: Any) -> Network:
        return self._at("advance", draws, 0, lambda: self.method.advance(synthetic, network, draws))

    def _at(self, part: str, draws: Any, key: Any, work: Callable[[], Any]) -> Any:
        step = draws.key[1]
        self.place.reached(part, step, key)
        answer = work()
        self.place.done(part, step, key)
        return answer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.method, name)


@dataclass
class HauntedExecutor:
    """The executor in the driver. `company`: after the step that was struck, wait until every worker is there again."""

    executor: Any
    place: Place
    company: bool = False
    steps: int = 0

    def update(self, synthetic: SyntheticSet, candidate: Candidate, draws: Any) -> Update:
        step = draws.key[1]
        scorer = self.executor.pids[self.executor._scored_by.get(candidate, 0)]
        self.place.reached("between", step, 0, scorer)
        self.place.reached("driver", step, 0)
        update = self.executor.update(synthetic, candidate, draws)
        for part in ("between", "driver"):
            self.place.done(part, step, 0)
        if self.company and step == self.place.step:
            end = time.monotonic() + WAIT_SECONDS
            while None in self.executor.pids and time.monotonic() < end:
                self.executor._pool._crew.poll(0.1)
                time.sleep(0.05)
        return update

    def __getattr__(self, name: str) -> Any:
        return getattr(self.executor, name)


@dataclass
class HauntedServices:
    """Services in the driver, with everything that they start. `full` is what finds the disk full: the `store`, or nothing here."""

    services: Any
    place: Place
    company: bool = False
    full: str = ""
    calls: list[int] = field(default_factory=list)

    def executor(self, factory: Callable[[], Method], independent: bool = False) -> HauntedExecutor:
        place = self.place
        return HauntedExecutor(self.services.executor(lambda: HauntedMethod(factory(), place), independent), place, self.company)

    def background(self, make_worker: Callable[[], Callable[[Any], Any]]) -> Any:
        place = self.place
        return self.services.background(lambda: HauntedWork(make_worker(), place, "evaluation"))

    def run_jobs(self, make_worker: Callable[[], Callable[[Any], Any]], *rest: Any) -> None:
        # The trainings of a run come in one order: experts, and then for each later stage its start networks and its own experts.
        self.calls.append(len(self.calls))
        place, full, part = self.place, self.full, "experts" if len(self.calls) == 1 and self.place.part == "experts" else "transition"
        self.services.run_jobs(lambda: HauntedWork(make_worker(), place, part, full), *rest)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.services, name)


@dataclass
class HauntedWork:
    """A worker for jobs."""

    work: Callable[[Any], Any]
    place: Place
    part: str
    full: str = ""

    def __call__(self, job: Any) -> Any:
        key = getattr(job, "place", job)
        if self.full == "store":
            fill_disk("arrow", self.place.folder)
        self.place.reached(self.part, self.place.step, key)
        result = self.work(job)
        self.place.done(self.part, self.place.step, key)
        return result


def fill_disk(suffix: str, folder: Path) -> None:
    """From now on no file of this process whose name holds `suffix` finds room, until there is a file `freed` in `folder`.

    As on a full disk, the write itself fails, and what the program does about it is its own.
    """
    real = os.fsync

    def fsync(descriptor: int) -> None:
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        if suffix in name and not (folder / "freed").exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    os.fsync = fsync


@dataclass(frozen=True)
class HauntedRun:
    """What a driver actor calls in place of `HostedRun`: the same, haunted. Each driver is a process of its own, which may be changed."""

    hosted: HostedRun
    place: Place
    company: bool = False
    full: str = ""

    def __call__(self, placement_group: Any, should_stop: Callable[[], bool], report: Report, attempt: int) -> dict[str, Any]:
        from raydd import session
        from raydd.actors import hosting

        session.write_report = lambda path: None
        place, company, full, real = self.place, self.company, self.full, hosting.RayServices
        hosting.RayServices = lambda *given: HauntedServices(real(*given), place, company, full)
        if full == "run":
            fill_disk("step_00000006", place.folder)
        try:
            return self.hosted(placement_group, should_stop, report, attempt)
        finally:
            hosting.RayServices = real
