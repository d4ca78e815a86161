import os
import time
from pathlib import Path
from typing import Any

import pytest

from raydd.actors.jobs import Background, run_jobs
from raydd.actors.options import WorkerOptions
from raydd.errors import WorkerError
from tests.actors.ray_toys import Squares
from tests.actors.test_executor import kill_when_paused

pytestmark = pytest.mark.usefixtures("ray_cluster")


def collect(factory: Squares, jobs: list[int], workers: int, options: WorkerOptions | None = None) -> tuple[dict[int, Any], list[Any]]:
    results, events = {}, []

    def keep(index: int, result: Any) -> None:
        assert index not in results
        results[index] = result

    run_jobs(factory, jobs, keep, workers, options or WorkerOptions(), on_events=events.extend)
    return results, events


def test_every_job_is_done_once_elsewhere_than_here() -> None:
    results, events = collect(Squares(), [4, 2, 9, 7, 1], workers=2)
    assert {index: square for index, (square, _) in results.items()} == {0: 16, 1: 4, 2: 81, 3: 49, 4: 1}
    assert os.getpid() not in {pid for _, pid in results.values()} and events == []
    assert collect(Squares(), [], workers=2) == ({}, [])


def test_job_of_a_killed_worker_is_done_by_another(tmp_path: Path) -> None:
    thread = kill_when_paused(tmp_path, "job-3")
    results, events = collect(Squares(str(tmp_path)), [1, 2, 3, 4, 5], workers=2)
    thread.join(10)
    assert [results[index][0] for index in range(5)] == [1, 4, 9, 16, 25]
    assert events[0][0] == "death"


def test_error_of_a_job_comes_back_whole() -> None:
    with pytest.raises(ArithmeticError, match=r"^job -1 is negative"):
        collect(Squares(), [1, -1], workers=1)


def test_job_that_kills_every_worker_ends_the_rest() -> None:
    with pytest.raises(WorkerError, match="No worker is left after 2 deaths"):
        collect(Squares(), [666], workers=1, options=WorkerOptions(max_restarts=1, pause=0.01))


def test_background_answers_under_tags_and_survives_a_death(tmp_path: Path) -> None:
    background = Background(Squares(str(tmp_path)), WorkerOptions())
    try:
        assert background.poll() == [] and background.drain() == []
        thread = kill_when_paused(tmp_path, "job-3")
        for job in (2, 3, 4):
            background.submit(("step", job), job)
        done = background.drain(timeout=60)
        thread.join(10)
        assert [(tag, result[0]) for tag, result in done] == [(("step", 2), 4), (("step", 3), 9), (("step", 4), 16)]
        assert [kind for kind, _ in background.drain_events()] == ["death", "respawn"]
        background.submit("again", 5)
        end, got = time.monotonic() + 60, []
        while not got and time.monotonic() < end:
            got = background.poll()
        assert got[0][1][0] == 25
    finally:
        background.close()


def test_background_says_what_is_unfinished(tmp_path: Path) -> None:
    (tmp_path / "job-3").touch()
    background = Background(Squares(str(tmp_path)), WorkerOptions())
    try:
        background.submit("first", 1)
        background.submit("slow", 3)
        with pytest.raises(WorkerError, match=r"did not finish within 0.5 s: .*slow\."):
            background.drain(timeout=0.5)
        end, got = time.monotonic() + 60, []
        while not got and time.monotonic() < end:
            got = background.poll()
        assert [tag for tag, _ in got] == ["first"]
        background.submit("bad", -1)
    finally:
        background.close()


def test_background_raises_the_error_of_its_job() -> None:
    background = Background(Squares(), WorkerOptions())
    try:
        background.submit("bad", -2)
        with pytest.raises(ArithmeticError, match="job -2"):
            background.drain(timeout=60)
    finally:
        background.close()
