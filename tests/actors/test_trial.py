"""Trials without Tune: what they ask for, what their runs are called, what they report, and how a population forks runs."""

import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raydd.actors import fork, trial
from raydd.actors.trial import TrialPlan, run_name
from raydd.actors.trial_reports import PICTURE, ObservedFolder, TrialReports
from raydd.config import Config, Execution, override, to_dict
from raydd.errors import ConfigError
from raydd.files import read_json, read_lines
from raydd.recipes import load_recipe
from raydd.runfolder import RunFolder
from raydd.services import InlineServices
from raydd.setup import prepare
from tests import runs
from tests.sweeps.runs_by_hand import CONFIG, a_run, evaluation, record

BASE = load_recipe("digits-mtt-ipc1").config


def plan(**settings: Any) -> TrialPlan:
    return TrialPlan(**{"runs": "/runs", "bases": {"digits": to_dict(BASE)}, "execution": Execution(workers=0), **settings})


def order(seed: int = 0, arm: str = "T=0.5", **settings: Any) -> dict[str, Any]:
    return {"arm": arm, "recipe": "digits", "seed": seed, "settings": {name.replace("__", "."): v for name, v in settings.items()}}


def name(**settings: Any) -> str:
    given = order(**settings)
    return run_name(given, plan().config(given))


# What a trial asks for


def test_without_workers_a_trial_is_one_bundle() -> None:
    assert plan().bundles(order()) == [{"CPU": 1.0}]
    assert plan(gpus=0.5).bundles(order()) == [{"CPU": 1.0, "GPU": 0.5}]
    assert plan(execution=Execution(workers=0, threads=4)).bundles(order()) == [{"CPU": 4.0}]


def test_with_workers_the_driver_has_a_bundle_of_its_own() -> None:
    own = plan(execution=Execution(workers=2, threads=3), gpus=1.0, driver=True)
    assert own.bundles(order()) == [{"CPU": 1.0, "driver": 0.01}, {"CPU": 3.0, "GPU": 1.0}, {"CPU": 3.0, "GPU": 1.0}]


def test_workers_follow_the_candidates_of_the_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raydd.plan.cores", lambda: 8)
    own = plan(execution=Execution(device="cpu"))
    assert [len(own.bundles(order(selection__candidates=count))) for count in (1, 3, 5)] == [2, 4, 6]
    assert own({"order": order(selection__candidates=3)}).strategy == "PACK"
    assert replace(own, local=False)({"order": order()}).strategy == "SPREAD"


def test_numbers_of_samplers_are_plain() -> None:
    import numpy as np

    config = plan().config(order(seed=np.int64(3), mtt__lr_img=np.float64(2.5), ipc=np.int64(2)))
    assert (config.seed, config.mtt.lr_img, config.ipc) == (3, 2.5, 2) and type(config.ipc) is int


# What a run is called


def test_a_name_belongs_to_what_decides_the_images() -> None:
    assert name() == name() and name().startswith("T-0.5-seed0-")
    assert len({name(), name(seed=1), name(arm="other"), name(mtt__lr_img=7.0)}) == 4


def test_steps_and_evaluation_are_no_part_of_a_name_unless_stages_depend_on_them() -> None:
    assert name() == name(steps=999) == name(evaluation__nets=9)
    assert len({name(stages__count=2), name(stages__count=3), name(stages__count=2, steps=999)}) == 3


# What trials share


def test_what_trials_share_is_made_by_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setup = prepare(runs.CONFIG, runs.execution(tmp_path / "run", tmp_path / "store"))
    inside: list[int] = []
    most: list[int] = []

    def build(*arguments: Any) -> None:
        inside.append(1)
        time.sleep(0.1)
        most.append(len(inside))
        inside.pop()

    monkeypatch.setattr(trial, "build_experts", build)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: trial.build_shared(setup, InlineServices(setup.device), print), range(3)))
    assert most == [1, 1, 1]


def test_methods_without_experts_wait_for_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "build_experts", lambda *arguments: pytest.fail("no experts are needed"))
    setup = prepare(runs.with_networks("dm"), runs.execution(tmp_path / "run", tmp_path / "store"))
    trial.build_shared(setup, InlineServices(setup.device), print)
    assert not (tmp_path / "store").exists()


# What it reports


def reports(folder: Path, workers: int = 0, config: Config = CONFIG) -> tuple[TrialReports, list[dict[str, Any]]]:
    told: list[dict[str, Any]] = []
    return TrialReports(ObservedFolder.view(folder), config, workers, 2, told.append), told


def step(own: TrialReports, number: int, **more: Any) -> None:
    own.folder.append(record(number, **more))
    own({"phase": "distill", "done": number + 1, "total": 4, "loss": 0.1})


def test_every_so_many_steps_with_sums_over_the_whole_run(tmp_path: Path) -> None:
    a_run(tmp_path / "run", 1, {}, complete=False)  # one step before it was taken up again: 0.5 s, 3 scores and an update
    own, told = reports(tmp_path / "run", workers=2)
    for number in (1, 2, 3):
        step(own, number, seconds=1.0)
    first, last = told
    assert (first["step"], last["step"], last["timesteps_total"]) == (2, 4, 4)
    assert first["device_seconds"] == 3.0 and last["device_seconds"] == 7.0  # 1.5 and 3.5 seconds of two workers
    assert (first["passes"], last["passes"]) == (8, 16) and first["step_seconds"] == last["step_seconds"] == 1.0
    assert first["loss"] == pytest.approx(0.8) and first["entropy"] == 1.0986 and not first["finished"]


