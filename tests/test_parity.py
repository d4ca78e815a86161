"""The same bits whatever computes them: inline, one, two or three workers, and whichever worker is asked."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from raydd import artifact, launch
from raydd.actors.options import WorkerOptions
from raydd.actors.services import RayServices
from raydd.distill import State, take_step
from raydd.executor import InlineExecutor
from raydd.methods import method, mtt
from raydd.methods.base import Resources
from raydd.methods.mtt import MTT
from raydd.runfolder import images_sha256
from raydd.types import Candidate, SyntheticSet
from tests.helpers import Table, model, synthetic, table
from tests.runs import CONFIG, assert_equal_runs, but, execution, faults, go, metrics
from tests.runs import evaluations as evaluations_of

EVALUATED = but(evaluation__every=3, evaluation__at_end=True)


@pytest.fixture(autouse=True)
def _no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raydd.session.write_report", lambda path: None)


@pytest.fixture(scope="module")
def inline(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without workers and with evaluations."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("raydd.session.write_report", lambda path: None)
        path = tmp_path_factory.mktemp("inline") / "run"
        go(path, store, EVALUATED)
    return path


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_nothing(workers: int, inline: Path, store: Path, tmp_path: Path) -> None:
    result = go(tmp_path / "run", store, CONFIG, RayServices(workers, WorkerOptions()))
    assert result["images_sha256"] == images_sha256(artifact.read(inline / "synthetic.safetensors").synthetic.images)
    assert metrics(tmp_path / "run") == metrics(inline) and faults(tmp_path / "run") == []


@pytest.mark.usefixtures("ray_cluster")
def test_a_whole_run_in_a_driver_actor_with_experts_of_its_own(inline: Path, store: Path, tmp_path: Path) -> None:
    """Two workers, which train the experts too, and an evaluator beside them."""
    how = execution(tmp_path / "run", tmp_path / "store", workers=2)
    result = launch.distill(EVALUATED, how)
    assert result["complete"] and result["run"] == str(tmp_path / "run")
    assert_equal_runs(tmp_path / "run", inline)
    trained, expected = ({path.name: path.read_bytes() for path in root.rglob("*.arrow")} for root in (tmp_path / "store", store))
    assert trained == expected
    assert [record["step"] for record in evaluations_of(inline)] == [0, 3, 6, 8, 8]


def test_runs_differ_by_seed_and_by_choice(inline: Path, store: Path, tmp_path: Path) -> None:
    """That runs are equal above says something only because others are not."""
    other = [but(seed=1), but(selection__policy="uniform"), but(mtt__batch_syn=6)]
    hashes = {go(tmp_path / str(index), store, config)["images_sha256"] for index, config in enumerate(other)}
    assert len(hashes | {go(tmp_path / "same", store)["images_sha256"]}) == 4
    assert {record["chosen"] for record in metrics(inline)} == {0, 1, 2}


def test_evaluations_change_no_image(inline: Path, store: Path, tmp_path: Path) -> None:
    go(tmp_path / "run", store, CONFIG)
    assert metrics(tmp_path / "run") == metrics(inline) and evaluations_of(tmp_path / "run") == []


# One step, asked in other ways.

PLAIN = replace(CONFIG, mtt=replace(CONFIG.mtt, max_start_epoch=2, expert_epochs=1, syn_steps=4))


def fresh() -> MTT:
    network = model()
    return MTT(PLAIN, Resources(network, table(network, 4, 3), torch.device("cpu")))


class Asked(InlineExecutor):
    """Asks a fresh method for every answer, as if each worker died after it."""

    def __init__(self) -> None:
        super().__init__(fresh())

    def score(self, synthetic: SyntheticSet, candidates: list[Candidate], draws: object) -> list:
        return [fresh().score(synthetic, candidate, draws) for candidate in reversed(candidates)][::-1]

    def update(self, synthetic: SyntheticSet, candidate: Candidate, draws: object) -> object:
        return fresh().update(synthetic, candidate, draws)


class Disturbed(InlineExecutor):
    """Keeps one method, and has it answer for other sets, steps and candidates in between."""

    def update(self, synthetic: SyntheticSet, candidate: Candidate, draws: mtt.MTTDraws) -> object:
        _, step, attempt = draws.key
        stranger = mtt.draw(PLAIN, synthetic, step + 1, attempt)
        others = [
            (replace(synthetic, images=synthetic.images + 1), candidate, draws),
            (replace(synthetic, step_size=synthetic.step_size * 2), candidate, draws),
            (synthetic, candidate, stranger),
            (synthetic, replace(candidate, expert=3 - candidate.expert), draws),
        ]
        answers = []
        for other in others:
            # Nothing in common with either, so that what is kept is that of the other.
            super().update(replace(synthetic, images=synthetic.images - 1), candidate, mtt.draw(PLAIN, synthetic, 99, 0))
            super().update(*other)
            answers.append(super().update(synthetic, candidate, draws))
        assert all(torch.equal(answer.grad_images, answers[0].grad_images) for answer in answers)
        return answers[-1]


def walk(executor: InlineExecutor) -> Iterator[torch.Tensor]:
    state = State.start(synthetic(model()))
    for _ in range(3):
        state, record = take_step(PLAIN, method("mtt"), state, executor)
        yield state.synthetic.images
        yield torch.tensor([candidate["score"] for candidate in record["candidates"]])


@pytest.mark.parametrize("executor", [Asked, lambda: Disturbed(fresh())])
def test_what_a_worker_keeps_decides_nothing(executor) -> None:
    for ours, theirs in zip(walk(executor()), walk(InlineExecutor(fresh())), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("offset", [1, 3, 8])
def test_where_arrays_lie_in_memory_decides_nothing(offset: int) -> None:
    """Arrays from shared memory, from a file and from torch begin at different places of a cache line."""

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        room = torch.zeros(tensor.numel() + 32)
        begin = (-room.data_ptr() % 64) // 4 + offset
        return room[begin : begin + tensor.numel()].view(tensor.shape).copy_(tensor)

    class Moving(InlineExecutor):
        def score(self, synthetic: SyntheticSet, candidates: list[Candidate], draws: object) -> list:
            return super().score(replace(synthetic, images=moved(synthetic.images)), candidates, draws)

        def update(self, synthetic: SyntheticSet, candidate: Candidate, draws: object) -> object:
            return super().update(replace(synthetic, images=moved(synthetic.images)), candidate, draws)

    class Experts(Table):
        def theta(self, expert: int, epoch: int) -> torch.Tensor:
            return moved(super().theta(expert, epoch))

    network = model()
    experts = Experts(table(network, 4, 3).thetas)
    moving = Moving(MTT(PLAIN, Resources(network, experts, torch.device("cpu"))))
    for ours, theirs in zip(walk(moving), walk(InlineExecutor(fresh())), strict=True):
        assert torch.equal(ours, theirs)
