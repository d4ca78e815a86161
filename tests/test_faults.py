"""Whatever is killed while a run goes on, the result is that of an undisturbed run, to the bit."""

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
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
from raydd.methods import method, method_names
from raydd.methods.base import Method
from raydd.types import Candidate, Network, Score, SyntheticSet, Update
from tests.runs import CONFIG, assert_equal_runs, but, execution, faults, go, with_networks

pytestmark = pytest.mark.usefixtures("ray_cluster")
# No part of an installed package: its objects travel whole.
ray.cloudpickle.register_pickle_by_value(__import__(__name__, fromlist=["_"]))

STEP = 4
# Long enough that the news of the first step reach the client while later steps are under way.
LONG = 600


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
    """A method whose process is killed in the middle of one answer: the first that is asked for `part` of `step`.

    The answer has been computed by then, and what the method keeps is lost with it.
    """

    method: Method
    part: str
    flag: Path
    step: int = STEP

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
        if part == self.part and draws.key[1] == self.step:
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

    services: Any
    part: str
    flag: Path
    step: int = STEP

    def __post_init__(self) -> None:
        self.flag.touch()

    def executor(self, factory: Callable[[], Method], independent: bool = False) -> RayExecutor:
        part, flag, step = self.part, self.flag, self.step
        return self.services.executor(lambda: Mortal(factory(), part, flag, step), independent)

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


@dataclass
class Several:
    """The method of the run that the workers serve now: the factory in `file` says which, and whoever is asked first builds it."""

    file: Path
    packed: bytes = b""
    made: Any = None

    def __getattr__(self, name: str) -> Any:
        packed = self.file.read_bytes()
        if packed != self.packed:
            self.packed, self.made = packed, ray.cloudpickle.loads(packed)()
        return getattr(self.made, name)


class Kept:
    """Services whose workers serve runs of several methods, so that they start once. A run has the first `workers` of three."""

    def __init__(self, file: Path):
        # They ask for no CPU of the cluster, so that other tests find room beside them.
        self.workers, self._file, self._services = 3, file, RayServices(3, WorkerOptions(threads=0))
        self.made = self._services.executor(lambda: Several(file))
        self._slots = self.made._pool._crew.slots

    def executor(self, factory: Callable[[], Method], independent: bool = False) -> Any:
        self._file.write_bytes(ray.cloudpickle.dumps(factory))
        # As a new executor of so many workers, but for the numbers of its parcels, which the workers must not meet again.
        anew = {"_workers": self.workers, "_scored_by": {}, "_looks_ahead": independent and self.workers > 1, "_ahead": None, "_next": None}
        vars(self.made).update(anew)
        self.made._pool._crew.slots = self._slots[: self.workers]
        return Lent(self.made)

    def close(self) -> None:
        self.made._pool._crew.slots = self._slots
        self.made.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._services, name)


@dataclass(frozen=True)
class Lent:
    """An executor that a run does not close."""

    executor: RayExecutor

    def close(self) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return getattr(self.executor, name)


NETWORK_METHODS = [name for name in method_names() if method(name).networks is not None]
# Each method loses a worker once: how many there are, and what the worker was asked in the second of three steps.
KILLS = {
    "cafe": (3, "update"),
    "dc": (2, "update"),
    "dm": (1, "score"),
    "dream": (3, "target"),
    "dreamplus": (2, "advance"),
    "dsa": (1, "advance"),
    "idc": (3, "advance"),
}


def short(name: str) -> Config:
    return with_networks(name, steps=3, dc__outer=3, idc__inner_steps=3)


@pytest.fixture(scope="module")
def inline(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The run of a method without Ray."""

    @cache
    def made(name: str) -> Path:
        path = tmp_path_factory.mktemp("inline") / name
        go(path, path.parent, short(name))
        return path

    return made


@pytest.fixture(scope="module")
def kept(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kept]:
    """Workers for all methods."""
    services = Kept(tmp_path_factory.mktemp("kept") / "factory")
    yield services
    services.close()


@pytest.mark.parametrize("name", NETWORK_METHODS)
def test_networks_on_workers(name: str, inline: Callable[[str], Path], kept: Kept, tmp_path: Path) -> None:
    """Every method inline and on one, two and three workers: the same to the bit."""
    for kept.workers in (1, 2, 3):
        path = tmp_path / str(kept.workers)
        go(path, tmp_path, short(name), kept)
        assert_equal_runs(path, inline(name))
        assert faults(path) == []


@pytest.mark.parametrize("name", NETWORK_METHODS)
def test_networks_on_workers_of_which_one_is_killed(name: str, inline: Callable[[str], Path], kept: Kept, tmp_path: Path) -> None:
    kept.workers, part = KILLS[name]
    services = MortalServices(kept, part, tmp_path / "flag", step=1)
    go(tmp_path / "killed", tmp_path, short(name), services)
    assert not services.flag.exists(), "nobody was killed"
    assert_equal_runs(tmp_path / "killed", inline(name))
    assert "death" in [fault["kind"] for fault in faults(tmp_path / "killed")]
