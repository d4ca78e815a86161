"""Training networks as jobs: groups that go through one pass, who runs them, how far they are, and whether the disk has room."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from raydd.errors import ResourceError
from raydd.experts.folder import Folder

Job = list[int]
MakeWorker = Callable[[], Callable[[Any], Any]]
RunJobs = Callable[[MakeWorker, Sequence[Any], Callable[[Any], None]], None]
"""Runs jobs somewhere: `run_jobs(make_worker, jobs, on_result)` calls `make_worker()` once in each process, gives every job to
one of the workers, and calls `on_result(result)` here as each finishes. An error in a worker is raised here."""


def inline_jobs(make_worker: MakeWorker, jobs: Sequence[Any], on_result: Callable[[Any], None]) -> None:
    """`RunJobs` in this process, one job after another."""
    worker = make_worker()
    for job in jobs:
        on_result(worker(job))


def group_of(network: int, together: int) -> Job:
    """The networks that are always trained in one pass with this one: rounding then does not depend on how many are asked for."""
    first = network // together * together
    return list(range(first, first + together))


def groups_of(networks: Iterable[int], together: int) -> list[Job]:
    """The groups of these networks, each once, in order."""
    return [list(job) for job in dict.fromkeys(tuple(group_of(network, together)) for network in networks)]


@dataclass(frozen=True)
class Progress:
    """How far building is: networks `done` of `total`, images per second over all workers, and the seconds that are left."""

    done: int
    total: int
    images_per_second: float
    seconds_left: float


class Meter:
    """Counts images against the clock. `total` networks are to see so many `images` in all; `progress` hears of every change."""

    def __init__(self, total: int, images: int, progress: Callable[[Progress], None]):
        self._total, self._images, self._progress = total, images, progress
        self._done, self._seen, self._reported = 0, 0, 0
        self._started = time.perf_counter()

    def epoch(self, images: int) -> None:
        """A job in this process has put so many images through its networks."""
        self._seen += images
        self._reported += images
        self._tell()

    def job(self, networks: int, images: int) -> None:
        """A job is done: so many networks, which have seen so many images since it began."""
        self._done += networks
        # Epochs of this job that were counted one by one must not count again.
        self._seen += images - self._reported
        self._reported = 0
        self._tell()

    def _tell(self) -> None:
        rate = self._seen / max(time.perf_counter() - self._started, 1e-9)
        left = (self._images - self._seen) / rate if rate and self._done < self._total else 0.0
        self._progress(Progress(self._done, self._total, rate, left))


def check_space(folder: Folder, needed: int, what: str, lower: str) -> None:
    """Refuse to start what cannot be written: `what` needs so many bytes; `lower` names the settings that need fewer.

    Raises `ResourceError` with both numbers.
    """
    free = folder.free_bytes()
    if free is not None and free < needed:
        raise ResourceError(
            f"No space for {what} in {folder.location}: they need {needed:,} bytes, {free:,} are free. Free space, give a larger disk "
            f"with --store, or lower {lower}."
        )
