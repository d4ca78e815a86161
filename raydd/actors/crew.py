"""A crew of equal actors that is kept at work: hands out calls, replaces the dead, asks lost answers again.

Calls must be pure: one whose worker died is simply made again on another. An exception that the called code raises is the
program's own: it is raised here once, whole, and never tried again (`specs/ray.md` section 3 has the measurements behind this).
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NoReturn

import ray
from ray.exceptions import RayError

from raydd.actors.faults import is_own, is_preemption, own_error, reason, storing
from raydd.actors.lifeline import Lifeline
from raydd.actors.options import WorkerOptions, restart_pause
from raydd.errors import WorkerError

# Longest sleep inside Ray, so that due starts and silent workers are noticed.
_TICK = 0.5
# With one worker there, others are waited for this long: they may have lost their node.
_COMPANY_SECONDS = 20.0


@dataclass(frozen=True)
class Call:
    """One thing to do: `make(actor)` starts it and returns its reference. `prefers` names the worker that has what it needs."""

    key: Any
    make: Callable[[Any], Any]
    prefers: int | None = None


@dataclass(frozen=True)
class Answer:
    """What a call returned, and the index of the worker that did it."""

    key: Any
    value: Any
    worker: int


class State(Enum):
    """STARTING: process and method are being built. LIVE: takes calls. RESTING: dead, to be started at `wake`. GONE: given up."""

    STARTING = 1
    LIVE = 2
    RESTING = 3
    GONE = 4


@dataclass
class Slot:
    """One place in the crew and the actor that fills it now."""

    index: int
    state: State = State.RESTING
    actor: Any = None
    ready: Any = None
    since: float = 0.0
    """When the actor was started, or a busy one last gave a sign of life."""
    wake: float = 0.0
    deaths: int = 0
    """Deaths in a row, without an answer between them."""
    calls: dict[Any, Call] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        known = f" (pid {self.about['pid']} on {self.about['host']})" if self.about else ""
        return f"worker {self.index}{known}"


class Crew:
    """`workers` actors made by `spawn(index)`, each with a method `ready()` that builds what it works with and tells about it.

    `depth` is how many calls an actor holds at a time: 2 hides the way there and back, 1 suits long calls. Nothing here
    blocks for longer than it is told to. Raises `WorkerError` once nobody is left and no restart either, or the cluster has died.
    """

    def __init__(self, spawn: Callable[[int], Any], workers: int, options: WorkerOptions, depth: int = 1):
        self._spawn, self._options, self._depth = spawn, options, depth
        self._queue: list[Call] = []
        self._events: list[tuple[str, str]] = []
        self._lost = 0
        self._lifeline = Lifeline(f"Resume with `{options.resume}`." if options.resume else "Start it again to resume.")
        self.slots = [Slot(index) for index in range(workers)]
        for slot in self.slots:
            self._start(slot)

    @property
    def busy(self) -> bool:
        """Whether calls are waiting or under way."""
        return bool(self._queue) or any(slot.calls for slot in self.slots)

    def wait_ready(self) -> None:
        """Return once no worker is on its way: all live, but for those that were given up, and those that take much longer than the
        first. These are taken in when they come.
        """
        end = math.inf
        while any(slot.state in (State.STARTING, State.RESTING) for slot in self.slots) and time.monotonic() < end:
            self._turn(_TICK)
            if end == math.inf and any(slot.state is State.LIVE for slot in self.slots):
                end = time.monotonic() + _COMPANY_SECONDS

    def add(self, calls: list[Call]) -> None:
        """Queue calls; `poll` hands them out."""
        self._queue.extend(calls)

    def poll(self, timeout: float = 0.0) -> list[Answer]:
        """Keep everybody at work and return what has been answered, waiting at most `timeout` seconds for a first answer.

        Raises what the called code raised; all other calls are then dropped.
        """
        end = time.monotonic() + timeout
        while True:
            answers = self._turn(max(0.0, min(_TICK, end - time.monotonic())))
            if answers or not self.busy or time.monotonic() >= end:
                return answers

    def run(self, calls: list[Call]) -> Iterator[Answer]:
        """Make these calls and yield the answers as they come."""
        self.add(calls)
        while self.busy:
            yield from self.poll(_TICK)

    def drain_events(self) -> list[tuple[str, str]]:
        """What went wrong and was mended since the last time: (kind, text), kind one of death, preemption, silence, respawn."""
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        """End all actors at once; calls under way are forgotten."""
        self.drop()
        for slot in self.slots:
            _end(slot)
            slot.state = State.GONE

    def drop(self) -> None:
        """Forget all calls, waiting or under way."""
        self._queue.clear()
        for slot in self.slots:
            slot.calls.clear()

    # One turn: take what has come, replace the dead, hand out work, and only then wait.

    def _turn(self, timeout: float) -> list[Answer]:
        answers = self._settle(self._arrived(0.0))
        self._tend()
        self._feed()
        if answers or not timeout:
            return answers
        answers = self._settle(self._arrived(timeout))
        self._feed()
        return answers

    def _arrived(self, timeout: float) -> list[Any]:
        waiting = [slot.ready for slot in self.slots if slot.state is State.STARTING]
        waiting += [ref for slot in self.slots for ref in slot.calls]
        if not waiting:
            time.sleep(timeout)
            return []
        return ray.wait(waiting, num_returns=len(waiting) if not timeout else 1, timeout=timeout)[0]

    def _settle(self, arrived: list[Any]) -> list[Answer]:
        answers = []
        for ref in arrived:
            for slot in self.slots:
                # The slot may have been buried by another reference of the same death a moment ago.
                if ref in slot.calls:
                    answers += self._take_answer(slot, ref)
                elif slot.state is State.STARTING and ref == slot.ready:
                    self._take_ready(slot)
        return answers

    def _take_answer(self, slot: Slot, ref: Any) -> list[Answer]:
        call = slot.calls[ref]
        try:
            value = ray.get(ref)
        except RayError as error:
            if is_own(error):
                self.drop()
                raise own_error(error) from None
            self._bury(slot, "preemption" if is_preemption(error) else "death", f"died: {reason(error)}")
            return []
        del slot.calls[ref]
        slot.since, slot.deaths = time.monotonic(), 0
        return [Answer(call.key, value, slot.index)]

    def _take_ready(self, slot: Slot) -> None:
        try:
            slot.about = ray.get(slot.ready)
        except RayError as error:
            if is_own(error):
                raise own_error(error) from None
            self._bury(slot, "preemption" if is_preemption(error) else "death", f"did not start: {reason(error)}")
            return
        slot.state = State.LIVE
        if slot.deaths:
            self._events.append(("respawn", f"{slot.name} took its place after {time.monotonic() - slot.since:.1f} s"))

    def _tend(self) -> None:
        now, options = time.monotonic(), self._options
        if all(slot.state is not State.LIVE for slot in self.slots):
            self._lifeline.check()
        for slot in self.slots:
            if slot.state is State.LIVE and slot.calls and now - slot.since > options.answer_timeout:
                self._bury(slot, "silence", f"gave no answer for {options.answer_timeout:g} s (--answer_timeout) and was killed")
            elif slot.state is State.STARTING and now - slot.since > options.start_timeout:
                self._bury(slot, "silence", f"did not start within {options.start_timeout:g} s and was killed")
            if slot.state is State.RESTING and now >= slot.wake:
                self._start(slot)

    def _feed(self) -> None:
        live = [slot for slot in self.slots if slot.state is State.LIVE]
        for held in range(self._depth):
            for slot in live:
                if len(slot.calls) == held and (call := self._next(slot)) is not None:
                    if not slot.calls:
                        slot.since = time.monotonic()
                    with storing():
                        slot.calls[call.make(slot.actor)] = call

    def _next(self, slot: Slot) -> Call | None:
        """The first call meant for this worker, else the first that is meant for nobody who lives."""
        found = next((place for place, call in enumerate(self._queue) if call.prefers == slot.index), None)
        if found is None:
            free = (place for place, call in enumerate(self._queue) if not self._is_live(call.prefers))
            found = next(free, None)
        return None if found is None else self._queue.pop(found)

    def _is_live(self, index: int | None) -> bool:
        return index is not None and self.slots[index].state is State.LIVE

    def _start(self, slot: Slot) -> None:
        slot.actor, slot.about = self._spawn(slot.index), {}
        slot.ready = slot.actor.ready.remote()
        slot.state, slot.since = State.STARTING, time.monotonic()

    def _bury(self, slot: Slot, kind: str, what: str) -> None:
        """Give the calls of a lost worker back to the queue, and plan its successor while the budget lasts."""
        self._queue[:0] = slot.calls.values()
        slot.calls.clear()
        name = slot.name
        _end(slot)
        slot.deaths += 1
        self._lost += kind != "preemption"
        allowed = self._options.max_restarts
        slot.state = State.RESTING if self._lost <= allowed else State.GONE
        slot.wake = time.monotonic() + restart_pause(slot.deaths, self._options.pause)
        count = "" if kind == "preemption" else f" (death {self._lost}, --max_restarts={allowed})"
        self._events.append((kind, f"{name} {what}{count}"))
        if all(slot.state is State.GONE for slot in self.slots):
            self._give_up()

    def _give_up(self) -> NoReturn:
        pending, last = len(self._queue), self._events[-1][1]
        self._queue.clear()
        how = f"resume with `{self._options.resume}`" if self._options.resume else "start it again to resume"
        raise WorkerError(
            f"No worker is left after {self._lost} deaths; --max_restarts={self._options.max_restarts} allows no more. The last: {last}. "
            f"{pending} call(s) had no answer. The run stands at its last checkpoint: mend the cause (often memory), or raise "
            f"--max_restarts, and {how}."
        )


def _end(slot: Slot) -> None:
    """Kill the actor of a slot, dead or not, so that it holds no device when its successor comes."""
    actor, slot.actor, slot.ready, slot.about = slot.actor, None, None, {}
    if actor is not None:
        # A handle that Ray no longer knows is as dead as can be.
        with contextlib.suppress(RayError, ValueError):
            ray.kill(actor, no_restart=True)
