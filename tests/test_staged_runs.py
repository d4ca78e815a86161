"""Runs of several stages: what cannot be, what settings change, and runs that are stopped or killed anywhere, on Ray too."""

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from raydd import artifact, launch
from raydd.actors.options import WorkerOptions
from raydd.actors.services import RayServices
from raydd.config import needed_epochs
from raydd.distill import State, next_stage
from raydd.errors import CheckpointError, ConfigError, DivergenceError
from raydd.experts.store import Store
from raydd.files import read_json, read_lines
from raydd.progressive import up_to
from raydd.runfolder import RunFolder, images_sha256
from raydd.stage_files import stage_path
from raydd.types import SyntheticSet
from tests.runs import assert_equal_runs, but, execution, go, metrics
from tests.staged import STAGED, assert_frozen, config_of, first_stage_store, stage_sets
from tests.test_faults import MortalServices, die_once
from tests.test_resume import dies


@pytest.fixture(autouse=True)
def _no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raydd.session.write_report", lambda path: None)


@pytest.fixture(scope="module")
def staged(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("staged") / "run"
    go(path, store, STAGED)
    return path


def test_what_cannot_be_extended(staged: Path, store: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(staged, tmp_path / "run"))
    with pytest.raises(ConfigError, match=r"--stages\.add=0 must be at least 1"):
        launch.extend(path, 0)
    with pytest.raises(ConfigError, match=r"only --evaluation\.\* and where it runs may change: --mtt\.lr_img=3\.0"):
        launch.extend(path, 1, but(STAGED, mtt__lr_img=3.0))
    with pytest.raises(ConfigError, match=r"only --evaluation\.\* .* --stages\.count=4 \(the run has 3\)\. --extend .* adds stages"):
        launch.resume(path, but(STAGED, stages__count=4))
    with pytest.raises(ConfigError, match=r"--steps=5 \(the run has 3 in every stage\)"):
        launch.resume(path, but(STAGED, steps=5))
    RunFolder.create(tmp_path / "chosen", but(STAGED, steps=0, stages__count=1), execution(tmp_path / "chosen", store)).close()
    with pytest.raises(ConfigError, match="that run has no steps: a selection has no stages"):
        launch.extend(tmp_path / "chosen", 1)
    go(tmp_path / "half", store, STAGED, should_stop=iter([False, True, True, True]).__next__)
    with pytest.raises(ConfigError, match="adds stages to a finished run, and this one is not. First: raydd distill --resume"):
        launch.extend(tmp_path / "half", 1)


def test_networks_that_stages_start_from_stay_those_of_the_run(staged: Path, store: Path, tmp_path: Path) -> None:
    """They are trained as the evaluation trains, so those settings stay once a stage has started from them."""
    path = Path(shutil.copytree(staged, tmp_path / "run"))
    with pytest.raises(ConfigError, match=r"networks that stage 2 started from were trained .* now training would differ"):
        launch.extend(path, 1, but(STAGED, evaluation__batch_size=32), execution(path, store))
    launch.extend(path, 1, but(STAGED, evaluation__nets=1), execution(path, store))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda file, other: file.unlink(), r"stage_01\.safetensors is missing: later stages start from it"),
        (lambda file, other: file.write_bytes(file.read_bytes()[:-9] + bytes(9)), r"stage_01\.safetensors: altered"),
        (lambda file, other: file.write_bytes(other.read_bytes()), r"stage_01\.safetensors holds other images than this run went on from"),
    ],
)
def test_a_stage_file_that_is_missing_or_altered(change: Callable[[Path, Path], None], said: str, staged: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(staged, tmp_path / "run"))
    change(stage_path(path, 1), stage_path(path, 2))
    kept = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    with pytest.raises(CheckpointError, match=said):
        launch.extend(path, 1)
    assert {file: content for file in kept if (content := file.read_bytes()) != kept[file] and file.name != ".lock"} == {}


