"""Looking ahead: with idle workers the coming network and its targets are found beside an update, and no bit changes."""

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import ray

from raydd.actors.crew import Answer
from raydd.actors.executor import RayExecutor
from raydd.actors.options import WorkerOptions
from raydd.actors.packing import unpack
from raydd.actors.worker import Worker
from raydd.config import Config, SelectionConfig
from raydd.executor import InlineExecutor
from tests.methods.contract import case, same, settings, walk


@dataclass
class Pool:
    """A pool of workers in this process; notes what each is asked together with others, and what updates know beforehand."""

    factory: Any
    workers: int
    log: list[list[str]] = field(default_factory=list)
    aimed: list[bool] = field(default_factory=list)

    def __post_init__(self) -> None:
        plain = Worker.__ray_metadata__.modified_class
        self._workers = [plain(index, ray.cloudpickle.dumps(self.factory), 1, "cpu") for index in range(self.workers)]
        for worker in self._workers:
            worker.ready()

    def ask(self, method: str, arguments: list, prefers: list) -> list[Answer]:
        return self.ask_each([(method, each) for each in arguments], prefers)

    def ask_each(self, requests: list, prefers: list) -> list[Answer]:
        self.log.append([method for method, _ in requests])
        self.aimed += [self._aims(*arguments) for method, arguments in requests if method == "update"]
        found = [getattr(self._workers[worker], method)(*arguments) for (method, arguments), worker in zip(requests, prefers, strict=True)]
        return [Answer(place, value, worker) for place, (value, worker) in enumerate(zip(found, prefers, strict=True))]

    def _aims(self, parcel: Any, candidate: bytes) -> bool:
        """Whether the network of an update knows the targets of that very step and candidate."""
        asked = unpack(candidate)
        key = asked.network.memory.get("target.key")
        return key is not None and key.tolist() == [*unpack(parcel.draws).key, asked.index]


@pytest.fixture
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raydd.actors.executor.WorkerPool", lambda factory, workers, group, options: Pool(factory, workers))
    monkeypatch.setattr("raydd.actors.executor.ray.put", lambda value: value)


def run(config: Config, workers: int) -> tuple[Any, Pool]:
    executor = RayExecutor(lambda: made(config), workers, WorkerOptions(), independent=True)
    return walk(config, executor), executor._pool


def made(config: Config) -> Any:
    found = case(config.method)
    return found.entry.build(config, found.resources)


TWO = SelectionConfig(policy="dynadistill", candidates=2, pool=3)


@pytest.mark.usefixtures("_in_this_process")
@pytest.mark.parametrize(
    ("name", "selection", "workers"),
    [
        ("idc", SelectionConfig(slots="put_back", max_age=2), 3),
        ("idc", TWO, 2),
        ("idc", replace(TWO, slots="train_all"), 3),
        ("idc", replace(TWO, every=2, common_draws=False), 3),
        ("dreamplus", SelectionConfig(), 3),
        ("dreamplus", replace(TWO, every=2), 4),
    ],
)
def test_looking_ahead_changes_nothing(name: str, selection: SelectionConfig, workers: int) -> None:
    config = replace(settings(name, steps=5), selection=selection)
    assert same(run(config, workers)[0], walk(config, InlineExecutor(made(config))))


@pytest.mark.usefixtures("_in_this_process")
def test_what_is_done_beside_what() -> None:
    config = settings("idc", idc__inner_steps=4, steps=8)
    _, pool = run(config, 3)
    lifetime = [["begin"], ["prepare"], ["update", "advance"], ["advance", "target"], *[["update", "advance", "target"]] * 3]
    assert pool.log == lifetime * 2
    assert pool.aimed == [False, True, True, True] * 2
    for sign in (-1.0, 1.0):  # the first candidate wins, and the second
        _, several = run(replace(config, steps=4, selection=replace(TWO, policy="greedy", sign=sign)), 3)
        assert several.aimed == [False, True, True, True]
    _, pool = run(config, 2)
    assert pool.log == [["begin"], ["prepare"], *[["update", "advance"]] * 4] * 2 and not any(pool.aimed)
    _, pool = run(config, 1)
    assert pool.log == [["begin"], ["prepare"], *[["update"], ["advance"]] * 3, ["update"]] * 2