def test_an_evaluation_is_reported_when_it_comes(tmp_path: Path) -> None:
    a_run(tmp_path / "run", 0, {}, complete=False)
    own, told = reports(tmp_path / "run")
    step(own, 0)
    assert told == []
    own({"phase": "evaluation", **evaluation(1, 0.25)})
    own({"phase": "evaluation", **evaluation(1, 0.9, "random")})
    step(own, 1)
    assert [(t["accuracy"], t["evaluated_step"], t["progress"]) for t in told] == [(0.25, 1, 25)] * 2
    own({"phase": "evaluation", **evaluation(2, 0.2)})
    assert (told[-1]["accuracy"], told[-1]["best_accuracy"], told[-1]["progress"]) == (0.2, 0.25, 50)


def test_before_any_evaluation_there_is_no_accuracy(tmp_path: Path) -> None:
    a_run(tmp_path / "run", 0, {}, complete=False)
    own, told = reports(tmp_path / "run")
    step(own, 0)
    step(own, 1)
    assert math.isnan(told[0]["accuracy"]) and told[0]["progress"] == 0


def test_a_run_that_is_taken_up_knows_its_evaluations(tmp_path: Path) -> None:
    a_run(tmp_path / "run", 2, {0: 0.1, 2: 0.4}, complete=False)
    own, told = reports(tmp_path / "run")
    own.last(finished=False, failure="it diverged")
    assert (told[0]["accuracy"], told[0]["step"], told[0]["passes"], told[0]["failure"]) == (0.4, 2, 8, "it diverged")


def test_skipped_steps_cost_scores_and_go_no_further(tmp_path: Path) -> None:
    a_run(tmp_path / "run", 0, {}, complete=False)
    own, told = reports(tmp_path / "run")
    step(own, 0)
    own.folder.append(record(1, skipped=True))
    own({"phase": "distill", "done": 2, "total": 4, "loss": None})
    assert (told[0]["step"], told[0]["passes"]) == (1, 7)


def test_images_are_pictured_once_for_each_evaluation(finished_run: Path, run_copy: Path) -> None:
    own, told = reports(run_copy)
    own.last(finished=True)
    own.last(finished=True)
    assert told[0]["picture"] == str(run_copy / PICTURE) and "picture" not in told[1]
    assert (run_copy / PICTURE).read_bytes().startswith(b"\x89PNG")


# Populations


@pytest.fixture
def donor(store: Path, tmp_path: Path) -> Path:
    """A run of a population, stopped after 6 of 8 steps, with its newest checkpoint there."""
    path = tmp_path / "runs" / "search-seed0-aaaa-t1"
    left = iter([False] * 6)
    runs.go(path, store, should_stop=lambda: next(left, True), checkpoint_every=2)
    return path


def packed(donor: Path, place: Path) -> Path:
    place.mkdir()
    assert fork.pack(RunFolder.view(donor), place)
    return place


def adopt(place: Path, donor: Path, trial: str, config: Config = runs.CONFIG) -> tuple[str, str]:
    return fork.adopted(place, donor.parent, f"search-seed0-bbbb-{trial}", config, runs.execution(donor, donor))


def test_a_trials_own_run_is_carried_on(donor: Path, tmp_path: Path) -> None:
    assert adopt(packed(donor, tmp_path / "given"), donor, "t1") == (donor.name, "")


def test_anothers_run_is_forked_with_other_settings(donor: Path, store: Path, tmp_path: Path) -> None:
    config = override(runs.CONFIG, {"mtt.lr_img": 3.0})
    place = packed(donor, tmp_path / "given")
    forked, told = adopt(place, donor, "t2", config)
    path = donor.parent / forked
    assert told == f"forked from {donor.name} after 6 steps; mtt.lr_img 20.0 -> 3.0"
    assert fork.line(path) == [{"run": donor.name, "step": 6, "changed": {"mtt.lr_img": [20.0, 3.0]}}]
    assert adopt(place, donor, "t2", config) == (forked, "")  # a second attempt carries on
    result = runs.go(path, store, config, checkpoint_every=2)
    steps = read_lines(path / "metrics.jsonl")
    assert result["steps"] == 8 and [entry["step"] for entry in steps] == list(range(8))
    assert steps[:6] == read_lines(donor / "metrics.jsonl")[:6]
    assert runs.faults(path)[0]["kind"] == "fork" and read_json(path / "config.json")["config"]["mtt"]["lr_img"] == 3.0


def test_a_fork_with_nothing_changed_goes_on_as_the_donor_does(donor: Path, store: Path, tmp_path: Path) -> None:
    forked, _ = adopt(packed(donor, tmp_path / "given"), donor, "t2")
    assert runs.go(donor.parent / forked, store)["images_sha256"] == runs.go(donor, store)["images_sha256"]


def test_a_fork_of_a_fork_keeps_the_whole_line(donor: Path, tmp_path: Path) -> None:
    first, _ = adopt(packed(donor, tmp_path / "one"), donor, "t2", override(runs.CONFIG, {"mtt.lr_img": 3.0}))
    place = packed(donor.parent / first, tmp_path / "two")
    second, told = adopt(place, donor, "t3", override(runs.CONFIG, {"mtt.lr_img": 4.0}))
    assert [entry["run"] for entry in fork.line(donor.parent / second)] == [donor.name, first]
    assert "3.0 -> 4.0" in told


def test_what_shapes_a_checkpoint_cannot_change(donor: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^ipc cannot change"):
        adopt(packed(donor, tmp_path / "given"), donor, "t2", override(runs.CONFIG, {"ipc": 2}))


def test_a_run_without_a_checkpoint_has_nothing_to_hand_over(tmp_path: Path) -> None:
    a_run(tmp_path / "run", 1, {}, complete=False)
    (tmp_path / "place").mkdir()
    assert not fork.pack(RunFolder.view(tmp_path / "run"), tmp_path / "place")
