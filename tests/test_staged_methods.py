"""Stages over every base method: one stage is the base method, an extended run equals a whole one, and so does one on Ray workers."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from raydd import artifact, launch
from raydd.actors.options import WorkerOptions
from raydd.actors.services import RayServices
from raydd.config import Config
from raydd.files import read_json
from raydd.methods import method
from raydd.methods.base import method_names
from raydd.progressive import up_to
from raydd.setup import MethodFactory, expert_store, initial_set, prepare
from raydd.stage_files import stage_path
from tests.methods.plain_loop import base_method
from tests.runs import CONFIG, assert_equal_runs, but, execution, faults, go, metrics, with_networks
from tests.staged import assert_frozen, config_of, first_stage_store, stage_sets

pytestmark = pytest.mark.usefixtures("no_report")

EVERY = pytest.mark.parametrize("name", method_names())
Whole = Callable[[str], Path]


@pytest.fixture(scope="module")
def whole(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The run of three stages of a method in this process, made when it is first asked for."""
    made: dict[str, Path] = {}

    def run(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp("whole") / name
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("raydd.session.write_report", lambda path: None)
                go(made[name], store, config_of(name))
        return made[name]

    return run


@EVERY
def test_stages_of_every_method(name: str, whole: Whole, store: Path, tmp_path: Path) -> None:
    """Images of a stage move in it and never again; each stage has its own start; stopped after every step it is the same."""
    path = whole(name)
    assert_frozen(path)
    assert [record["stage"] for record in metrics(path)] == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    found = artifact.read(path / "synthetic.safetensors")
    starts = found.initial_images.unflatten(0, (10, 3))
    assert not torch.equal(starts[:, 0], starts[:, 1]) and not torch.equal(starts[:, 1], starts[:, 2])
    assert (found.synthetic.images != found.initial_images).flatten(1).any(1).all()
    if name not in ("mtt", "dreamplus"):
        return
    steps = []
    while not steps or steps[-1] < 9:
        steps.append(go(tmp_path / "run", store, config_of(name), should_stop=iter([False] * 2 + [True] * 99).__next__)["steps"])
    assert_equal_runs(tmp_path / "run", path)


def base(name: str) -> Config:
    """Five steps of a base method: one candidate, no setting of stages."""
    alone = {"selection__policy": "uniform", "selection__candidates": 1}
    if name == "mtt":
        return but(CONFIG, steps=5, **alone)
    return with_networks(name, selection__pool=None, selection__slots=None, **alone)


@EVERY
def test_one_stage_is_the_base_method(name: str, store: Path, tmp_path: Path) -> None:
    """Whatever the settings of stages say, and against the base method written out."""
    config, entry = base(name), method(name)
    stages = {"stages__transition": False, "stages__scale_lr": True, "stages__networks": 3, "stages__transition_epochs": 1}
    result = go(tmp_path / "run", store, but(config, stages__count=1, **stages))
    assert result["complete"] and "stages" not in result
    found = artifact.read(tmp_path / "run" / "synthetic.safetensors").synthetic
    setup = prepare(config, execution(tmp_path / "run", store))
    built = MethodFactory.of(setup, None if entry.networks else expert_store(setup))()
    expected = base_method(config, entry, built, initial_set(setup))
    assert torch.equal(found.images, expected.images) and torch.equal(found.step_size, expected.step_size)
    assert not torch.equal(found.images, initial_set(setup).images)


@EVERY
def test_a_run_that_is_extended_equals_one_that_asked_for_all_stages(name: str, whole: Whole, store: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    go(path, store, config_of(name, stages__count=1))
    ours, first = (artifact.read(file).synthetic for file in (path / "synthetic.safetensors", stage_path(whole(name), 1)))
    assert torch.equal(ours.images, first.images) and torch.equal(ours.step_size, first.step_size)
    assert metrics(path) == metrics(whole(name))[:3]
    for added, kept in ((1, 0), (1, 1)):
        before = [stage_path(path, stage).read_bytes() for stage in range(1, kept + 1)]
        launch.extend(path, added, execution=execution(path, store))
        assert [stage_path(path, stage).read_bytes() for stage in range(1, kept + 1)] == before
    assert_equal_runs(path, whole(name))


# CAFE ends a stage when its network lifetimes are over, however many steps are left of it.

EARLY = {"steps": 20, "cafe__iterations": 2, "cafe__window": 3, "cafe__outer_range": 0.01, "stages__count": 2}


def test_stages_that_end_early(tmp_path: Path) -> None:
    config, path, store = config_of("cafe", **EARLY), tmp_path / "whole", tmp_path / "store"
    result = go(path, store, config)
    steps = [(record["stage"], record["step"]) for record in metrics(path)]
    taken = {stage: [step for own, step in steps if own == stage] for stage in (1, 2)}
    # Two lifetimes of at most two updates in each stage; the second stage counts on from step 20, with streams of its own.
    assert 2 <= len(taken[1]) <= 4 and 2 <= len(taken[2]) <= 4
    assert [own[0] for own in taken.values()] == [0, 20] and result["complete"]
    assert result["steps"] == taken[2][-1] + 1
    assert_frozen(path, 2)

    halting, done = tmp_path / "halting", []
    while not done or not done[-1]["complete"]:
        assert len(done) < 20
        done.append(go(halting, store, config, should_stop=iter([False] * 2 + [True] * 99).__next__))
    stops = [found["steps"] for found in done[:-1]]
    assert min(stops) < 4 and 20 < max(stops) < result["steps"], "stopped in both stages"
    assert metrics(halting) == metrics(path) and done[-1]["images_sha256"] == result["images_sha256"]

    launch.extend(path, 1, execution=execution(path, store))
    go(tmp_path / "three", store, but(config, stages__count=3))
    assert read_json(path / "result.json")["images_sha256"] == read_json(tmp_path / "three" / "result.json")["images_sha256"]
    assert metrics(path) == metrics(tmp_path / "three") and metrics(path)[len(steps)]["step"] == 40
    assert torch.equal(up_to(stage_sets(path, 3)[2], 2).images, stage_sets(halting, 2)[1].images)


ON_RAY = [pytest.param(name, marks=[] if name == "idc" else pytest.mark.slow) for name in ("idc", "dream", "dreamplus", "dc", "dm", "cafe")]


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("name", ON_RAY)
def test_stages_on_two_workers(name: str, whole: Whole, store: Path, tmp_path: Path) -> None:
    """Start networks are trained by the workers too."""
    go(tmp_path / "run", first_stage_store(store, tmp_path / "store"), config_of(name), RayServices(2, WorkerOptions()))
    assert_equal_runs(tmp_path / "run", whole(name))
    assert faults(tmp_path / "run") == []
