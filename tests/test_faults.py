"""Whatever is killed while a run goes on, the result is that of an undisturbed run, to the bit."""

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray

from raydd import launch
from raydd.actors.executor import RayExecutor
from raydd.actors.jobs import Background
from raydd.actors.options import WorkerOptions
from raydd.actors.services import RayServices
from raydd.config import Config
from raydd.methods.base import Method
from raydd.types import Candidate, Network, Score, SyntheticSet, Update
from tests.runs import CONFIG, assert_equal_runs, but, execution, faults, go, with_networks

pytestmark = pytest.mark.usefixtures("ray_cluster")
# No part of an installed package: its objects travel whole.
ray.cloudpickle.register_pickle_by_value(__import__(__name__, fromlist=["_"]))

STEP = 4
# Long enough that the news of the first step reach the client while later steps are under way.
LONG = 150


@pytest.fixture(autouse=True)
def _no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raydd.session.write_report", lambda path: None)


@pytest.fixture(scope="module")
def undisturbed(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("undisturbed") / "run"
    go(path, store)
    return path


@dataclass(frozen=True)
class Mortal:
    """A method whose process is killed in the middle of one answer: the first that is asked for `part` of step `STEP`.

    The answer has been computed by then, and what the method keeps is lost with it.
    """

    method: Method
    part: str
    flag: Path

    def score(self, synthetic: SyntheticSet, candidate: Candidate, draws: Any) -> Score:
        answer = self.method.score(synthetic, candidate, draws)
        self._die("score", draws)
        return answer

    def update(self, synthetic: SyntheticSet, candidate: Candidate, draws: Any) -> Update:
        answer = self.method.update(synthetic, candidate, draws)
        self._die("update", draws)
        return answer

    def begin(self, born: int) -> Network:
        return self.method.begin(born)

    def prepare(self, network: Network, draws: Any) -> Network:
        return self.method.prepare(network, draws)

    def advance(self, synthetic: SyntheticSet, network: Network, draws: Any) -> Network:
        answer = self.method.advance(synthetic, network, draws)
        self._die("advance", draws)
        return answer

    def target(self, candidate: Candidate, draws: Any) -> Network:
        answer = self.method.target(candidate, draws)
        self._die("target", draws)
        return answer

    def _die(self, part: str, draws: Any) -> None:
        if part == self.part and draws.key[1] == STEP:
            die_once(self.flag)


def die_once(flag: Path) -> None:
    """Be killed by the system, unless another was before: whoever removes the flag."""
    try:
        flag.unlink()
    except FileNotFoundError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class MortalServices:
    """Services whose workers, or whose evaluator, are killed once."""

    services: RayServices
    part: str
    flag: Path

    def __post_init__(self) -> None:
        self.flag.touch()

    def executor(self, factory: Callable[[], Method], independent: bool = False) -> RayExecutor:
        part, flag = self.part, self.flag
        return self.services.executor(lambda: Mortal(factory(), part, flag), independent)

    def background(self, make_worker: Callable[[], Callable[[Any], Any]]) -> Background:
        part, flag = self.part, self.flag

        def make() -> Callable[[Any], Any]:
            work = make_worker()

            def evaluate(job: Any) -> Any:
                record = work(job)
                if part == "evaluation":
                    die_once(flag)
                return record

            return evaluate

        return self.services.background(make)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.services, name)


def disturbed(path: Path, store: Path, part: str, workers: int, config: Config = CONFIG) -> None:
    services = MortalServices(RayServices(workers, WorkerOptions()), part, path.parent / "flag")
    go(path, store, config, services)
    assert not services.flag.exists(), "nobody was killed"


@pytest.mark.parametrize(("part", "workers"), [("score", 2), ("update", 2), ("update", 1)])
def test_a_worker_killed_in_mid_step(part: str, workers: int, undisturbed: Path, store: Path, tmp_path: Path) -> None:
    disturbed(tmp_path / "run", store, part, workers)
    assert_equal_runs(tmp_path / "run", undisturbed)
    first = faults(tmp_path / "run")[0]
    assert (first["step"], first["kind"]) == (STEP, "death") and "death 1" in first["text"]


@dataclass
class Kept:
    """Services whose workers serve several runs of one configuration, so that they start once. One is killed at a part
    of which there is a flag in `folder`."""

    services: RayServices
    folder: Path
    made: RayExecutor | None = None

    def executor(self, factory: Callable[[], Method], independent: bool = False) -> Any:
        if self.made is None:
            folder = self.folder

            def mortal() -> Any:
                made = factory()
                for part in ("update", "advance", "target"):
                    made = Mortal(made, part, folder / part)
                return made

            self.made = self.services.executor(mortal, independent)
        return Lent(self.made)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.services, name)


@dataclass(frozen=True)
class Lent:
    """An executor that a run does not close."""

    executor: RayExecutor

    def close(self) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return getattr(self.executor, name)


@pytest.mark.parametrize(
    ("name", "workers", "parts"),
    [
        ("dc", 1, ()),
        ("dc", 2, ("update", "advance")),
        ("dreamplus", 2, ()),
        ("dreamplus", 3, ("advance", "target")),
    ],
)
def test_networks_on_workers_and_on_workers_that_are_killed(name: str, workers: int, parts: tuple[str, ...], tmp_path: Path) -> None:
    """Inline, then on workers, then on the same with one killed at each of `parts`: the same to the bit."""
    config = with_networks(name, steps=STEP + 2, dc__outer=3, idc__inner_steps=3)
    go(tmp_path / "inline", tmp_path, config)
    services = Kept(RayServices(workers, WorkerOptions()), tmp_path)
    try:
        go(tmp_path / "workers", tmp_path, config, services)
        assert_equal_runs(tmp_path / "workers", tmp_path / "inline")
        assert faults(tmp_path / "workers") == []
        for part in parts:
            (tmp_path / part).touch()
            go(tmp_path / f"killed-{part}", tmp_path, config, services)
            assert not (tmp_path / part).exists(), "nobody was killed"
            assert_equal_runs(tmp_path / f"killed-{part}", tmp_path / "inline")
            assert "death" in [fault["kind"] for fault in faults(tmp_path / f"killed-{part}")]
    finally:
        services.made.close()


def test_an_evaluator_killed_at_work(store: Path, tmp_path: Path) -> None:
    config = but(evaluation__every=4)
    go(tmp_path / "inline", store, config)
    disturbed(tmp_path / "run", store, "evaluation", 1, config)
    assert_equal_runs(tmp_path / "run", tmp_path / "inline")
    assert "death" in [fault["kind"] for fault in faults(tmp_path / "run")]


def test_a_driver_killed_between_checkpoints(undisturbed: Path, store: Path, tmp_path: Path) -> None:
    path, reports = tmp_path / "run", []

    def kill(report: dict[str, Any]) -> None:
        reports.append(report)
        if [each["phase"] for each in reports].count("distill") == 1:
            os.kill(int((path / ".lock").read_text().split()[0]), signal.SIGKILL)

    result = launch.distill(but(steps=LONG), execution(path, store, workers=1), kill)
    assert result["complete"]
    assert [report["phase"] for report in reports].count("warning") == 1
    go(tmp_path / "inline", store, but(steps=LONG))
    assert_equal_runs(path, tmp_path / "inline")
    assert "driver" in [fault["kind"] for fault in faults(path)]
