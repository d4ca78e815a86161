"""A run in its folder: what it shows while it goes on, and what it leaves when something goes wrong."""

import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from raydd import artifact, checkpoint, sealed
from raydd.actors.options import WorkerOptions
from raydd.actors.services import RayServices
from raydd.config import override
from raydd.errors import ConfigError, DivergenceError
from raydd.files import read_json, read_lines
from raydd.report.rundata import read_run
from raydd.report.tables import status
from raydd.runfolder import images_sha256
from raydd.services import InlineServices
from tests.commands import raydd
from tests.runs import CONFIG, assert_equal_runs, but, command, evaluations, go, metrics, with_networks

ray.cloudpickle.register_pickle_by_value(__import__(__name__, fromlist=["_"]))
CPU = torch.device("cpu")


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raydd.session.write_report", lambda path: None)


def test_a_run_in_progress_shows_its_images(store: Path, tmp_path: Path, no_report: None) -> None:
    """The result file at a checkpoint is of that checkpoint, and the report of it says that the run goes on."""
    path, seen = tmp_path / "run", []

    def look(report: dict[str, Any]) -> None:
        if report["phase"] == "distill" and report["done"] in (3, 4):
            run = read_run(path)
            kept, _ = sealed.read(path / "checkpoints" / "step_00000003.safetensors", checkpoint.KIND, checkpoint.FORMAT)
            seen.append((run.artifact.step, torch.equal(run.artifact.synthetic.images, kept["images"]), status(run)))

    go(path, store, report=look)
    assert [(step, same) for step, same, _ in seen] == [(3, True)] * 2
    assert seen[1][2].startswith("not finished: 4 of 8 steps")
    assert artifact.read(path / "synthetic.safetensors").step == 8


