"""A run hosted by an actor, and the client that follows it, stops it on Ctrl-C and starts it again when it dies."""

import contextlib
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.placement_group import PlacementGroup

from raydd.actors.cluster import Bundle, describe, preflight, release, reserve
from raydd.actors.faults import is_own, is_preemption, own_error, reason
from raydd.actors.lifeline import ClusterGone, Lifeline
from raydd.actors.options import restart_pause
from raydd.actors.placement import actor_options
from raydd.errors import WorkerError

Status = dict[str, Any]
RunFactory = Callable[[PlacementGroup, Callable[[], bool], Callable[[Status], None], int], dict[str, Any]]
"""`run(placement_group, should_stop, report, attempt) -> result`, picklable. Called in the driver actor; `attempt` counts from 1
and a later one resumes from the run's own checkpoint. It returns soon after `should_stop()` is true, checkpoint written."""

_KEPT_REPORTS = 10_000
_POLL_SECONDS = 0.2
# A driver that reports nothing for so long is taken for dead.
_SILENCE_SECONDS = 300.0
# After so long the user is told what is waited for.
_WAITING_SECONDS = 30.0


@ray.remote(concurrency_groups={"control": 2})
class Driver:
    """Hosts one run. `run` does the work; the other methods answer meanwhile, from threads of their own."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._reports: deque[tuple[int, Status]] = deque(maxlen=_KEPT_REPORTS)
        self._count = 0

    def __repr__(self) -> str:
        return "raydd-driver"

    def run(self, run: bytes, placement_group: PlacementGroup, attempt: int) -> dict[str, Any]:
        """The result of the pickled run. What it raises comes back as it is."""
        return ray.cloudpickle.loads(run)(placement_group, self._stop.is_set, self._report, attempt)

    @ray.method(concurrency_group="control")
    def reports(self, after: int) -> list[tuple[int, Status]]:
        """(number, report) of the reports numbered above `after`; of very many, the last ones."""
        return [entry for entry in list(self._reports) if entry[0] > after]

    @ray.method(concurrency_group="control")
    def stop(self) -> None:
        """Ask the run to end at its next step."""
        self._stop.set()

    def _report(self, status: Status) -> None:
        self._count += 1
        self._reports.append((self._count, status))


def drive(
    run: RunFactory,
    bundles: list[Bundle],
    on_status: Callable[[Status], None] = lambda status: None,
    *,
    strategy: str = "PACK",
    reserve_timeout: float = 60.0,
    stop_timeout: float = 120.0,
    max_restarts: int = 3,
    resume: str = "",
) -> dict[str, Any]:
    """Run `run` in an actor in the first of `bundles` and return its result; the other bundles are for its workers.

    `on_status` is called here with every report, in order. Ctrl-C or SIGTERM asks the run to stop at its next step, and its
    result is returned all the same; a second one, or `stop_timeout` seconds, ends it. A driver that dies is started again, at
    most `max_restarts` times (preemptions are free). Raises what the run raises, of its own type; `ResourceError` when there
    is no room; `WorkerError` when the driver keeps dying or does not stop, or the cluster has died; `KeyboardInterrupt` on the
    second Ctrl-C.
    """
    preflight(bundles, describe())
    group = reserve(bundles, strategy, reserve_timeout, lambda text: on_status({"phase": "waiting", "text": text}))
    try:
        with _counted_interrupts() as interrupts:
            return _Client(run, group, on_status, interrupts, stop_timeout, max_restarts, resume).result()
    except ClusterGone:
        group = None
        raise
    finally:
        if group is not None:
            release(group)


@contextlib.contextmanager
def _counted_interrupts() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM in a list instead of raising in the middle of something. Only the main thread may do that."""
    seen: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield seen
        return
    before = {number: signal.signal(number, lambda number, frame: seen.append(number)) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Client:
    """Follows one run through the lives of its driver actor."""

    def __init__(
        self,
        run: RunFactory,
        group: PlacementGroup,
        on_status: Callable[[Status], None],
        interrupts: list[int],
        stop_timeout: float,
        max_restarts: int,
        resume: str,
    ):
        self._run, self._group, self._on_status, self._interrupts = ray.cloudpickle.dumps(run), group, on_status, interrupts
        self._stop_timeout, self._max_restarts = stop_timeout, max_restarts
        self._how = f"Resume with `{resume}`." if resume else "Start it again to resume."
        self._asked: float | None = None
        self._lifeline = Lifeline(self._how)

    def result(self) -> dict[str, Any]:
        attempt, deaths = 1, 0
        while True:
            try:
                return self._attempt(attempt)
            except RayError as error:
                if is_own(error):
                    raise own_error(error) from None
                deaths += not is_preemption(error)
                self._refuse_restart(error, deaths)
                self._on_status({"phase": "warning", "text": f"The driver died ({reason(error)}); starting it again."})
            attempt += 1
            time.sleep(restart_pause(attempt - 1, 1.0))

    def _refuse_restart(self, error: RayError, deaths: int) -> None:
        if self._asked is not None:
            raise WorkerError(f"The driver died while stopping ({reason(error)}). The run stands at its last checkpoint. {self._how}")
        if deaths > self._max_restarts:
            raise WorkerError(
                f"The driver died {deaths} times and may be restarted {self._max_restarts} times; the last time: {reason(error)}. "
                f"The run stands at its last checkpoint; mend the cause (often memory). {self._how}"
            )

    def _attempt(self, attempt: int) -> dict[str, Any]:
        driver = Driver.options(**actor_options(1, 0, self._group, 0)).remote()
        try:
            result, seen = driver.run.remote(self._run, self._group, attempt), 0
            reports, answered, told = driver.reports.remote(seen), time.monotonic(), False
            while not ray.wait([result], timeout=_POLL_SECONDS)[0]:
                self._heed_interrupts(driver)
                self._lifeline.check()
                # A driver that is busy or dying answers later or never; its result tells.
                if ray.wait([reports], timeout=0)[0]:
                    seen = self._tell(reports, seen)
                    reports, answered, told = driver.reports.remote(seen), time.monotonic(), False
                elif time.monotonic() - answered > _SILENCE_SECONDS:
                    # Its reports come from a thread of their own: a process that gives none is stopped or stuck, not busy.
                    raise GetTimeoutError(f"no report for {_SILENCE_SECONDS:g} s")
                elif not told and time.monotonic() - answered > _WAITING_SECONDS:
                    told = True
                    text = "waits for a node that has room for it, is starting, or hangs; waiting"
                    self._on_status({"phase": "warning", "text": f"The driver does not answer: it {text} up to {_SILENCE_SECONDS:g} s."})
            self._tell(driver.reports.remote(seen), seen)
            return ray.get(result)
        finally:
            with contextlib.suppress(RayError, ValueError):
                ray.kill(driver, no_restart=True)

    def _tell(self, reports: Any, seen: int) -> int:
        try:
            entries = ray.get(reports, timeout=10)
        except RayError:
            return seen
        for number, status in entries:
            if number > seen:
                self._on_status(status)
                seen = number
        return seen

    def _heed_interrupts(self, driver: Any) -> None:
        if not self._interrupts:
            return
        if len(self._interrupts) > 1:
            raise KeyboardInterrupt
        if self._asked is None:
            self._asked = time.monotonic()
            driver.stop.remote()
            self._on_status({"phase": "stopping", "text": f"stopping at the next step; once more stops at once. {self._how}"})
        elif time.monotonic() - self._asked > self._stop_timeout:
            raise WorkerError(
                f"The run did not stop within {self._stop_timeout:g} s and was ended; it stands at its last checkpoint. {self._how}"
            )
