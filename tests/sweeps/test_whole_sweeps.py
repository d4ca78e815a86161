"""Whole sweeps in processes of their own: every smoke test, and what ends a sweep in its middle. Slow.

A sweep that was killed is taken up again and ends with the images that an undisturbed run has, bit for bit; that it did not begin again
shows in its records.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raydd.config import override
from raydd.files import read_json, read_lines
from raydd.recipes import load_recipe
from sweeping.question import SMALL
from tests.runs import execution
from tests.sweeps import SWEEPS
from tests.sweeps.test_questions import SCRIPTS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
ENVIRON = {**os.environ, "RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
SETTINGS = {**SMALL, "steps": 40, "evaluation.every": 20}
FAST = ["--set", "checkpoint_every=2", "--report-every", "2", "--max-concurrent", "2"]


def command(script: str, *arguments: str | Path) -> list[str]:
    return [sys.executable, str(SWEEPS / f"{script}.py"), *map(str, arguments)]


def sweep(script: str, *arguments: str | Path, code: int = 0, others: tuple[int, ...] = ()) -> str:
    """Run a script to its end; its output."""
    done = subprocess.run(command(script, *arguments), env=ENVIRON, capture_output=True, text=True, timeout=500)
    if done.returncode not in (code, *others):
        pytest.fail(f"exit code {done.returncode}\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}")
    return done.stdout + done.stderr


def found(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "sweep.json").read_text())


def given(settings: dict[str, Any] = SETTINGS) -> list[str]:
    return [part for name, value in settings.items() for part in ("--set", f"{name}={json.dumps(value)}")]


def undisturbed(path: Path, store: Path, seed: int = 0, **settings: Any) -> str:
    """The sha-256 of the images of the same run without Ray."""
    from raydd.launch import distill

    config = override(load_recipe("digits-mtt-ipc1").config, {**SETTINGS, "seed": seed, **settings})
    return distill(config, execution(path, store))["images_sha256"]


def wait_for(happened: Callable[[], Any], process: subprocess.Popen[str], seconds: float = 200.0) -> Any:
    """What `happened()` gives once it gives something. Fails when the process ends first."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = happened()
        if value:
            return value
        assert process.poll() is None, (process.returncode, process.stdout and process.stdout.read()[-4000:])
        time.sleep(0.1)
    raise AssertionError(f"not within {seconds} s")


def checkpoints(folder: Path, step: int) -> list[Path]:
    """Checkpoints of the sweep's runs from this step on."""
    return [path for path in folder.glob("runs/*/checkpoints/step_*.safetensors") if int(path.stem.split("_")[1]) >= step]


