"""Seconds of a step from its parts, against steps counted by hand."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from raydd.step_time import LOCAL, Traffic, Transport, Work, busiest, expert_traffic, network_traffic, step_time

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
MTT = Work(score=2.0, update=5.0, alone=7.0, candidates=8)


@pytest.mark.parametrize(
    ("candidates", "workers", "cores", "long"),
    [(8, 1, 4, 8), (8, 2, 4, 4), (8, 3, 4, 3), (8, 8, 8, 1), (3, 8, 8, 1), (1, 3, 2, 1), (3, 3, 2, 1.5), (5, 3, 2, 2.5), (8, 3, 2, 4)],
)
def test_the_longest_of_scoring(candidates: int, workers: int, cores: int, long: float) -> None:
    """Where workers are more than cores, no core can do less than its share of all scores."""
    assert busiest(candidates, workers, cores) == long


def test_a_step_in_one_process() -> None:
    found = step_time(MTT, 1)
    assert (found.score, found.update, found.train, found.transport, found.total) == (16.0, 5.0, 0.0, 0.0, 21.0)
    alone = step_time(Work(2.0, 5.0, 7.0, 1), 1)
    assert (alone.score, alone.update) == (0.0, 7.0), "an only candidate is not scored"


def test_workers_shorten_the_scores_alone() -> None:
    assert [step_time(MTT, workers).total for workers in (1, 2, 3, 8, 64)] == [21, 13, 11, 7, 7]
    assert step_time(MTT, 8, cores=2).total == 13


def test_networks_are_begun_chosen_for_a_lifetime_and_trained() -> None:
    work = Work(score=2.0, update=5.0, alone=5.0, candidates=4, begin=1.0, train=3.0, between=10)
    assert step_time(work, 1).total == pytest.approx(4 * 3 / 10 + 5 + 3)
    beside = Work(score=2.0, update=5.0, alone=5.0, candidates=4, train=6.0, beside=True)
    assert step_time(beside, 1).train == 6 and step_time(beside, 2).train == 1


def test_what_is_sent() -> None:
    assert expert_traffic(1, 100) == Traffic(1, 1, 200)
    assert expert_traffic(8, 100) == Traffic(2, 9, 200)
    # DM: eight networks come new, go out to be scored, one goes to the update; the set goes out, its gradient comes back.
    assert network_traffic(8, 100, 7, between=1, trains=False) == Traffic(3, 17, 200 + 17 * 7)
    # IDC with one candidate: a lifetime of 100 updates begins with one network; each is followed by a training.
    alone = network_traffic(1, 100, 7, between=100, trains=True)
    assert (alone.rounds, alone.calls) == (2.01, 2.01) and alone.size == pytest.approx(200 + 0.07 + 7 + 14 + 100)


def test_what_sending_costs() -> None:
    traffic = Traffic(2, 9, 1000)
    assert Transport(0.5, 0.1, 0.001).seconds(traffic) == pytest.approx(1 + 0.9 + 1)
    assert Transport(0.5, 0.1, 0.001, trip=0.01, trips=3).seconds(traffic) == pytest.approx(2.9 + 2 * 3 * 0.01)
    assert Transport(0.5, 0.1, 0.001, trip=0.01, trips=3, window=250).seconds(traffic) == pytest.approx(2.9 + (2 * 3 + 4) * 0.01)
    assert step_time(MTT, 8, traffic=traffic, transport=Transport(0.5, 0.1, 0.001)).total == pytest.approx(7 + 2.9)


def test_the_constants_are_those_measured() -> None:
    """raydd plan predicts with what the benchmark has found."""
    found = json.loads((RESULTS / "scaling.json").read_text())["idle"]["transport"]
    assert {name: asdict(LOCAL)[name] for name in found} == found