def test_death_at_writes_in_every_stage(staged: Path, store: Path, tmp_path: Path) -> None:
    """Inside stages, inside both transitions and between: the start networks and experts of its own store are written there too."""
    chance, seen = random.Random(1), set()
    for write in chance.sample(range(60), 5):
        path, experts = tmp_path / str(write), first_stage_store(store, tmp_path / f"store-{write}")
        RunFolder.create(path, STAGED, execution(path, experts)).close()
        if dies(path, experts, write, STAGED):
            seen.add(len(read_lines(path / "metrics.jsonl")) // 3)
            dies(path, experts, chance.randrange(12), STAGED)
            go(path, experts, STAGED)
        assert_equal_runs(path, staged)
    assert len(seen) > 1


def test_stopped_in_the_transition(staged: Path, store: Path, tmp_path: Path) -> None:
    """Networks that were finished stay; the stage begins when all are there."""
    own, seen = first_stage_store(store, tmp_path / "store"), []

    def stop() -> bool:
        return any(report["phase"] == "transition" and report["done"] for report in seen)

    result = go(tmp_path / "run", own, STAGED, should_stop=stop, report=seen.append)
    assert (result["steps"], result["complete"]) == (3, False)
    assert [report["stage"] for report in seen if report["phase"] == "transition" and report["done"]] == [2]
    go(tmp_path / "run", own, STAGED)
    assert_equal_runs(tmp_path / "run", staged)


def test_diverging_networks_of_a_later_stage_leave_the_last_state(store: Path, tmp_path: Path) -> None:
    path, wild = tmp_path / "run", but(STAGED, stages__real_lr=1e30)
    with pytest.raises(DivergenceError, match=r"Expert 0 of stage 2 diverged .* Start anew under another --run"):
        go(path, store, wild)
    result = read_json(path / "result.json")
    assert (result["steps"], result["complete"]) == (3, False)
    assert result["images_sha256"] == images_sha256(artifact.read(path / "synthetic.safetensors").synthetic.images)


def test_experts_of_later_stages_are_as_long_as_they_are_read(store: Path, tmp_path: Path) -> None:
    own, needed = first_stage_store(store, tmp_path / "store"), needed_epochs(STAGED)
    go(tmp_path / "run", own, but(STAGED, stages__count=2, steps=1, experts__epochs=needed + 1))
    lengths = {}
    for folder in own.iterdir():
        recipe = read_json(folder / "recipe.json")["recipe"]
        if "links" not in recipe:
            lengths[recipe.get("stage", 1)] = Store.open(str(own), recipe).epochs(0)
    assert lengths[1] >= needed + 1 and lengths[2] == needed


@pytest.mark.parametrize(
    "settings",
    [
        {"stages__transition": False},
        {"stages__conditioning": False},
        {"stages__scale_lr": True},
        {"stages__batch_mode": "new_first"},
    ],
)
def test_every_choice_decides_later_stages_alone(settings: dict[str, Any], staged: Path, store: Path, tmp_path: Path) -> None:
    go(tmp_path / "run", store, but(STAGED, **settings))
    assert_frozen(tmp_path / "run")
    one, two = stage_sets(staged, 3), stage_sets(tmp_path / "run", 3)
    assert torch.equal(one[0].images, two[0].images)
    assert not torch.equal(one[1].images, two[1].images)
    if settings.get("stages__transition") is False:
        epochs = [{c["epoch"] for c in record["candidates"]} for record in metrics(tmp_path / "run")]
        assert set().union(*epochs[:3]) <= set(range(6)) and set().union(*epochs[3:6]) <= set(range(6, 12))


def test_earlier_images_may_move_more_slowly(staged: Path, store: Path, tmp_path: Path) -> None:
    """The paper's A3.2: with `frozen_lr_scale` they are no longer frozen, and stage files keep what they were."""
    reports: list[dict[str, Any]] = []
    go(tmp_path / "run", store, but(STAGED, stages__frozen_lr_scale=0.1), report=reports.append)
    (warning,) = (report["text"] for report in reports if report["phase"] == "warning")
    assert "start networks were trained on earlier versions" in warning
    sets = stage_sets(tmp_path / "run", 3)
    assert torch.equal(sets[0].images, stage_sets(staged, 3)[0].images)
    moved = (up_to(sets[1], 1).images - sets[0].images).norm() / (sets[0].images.norm())
    assert 0 < moved < 0.5 and not torch.equal(up_to(sets[2], 2).images, sets[1].images)


def test_what_a_stage_learns_starts_anew() -> None:
    config = but(STAGED)
    images, labels = torch.ones(10, 1, 8, 8), torch.arange(10)
    first = State.start(SyntheticSet(images, labels, torch.tensor(0.3), torch.ones(10, dtype=torch.int64)))
    block = SyntheticSet(2 * images, labels, torch.tensor(0.1), torch.full((10,), 2))
    state = next_stage(config, first, block)
    assert (state.stage, state.step, state.step_sizes) == (2, 3, (pytest.approx(0.3),))
    assert state.synthetic is block and not state.velocity_images.any() and state.earlier.images is first.synthetic.images
    assert state.whole.images[:4, 0, 0, 0].tolist() == [1, 2, 1, 2] and state.whole.frozen == 1


# On Ray


@dataclass(frozen=True)
class MortalJobs(MortalServices):
    """A worker is killed once in the training of start networks, after the first of them is written."""

    def run_jobs(self, make_worker: Callable[[], Callable[[Any], Any]], *rest: Any) -> None:
        part, flag = self.part, self.flag

        def make() -> Callable[[Any], Any]:
            work = make_worker()

            def job(given: Any) -> Any:
                result = work(given)
                if part == "transition":
                    die_once(flag)
                return result

            return job

        self.services.run_jobs(make, *rest)


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    ("name", "workers", "part"),
    [pytest.param("mtt", 1, "update", marks=pytest.mark.slow), ("mtt", 3, "transition"), ("dsa", 2, "transition")],
)
def test_stages_on_workers_that_are_killed(name: str, workers: int, part: str, staged: Path, store: Path, tmp_path: Path) -> None:
    config, expected = config_of(name), staged
    if name != "mtt":
        expected = tmp_path / "inline"
        go(expected, tmp_path / "inline-store", config)
    own_store = first_stage_store(store, tmp_path / "store")
    services = MortalJobs(RayServices(workers, WorkerOptions()), part, tmp_path / "flag")
    go(tmp_path / "run", own_store, config, services)
    assert not services.flag.exists(), "nobody was killed"
    assert_equal_runs(tmp_path / "run", expected)