def start(script: str, *arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(command(script, *arguments), env=ENVIRON, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    process.stdout.close()


def went_on(run: Path) -> bool:
    """Whether a run was taken up after its first step, and has every step once."""
    resumed = read_json(run / "environment.json").get("resumed", [])
    steps = [record["step"] for record in read_lines(run / "metrics.jsonl")]
    return bool(resumed) and all(entry["step"] > 0 for entry in resumed) and steps == list(range(len(steps)))


@pytest.mark.parametrize("script", SCRIPTS)
def test_smoke(script: str, tmp_path: Path) -> None:
    sweep(script, "--smoke-test", "--storage", tmp_path)
    content = found(tmp_path / script)
    assert content["complete"] and {trial["status"] for trial in content["trials"]} <= {"finished", "stopped"}
    assert all(trial["curve"] and 0 <= trial["accuracy_mean"] <= 1 for trial in content["trials"])
    assert (tmp_path / script / "table.md").exists() and load_recipe(str(tmp_path / script / "best.toml"))
    assert list((tmp_path / script).rglob("events.out.tfevents.*")) and (tmp_path / script / "report.html").exists()
    stores = list((tmp_path / "store").glob("*/expert_*.arrow")) if script != "table1" else [None]
    assert stores


def test_killed_and_resumed(tmp_path: Path) -> None:
    """The process of the sweep is killed, and with it Ray; the second time everything is done again from the checkpoints."""
    arguments = ["--storage", tmp_path, "--candidates", "1", "2", *FAST, *given()]
    process = start("candidates", *arguments, "--workers", "0")
    wait_for(lambda: checkpoints(tmp_path / "candidates", 8), process)
    kill(process)
    assert "--resume" in sweep("candidates", *arguments, "--workers", "0", code=2)
    sweep("candidates", *arguments, "--workers", "0", "--resume")
    trials = found(tmp_path / "candidates")["trials"]
    assert [trial["status"] for trial in trials] == ["finished"] * 2 and max(trial["resumed"] for trial in trials) > 0
    assert any(went_on(tmp_path / "candidates" / trial["run"]) for trial in trials)
    base = next(trial for trial in trials if trial["arm"] == "M=1")
    assert base["images_sha256"] == undisturbed(tmp_path / "plain", tmp_path / "store")
    before = found(tmp_path / "candidates")["trials"]
    sweep("candidates", *arguments, "--workers", "0", "--resume")  # nothing is left
    assert [trial["images_sha256"] for trial in found(tmp_path / "candidates")["trials"]] == [t["images_sha256"] for t in before]


def test_a_trial_that_dies_goes_on_from_its_run(tmp_path: Path) -> None:
    """The process that holds a run is killed; Tune starts the trial again."""
    arguments = ["--storage", tmp_path, "--candidates", "1", *FAST, *given(), "--workers", "0"]
    process = start("candidates", *arguments)
    run = wait_for(lambda: checkpoints(tmp_path / "candidates", 8), process)[0].parents[1]
    holder = int((run / ".lock").read_text().split()[0])
    os.kill(holder, signal.SIGKILL)
    assert process.wait(300) == 0, process.stdout.read()[-4000:]
    process.stdout.close()
    (trial,) = found(tmp_path / "candidates")["trials"]
    assert trial["status"] == "finished" and trial["resumed"] == 1 and went_on(run)
    assert trial["images_sha256"] == undisturbed(tmp_path / "plain", tmp_path / "store")


def test_stopped_by_ctrl_c(tmp_path: Path) -> None:
    """What was done is written down, the exit code says that something is left, and the same command carries on."""
    arguments = ["--storage", tmp_path, "--candidates", "1", *FAST, *given(), "--workers", "0"]
    process = start("candidates", *arguments)
    wait_for(lambda: checkpoints(tmp_path / "candidates", 8), process)
    process.send_signal(signal.SIGINT)
    told = process.communicate(timeout=200)[0]
    assert process.returncode == 130, told[-4000:]
    (trial,) = found(tmp_path / "candidates")["trials"]
    assert trial["status"] == "interrupted" and trial["steps"] >= 8 and "Traceback" not in told
    sweep("candidates", *arguments, "--resume")
    (trial,) = found(tmp_path / "candidates")["trials"]
    assert trial["status"] == "finished" and went_on(tmp_path / "candidates" / trial["run"])


def test_a_search_is_restored_by_tune(tmp_path: Path) -> None:
    space = ["--space", "mtt.lr_img=loguniform(5,50)", "--num-samples", "3", "--searcher", "random"]
    arguments = ["--storage", tmp_path, *space, "--scheduler", "none", *FAST, *given(), "--workers", "0", "--max-concurrent", "1"]
    process = start("search", *arguments)
    wait_for(lambda: len({path.parents[1] for path in checkpoints(tmp_path / "search", 8)}) == 2, process)
    kill(process)
    before = {path.name for path in (tmp_path / "search" / "runs").iterdir()}
    sweep("search", *arguments, "--resume")
    content = found(tmp_path / "search")
    assert [trial["status"] for trial in content["trials"]] == ["finished"] * 3
    after = {path.name for path in (tmp_path / "search" / "runs").iterdir()}
    assert before <= after and len(after) == 3  # the same settings again, in the same runs
    assert sum(trial["resumed"] for trial in content["trials"]) >= 1


def test_optuna_draws_the_settings(tmp_path: Path) -> None:
    """Its settings reach the runs, and what it has drawn is remembered: taken up again, a finished search draws nothing more."""
    space = ["--space", "mtt.lr_img=loguniform(5,50)", "--space", "selection.candidates=choice(1,3)", "--num-samples", "3"]
    arguments = ["--storage", tmp_path, *space, "--searcher", "optuna", "--scheduler", "none", *FAST, *given({**SETTINGS, "steps": 4})]
    sweep("search", *arguments, "--workers", "0")
    trials = found(tmp_path / "search")["trials"]
    assert [trial["status"] for trial in trials] == ["finished"] * 3
    for trial in trials:
        assert 5 <= trial["settings"]["mtt.lr_img"] <= 50 and trial["settings"]["selection.candidates"] in (1, 3)
        config = read_json(tmp_path / "search" / trial["run"] / "config.json")["config"]
        assert config["mtt"]["lr_img"] == trial["settings"]["mtt.lr_img"]
        assert config["selection"]["candidates"] == trial["settings"]["selection.candidates"]
    assert len({trial["settings"]["mtt.lr_img"] for trial in trials}) == 3
    sweep("search", *arguments, "--workers", "0", "--resume")
    again = found(tmp_path / "search")["trials"]
    assert {trial["images_sha256"] for trial in again} == {trial["images_sha256"] for trial in trials}  # Tune restores them in any order


def test_asha_ends_what_falls_behind(tmp_path: Path) -> None:
    """Rates at which images move, and rates at which they hardly do. No value comes twice: equal settings are one run."""
    space = ["--space", "mtt.lr_img=loguniform(0.001,50)", "--num-samples", "5", "--scheduler", "asha"]
    settings = {**SETTINGS, "steps": 20, "evaluation.every": 2, "evaluation.epochs": 30, "mtt.syn_steps": 10}
    sweep("search", "--storage", tmp_path, *space, *FAST, *given(settings), "--workers", "0")
    trials = found(tmp_path / "search")["trials"]
    stopped = [trial for trial in trials if trial["status"] == "stopped"]
    assert stopped and all(trial["steps"] < 20 and "behind" in trial["reason"] for trial in stopped)
    assert {trial["status"] for trial in trials} <= {"stopped", "finished"}


def test_a_population_forks_runs_and_says_so(tmp_path: Path) -> None:
    space = ["--space", "mtt.lr_img=loguniform(0.001,50)", "--num-samples", "3", "--scheduler", "pbt"]
    settings = {**SETTINGS, "steps": 40, "evaluation.every": 4, "evaluation.epochs": 20}
    sweep("search", "--storage", tmp_path, *space, "--report-every", "4", *given(settings), "--workers", "0", "--max-concurrent", "3")
    trials = found(tmp_path / "search")["trials"]
    assert [trial["status"] for trial in trials] == ["finished"] * 3
    forked = [trial for trial in trials if trial["forks"]]
    assert forked
    for trial in forked:
        run = tmp_path / "search" / trial["run"]
        assert {"run", "step", "changed"} == trial["forks"][-1].keys()
        assert any(fault["kind"] == "fork" for fault in read_lines(run / "faults.jsonl"))
        assert [record["step"] for record in read_lines(run / "metrics.jsonl")] == list(range(40))


def test_too_large_a_trial_is_refused_in_seconds(tmp_path: Path) -> None:
    told = sweep("candidates", "--smoke-test", "--storage", tmp_path, "--gpus", "1", "--device", "cuda", code=2)
    assert "GPU" in told


def test_what_cannot_start_in_time_is_a_failure_with_a_reason(tmp_path: Path) -> None:
    arguments = ["--storage", tmp_path, *given(), "--candidates", "1", "2", "--workers", "0", "--max-concurrent", "1"]
    sweep("candidates", *arguments, "--time-budget", "1", code=2, others=(130,))  # the first trial may have begun
    trials = found(tmp_path / "candidates")["trials"]
    assert any(trial["status"] == "never started" and trial["reason"] for trial in trials)
