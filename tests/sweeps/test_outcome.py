"""sweep.json, the table and best.toml from run folders whose content is known."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raydd.actors.trial import TrialPlan
from raydd.config import Execution, override, to_dict
from raydd.errors import ConfigError
from raydd.files import atomic_write_json
from raydd.recipes import load_recipe
from raydd.report import sweep as page
from raydd.report import sweepdata
from sweeping import Arm, Question, outcome
from sweeping.table import markdown
from tests.sweeps.runs_by_hand import CONFIG, a_run, fault, resumed

QUESTION = Question("toy", "Which is better?", "digits-mtt-ipc1", lambda options: [])
ARMS = [
    Arm("base", {"selection.candidates": 1}, {"M": 1}, "digits-mtt-ipc1", baseline=True),
    Arm("M=3", {"selection.candidates": 3}, {"M": 3}, "digits-mtt-ipc1"),
]


def plan(folder: Path) -> TrialPlan:
    return TrialPlan(runs=str(folder / "runs"), bases={"digits-mtt-ipc1": to_dict(CONFIG)}, execution=Execution(workers=0))


def orders(folder: Path) -> list[outcome.Order]:
    """Two arms, two seeds."""
    return [outcome.order_for(plan(folder), arm, seed)[1] for arm in ARMS for seed in (0, 1)]


def trial_of(folder: Path, order: outcome.Order, **said: Any) -> dict[str, Any]:
    return outcome.trial_record(replace(order, **said) if said else order, folder, "no room")


@pytest.fixture
def found(tmp_path: Path) -> dict[str, Any]:
    """base: both seeds finished. M=3: one finished, one that never started."""
    own = orders(tmp_path)
    for order, last in zip(own[:3], (0.5, 0.6, 0.8), strict=True):
        a_run(order.run, 4, {0: 0.1, 2: 0.45, 4: last})
    trials = [trial_of(tmp_path, order) for order in own]
    return outcome.write(tmp_path, outcome.summary(QUESTION, "digits-mtt-ipc1", {}, ARMS, trials), plan(tmp_path))


def test_arms_are_ranked_with_mean_and_spread_over_seeds(found: dict[str, Any]) -> None:
    best, base = found["arms"]
    assert (best["arm"], best["rank"], best["finished"], best["trials"]) == ("M=3", 1, 1, 2)
    assert base["accuracy_mean"] == pytest.approx(0.55) and base["accuracy_std"] == pytest.approx(0.05)
    assert base["random_accuracy_mean"] == 0.3 and best["factors"] == {"M": 3}
    assert found["factors"] == {"M": [1, 3]} and found["target_accuracy"] == pytest.approx(0.55)
    # The mean of one seed reaches 0.55 at its last point: 4 steps of half a second, 3 scores and 1 update each.
    assert best["to_equal_accuracy"] == {"step": 4, "device_seconds": 2.0, "passes": 16}


def test_curves_have_what_the_steps_up_to_them_cost(found: dict[str, Any]) -> None:
    trial = found["trials"][0]
    assert [point["step"] for point in trial["curve"]] == [0, 2, 4]
    assert [point["device_seconds"] for point in trial["curve"]] == [0.0, 1.0, 2.0]
    assert [point["passes"] for point in trial["curve"]] == [0, 8, 16]
    assert trial["steps_to_95"] == 4 and trial["peak_accuracy"] == 0.5 and trial["wall_seconds"] == 9.0
    assert trial["run"].startswith("runs/base-seed0-")


def test_workers_multiply_the_seconds(tmp_path: Path) -> None:
    order = orders(tmp_path)[0]
    a_run(order.run, 4, {4: 0.5}, workers=3)
    assert trial_of(tmp_path, order)["device_seconds"] == 6.0


def test_what_never_started_is_a_failure_with_a_reason(found: dict[str, Any]) -> None:
    trial = found["trials"][3]
    assert (trial["status"], trial["reason"], trial["run"], trial["accuracy_mean"]) == ("never started", "no room", None, None)
    assert not found["complete"]


def test_the_file_is_plain_json(found: dict[str, Any], tmp_path: Path) -> None:
    written = json.loads((tmp_path / "sweep.json").read_text())
    assert written == json.loads(json.dumps(found)) and written["format"] == outcome.FORMAT == 2 and written["environment"]


def test_the_report_reads_what_is_written(found: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "_small", lambda figure: b"")
    assert outcome.FORMAT == sweepdata.FORMAT
    text = page.write_sweep_report(tmp_path).read_text()
    assert "Which is better?" in text and "80.0 %" in text and "no room" in text and "+30.0" in text


def test_the_best_settings_are_a_recipe(found: dict[str, Any], tmp_path: Path) -> None:
    recipe = load_recipe(str(tmp_path / "best.toml"))
    wanted = override(CONFIG, {"selection.candidates": 3, "recipe": "best", "seed": 0})
    assert recipe.config == wanted and "80.00%" in recipe.expected
    assert found["best"]["arm"] == "M=3" and found["best"]["config"]["selection"]["candidates"] == 3


def test_the_table_has_a_row_for_every_arm(found: dict[str, Any]) -> None:
    text = markdown(found)
    assert "| M=3 | 80.00% ± 0.00% | 30.00% | +30.0 ± 0.0 over base, 1 of 1 | 1 of 2 |" in text and "base (baseline)" in text


def test_states_of_trials(tmp_path: Path) -> None:
    first, second, third, fourth = orders(tmp_path)
    for order in (first, second, third):
        a_run(order.run, 3, {0: 0.1, 2: 0.4}, complete=False)
    atomic_write_json(second.run / outcome.STOPPED, {"step": 2, "reason": "behind the others"})
    states = [
        trial_of(tmp_path, first),
        trial_of(tmp_path, second),
        trial_of(tmp_path, third, failure="it diverged"),
        trial_of(tmp_path, fourth, failure="the data are gone"),
    ]
    assert [state["status"] for state in states] == ["interrupted", "stopped", "failed", "failed"]
    assert "--resume" in states[0]["reason"] and [s["reason"] for s in states[1:]] == [
        "behind the others",
        "it diverged",
        "the data are gone",
    ]
    assert states[0]["accuracy_mean"] == 0.4 and states[0]["steps"] == 3


def test_resumptions_and_faults_are_counted(tmp_path: Path) -> None:
    order = orders(tmp_path)[0]
    a_run(order.run, 4, {4: 0.5})
    resumed(order.run, 2)
    fault(order.run)
    record = trial_of(tmp_path, order)
    assert (record["resumed"], record["faults"], record["forks"]) == (2, 1, [])


def test_only_complete_runs_of_the_same_settings_count_as_finished(tmp_path: Path) -> None:
    given, order = outcome.order_for(plan(tmp_path), ARMS[0], 0)
    config = plan(tmp_path).config(given)
    assert not outcome.is_finished(order, config)
    a_run(order.run, 4, {4: 0.5}, config=config)
    assert outcome.is_finished(order, config)
    assert not outcome.is_finished(order, override(config, {"steps": 8}))
    assert not outcome.is_finished(order, override(config, {"evaluation.nets": 9}))


def test_a_damaged_run_is_told_of(tmp_path: Path) -> None:
    order = orders(tmp_path)[0]
    folder = a_run(order.run, 4, {4: 0.5})
    folder.metrics.write_text("{}\nnonsense\n{}\n")
    record = trial_of(tmp_path, order)
    assert record["status"] == "failed" and "line 2 is damaged" in record["reason"]


def test_unknown_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"mtt\.rate is not a setting"):
        plan(tmp_path).config({"recipe": "digits-mtt-ipc1", "seed": 0, "settings": {"mtt.rate": 1}})