def test_large_result_files_are_written_less_often(store: Path, tmp_path: Path, no_report: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never more than a fiftieth of the time, by a clock that only writing moves."""
    clock, written = [0.0], []
    monkeypatch.setattr("raydd.session.time.monotonic", lambda: clock[0])

    def write(path: Path, result: artifact.Artifact) -> None:
        written.append(result.step)
        clock[0] += 1.0

    monkeypatch.setattr("raydd.session.artifact.write", write)

    def tick(report: dict[str, Any]) -> None:
        clock[0] += 10.0

    go(tmp_path / "run", store, but(steps=30), report=tick)
    # At step 3, 50 seconds after that (a step takes 10) at the next checkpoint, and so on; and at the end.
    assert written == [3, 9, 15, 21, 27, 30]


def test_a_report_that_fails_takes_nothing_away(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> None:
        raise ValueError("no such font")

    reports = []
    monkeypatch.setattr("raydd.session.write_report", fail)
    result = go(tmp_path / "run", store, report=reports.append)
    assert result["complete"] and read_json(tmp_path / "run" / "result.json")["images_sha256"] == result["images_sha256"]
    (warning,) = [report["text"] for report in reports if report["phase"] == "warning"]
    assert "no such font" in warning and f"raydd report {tmp_path / 'run'}" in warning


# Divergence

# Large images alone do not make the loss infinite: the network normalises them.
DIVERGING = {"mtt.lr_lr": 1e12, "guard.max_skips": 3}


def test_a_diverging_run_keeps_its_last_good_state(store: Path, tmp_path: Path) -> None:
    path, config = tmp_path / "run", override(CONFIG, DIVERGING)
    with pytest.raises(DivergenceError, match=r"Lower --mtt\.lr_img=\d+ or --mtt\.lr_lr=1e\+12 or --mtt\.lr_init="):
        go(path, store, config)
    steps = len(metrics(path))
    skipped = [record["skipped"] for record in metrics(path)]
    assert skipped == [False] * (steps - 3) + [True] * 3
    tensors, metadata = sealed.read(path / "checkpoints" / f"step_{steps:08d}.safetensors", checkpoint.KIND, checkpoint.FORMAT)
    assert all(torch.isfinite(tensor.float()).all() for tensor in tensors.values()) and metadata["state"]["skips"] == 3
    kept = artifact.read(path / "synthetic.safetensors").synthetic.images
    result = read_json(path / "result.json")
    assert torch.equal(kept, tensors["images"]) and result["images_sha256"] == images_sha256(kept)
    assert result["steps"] == steps and result["evaluation"] is None and (path / "report.html").exists()
    # Resumed, it takes up there and stops for the same reason.
    with pytest.raises(DivergenceError):
        go(path, store, config)
    assert [record["step"] for record in metrics(path)] == list(range(steps + 1))


def test_a_diverging_command_names_the_setting(store: Path, tmp_path: Path) -> None:
    settings = {"steps": 9, "model.width": 8, "experts.count": 3, "evaluation.at_end": False, "mtt.lr_init": 1e30, "guard.max_skips": 3}
    assert "or --mtt.lr_init=1e+30" in raydd(*command(tmp_path / "run", store, settings)[3:]).refusal()


def test_errors_travel_between_processes() -> None:
    error = pickle.loads(pickle.dumps(ConfigError(["--a=1 is bad.", "--b=2 is worse."])))
    assert str(error) == "--a=1 is bad.\n--b=2 is worse." and error.problems == ["--a=1 is bad.", "--b=2 is worse."]


# Evaluations beside the loop


@dataclass(frozen=True)
class Gated:
    """Services whose evaluator waits at a gate."""

    services: RayServices
    gate: Path

    def background(self, make_worker: Callable[[], Callable[[Any], Any]]) -> Any:
        gate = self.gate

        def make() -> Callable[[Any], Any]:
            work = make_worker()

            def evaluate(job: Any) -> Any:
                end = time.monotonic() + 120
                while not gate.exists():
                    if time.monotonic() > end:
                        raise TimeoutError("the steps wait for this evaluation")
                    time.sleep(0.01)
                return work(job)

            return evaluate

        return self.services.background(make)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.services, name)


@pytest.mark.usefixtures("ray_cluster")
def test_no_step_waits_for_an_evaluation(store: Path, tmp_path: Path, no_report: None) -> None:
    """The evaluator gets to work only after the last step, and still evaluates what it was given at each step."""
    config, path, gate, phases = but(evaluation__every=2, evaluation__at_end=True), tmp_path / "run", tmp_path / "gate", []

    def watch(report: dict[str, Any]) -> None:
        phases.append(report["phase"])
        if report["phase"] == "distill" and report["done"] == 8:
            gate.touch()

    go(path, store, config, Gated(RayServices(1, WorkerOptions()), gate), report=watch)
    assert "evaluation" not in phases[: phases.index("evaluate")] and phases.count("evaluation") == 6
    go(tmp_path / "inline", store, config)
    assert_equal_runs(path, tmp_path / "inline")


@pytest.mark.usefixtures("ray_cluster")
def test_evaluations_under_way_at_a_stop_are_made_up_for(store: Path, tmp_path: Path, no_report: None) -> None:
    """Stopped while the evaluator has not answered once, and again while the last evaluations are waited for."""
    config, path, gate, done = but(evaluation__every=2, evaluation__at_end=True), tmp_path / "run", tmp_path / "gate", []

    def stop_at(step: int) -> Callable[[], bool]:
        return lambda: any(report["phase"] == "distill" and report["done"] == step for report in done)

    services = Gated(RayServices(1, WorkerOptions()), gate)
    assert not go(path, store, config, services, should_stop=stop_at(5), report=done.append)["complete"]
    assert evaluations(path) == [] and len(metrics(path)) == 5
    result = go(path, store, config, services, should_stop=lambda: any(each["phase"] == "evaluate" for each in done), report=done.append)
    assert not result["complete"] and result["steps"] == 8 and result["evaluation"] is None
    assert evaluations(path) == [] and len(metrics(path)) == 8
    assert go(path, store, config)["evaluation"]["nets"] == 2
    go(tmp_path / "inline", store, config)
    assert_equal_runs(path, tmp_path / "inline")


def test_evaluations_are_made_inline_at_their_steps(store: Path, tmp_path: Path, no_report: None) -> None:
    path, config = tmp_path / "run", but(evaluation__every=4)
    go(path, store, config)
    assert [record["step"] for record in read_lines(path / "evaluations.jsonl")] == [0, 4, 8]
    assert read_json(path / "result.json")["evaluation"] is None


def test_mended_faults_are_recorded_where_they_happened(store: Path, tmp_path: Path, no_report: None) -> None:
    class Eventful(InlineServices):
        def drain_events(self) -> list[tuple[str, str]]:
            return [("death", "worker 1 died")]

    go(tmp_path / "run", store, but(steps=2), Eventful(CPU))
    found = read_lines(tmp_path / "run" / "faults.jsonl")
    assert [fault["step"] for fault in found] == [0, 1, 1] and found[0]["text"] == "worker 1 died"


def test_a_factor_that_does_not_divide_the_side_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It works, as in IDC's program, and wastes part of every stored image."""
    monkeypatch.setattr("raydd.session.write_report", lambda path: None)
    told: dict[int, list[str]] = {2: [], 3: []}
    for factor, texts in told.items():
        config = with_networks("idc", idc__factor=factor, steps=1)
        go(tmp_path / str(factor), tmp_path, config, report=lambda one, texts=texts: texts.append(str(one.get("text", ""))))
    (warning,) = filter(None, told[3])
    assert "--idc.factor=3 does not divide 8 pixels: stored images are filled up with grey to 9 pixels" in warning
    assert not any(told[2])
