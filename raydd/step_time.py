"""Seconds of a step from those of its parts: what `raydd plan` predicts with, and what docs/scaling.md holds against measurements.

A step has one long serial part, the update by the worker that holds the winner; what more workers shorten is the scoring of candidates.
What each call costs the driver grows with the candidates, whatever the workers are.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Work:
    """What a step computes, in seconds of one worker with a core or device of its own.

    score       the loss of one candidate
    update      the gradient of the chosen one, after its score
    alone       the gradient of an only candidate, for which nothing is scored
    candidates  M
    begin       a new network, where every candidate of a selection is one
    train       the training of a network that follows an update
    beside      whether that goes on beside the update, where there is a second worker
    between     updates for each selection
    """

    score: float
    update: float
    alone: float
    candidates: int
    begin: float = 0.0
    train: float = 0.0
    beside: bool = False
    between: int = 1


@dataclass(frozen=True)
class Traffic:
    """What a step sends: `rounds` that the driver waits for one after another, `calls` of workers, `size` bytes to and from the driver."""

    rounds: float
    calls: float
    size: float


@dataclass(frozen=True)
class Transport:
    """What sending costs: seconds for each round, each call and each byte.

    With workers on other nodes `trip` are the seconds to one and back: a round takes `trips` of them, and every `window` bytes one more.
    """

    round: float
    call: float
    byte: float
    trip: float = 0.0
    trips: float = 0.0
    window: float = math.inf

    def seconds(self, traffic: Traffic) -> float:
        """Of the traffic of one step."""
        away = self.trip * (traffic.rounds * self.trips + traffic.size / self.window)
        return traffic.rounds * self.round + traffic.calls * self.call + traffic.size * self.byte + away


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step by part. `score` has the beginnings of networks in it; the driver's own work is not there."""

    score: float
    update: float
    train: float
    transport: float

    @property
    def total(self) -> float:
        """Of the whole step."""
        return self.score + self.update + self.train + self.transport


# Workers on the driver's machine, nothing else running: two AMD EPYC cores, Ray 2.60 (`idle` in benchmarks/results/scaling.json).
LOCAL = Transport(round=1.86e-3, call=1.16e-3, byte=1.93e-10)


def busiest(candidates: int, workers: int, cores: int) -> float:
    """How many scores long the scoring takes: those of the busiest worker, or of each core where workers share these."""
    return max(math.ceil(candidates / workers), candidates / cores)


def step_time(work: Work, workers: int, cores: int | None = None, traffic: Traffic | None = None, transport: Transport = LOCAL) -> StepTime:
    """A step with K `workers` on so many `cores` or devices (as many as workers if not given).

    Without `traffic` everything is in one process. Steps between two selections and those that select are taken together, as their mean.
    """
    several, shared = work.candidates > 1, busiest(work.candidates, workers, cores or workers)
    score = shared * (work.begin + (work.score if several else 0.0)) / work.between
    update = work.update if several else work.alone
    train = max(0.0, work.train - update) if work.beside and workers > 1 else work.train
    return StepTime(score, update, train, transport.seconds(traffic) if traffic else 0.0)


def expert_traffic(candidates: int, set_bytes: int) -> Traffic:
    """Over expert trajectories: the set goes out once, its gradient comes back."""
    scored = candidates if candidates > 1 else 0
    return Traffic(1 + (scored > 0), scored + 1, 2 * set_bytes)


def network_traffic(candidates: int, set_bytes: int, network_bytes: int, between: int, trains: bool) -> Traffic:
    """With networks, which travel: a lifetime's candidates come back new and go out to be scored, the chosen one goes to the update, and
    to its training and back.
    """
    scored = candidates if candidates > 1 else 0
    rounds = (1 + (scored > 0)) / between + 1 + trains
    calls = (candidates + scored) / between + 1 + trains
    sent = (candidates + scored) * network_bytes / between + network_bytes + trains * (2 * network_bytes + set_bytes)
    return Traffic(rounds, calls, 2 * set_bytes + sent)
