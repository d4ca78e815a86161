"""Every command, called as the documentation writes it: what it prints, what it returns, what it leaves behind."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from raydd import artifact
from raydd.progress import Progress
from raydd.recipes import load_recipe, recipe_names
from raydd.runfolder import images_sha256
from tests.commands import SMALL, STEPS, contents, distill, raydd, result, steps_of
from tests.data.samples import encode, noise

COMMANDS = ("recipes", "plan", "experts", "distill", "evaluate", "report", "export")


def sha256_line(run: Path) -> str:
    return f"images sha256: {result(run)['images_sha256']}"


def test_without_a_command_lists_the_commands() -> None:
    outcome = raydd()
    assert outcome.code == 0 and outcome == raydd("--help")
    assert all(f"raydd {command}" in outcome.out for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command(command: str) -> None:
    outcome = raydd(command, "--help")
    assert outcome.code == 0 and outcome.err == ""
    assert outcome.out.startswith(f"usage: raydd {command}") and "--help" in outcome.out
    if command in ("plan", "experts", "distill"):
        assert "--selection.temperature FLOAT" in outcome.out and "Divides the scores inside the softmax" in outcome.out


def test_help_of_distill_tells_how_to_go_on() -> None:
    text = " ".join(raydd("distill", "--help").out.split())
    assert "`raydd distill --resume RUN`" in text and "`raydd distill --extend RUN --stages.add N`" in text


def test_help_of_a_recipe_shows_its_values() -> None:
    text = " ".join(raydd("distill", "cifar10-mtt-ipc50", "--help").out.split())
    assert "--mtt.max_start_epoch INT" in text and "(default: 40)" in text


def test_recipes_fit_80_columns() -> None:
    outcome, verbose = raydd("recipes"), raydd("recipes", "--verbose")
    for shown in (outcome, verbose):
        assert shown.code == 0 and max(map(len, shown.out.splitlines())) <= 80
        assert all(name in shown.out for name in recipe_names())
    assert "49.63 %" in outcome.out and "source:" not in outcome.out
    assert verbose.out.count("source:") == verbose.out.count("memory:") == len(recipe_names())


def test_recipes_by_name_and_method() -> None:
    def named(*arguments: str) -> set[str]:
        outcome = raydd("recipes", *arguments)
        assert outcome.code == 0
        return set(outcome.out.split()) & set(recipe_names())

    names = {name: load_recipe(name).config.method for name in recipe_names()}
    assert named("cifar10") == {name for name in names if "cifar10" in name} != set()
    assert named("pdd", "digits") == {name for name in names if "pdd" in name and "digits" in name} != set()
    assert named("--method", "mtt", "ipc10") == {name for name, method in names.items() if method == "mtt" and "ipc10" in name} != set()
    assert "there is no such recipe" in raydd("recipes", "digits", "--method", "nosuch").refusal()


def test_plan_needs_no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYDD_DATA", str(tmp_path / "absent"))
    outcome = raydd("plan", "cifar10-mtt-ipc10")
    assert outcome.code == 0, outcome.err
    for row in ("320,010 parameters", "100, 100 in each of 30 inner steps", "memory of a worker", "a step"):
        assert row in outcome.out


@pytest.mark.usefixtures("no_report")
def test_experts_are_trained_once(tmp_path: Path) -> None:
    store, run = tmp_path / "store", tmp_path / "run"
    small = ("--model.width", "8", "--evaluation.epochs", "1", "--evaluation.nets", "1", "--workers", "0")
    outcome = raydd("experts", "digits-mtt-ipc1", "--store", store, "--experts", "8", *small)
    assert outcome.code == 0 and "training experts: 8/8" in outcome.err
    folder = Path(outcome.last_line.removeprefix("experts: "))
    before = {path: path.stat().st_mtime_ns for path in folder.glob("expert_*.arrow")}
    assert folder.parent == store and len(before) == 8

    # The recipe asks for eight: all are there, and none is trained again.
    selection = ("--seed", "0", "--selection.policy", "dynadistill", "--selection.candidates", "3")
    outcome = raydd("distill", "digits-mtt-ipc1", "--store", store, "--run", run, "--steps", "2", *selection, *small)
    assert outcome.code == 0 and "training experts" not in outcome.err
    assert before == {path: path.stat().st_mtime_ns for path in folder.glob("expert_*.arrow")}


def test_distill_ends_with_the_hash_of_its_images(store: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    outcome = distill(run, store)
    assert outcome.code == 0
    assert outcome.last_line == sha256_line(run)
    assert result(run)["images_sha256"] == images_sha256(artifact.read(run / "synthetic.safetensors").synthetic.images)
    assert steps_of(run) == list(range(STEPS)) and result(run)["steps"] == STEPS
    assert "synthetic images" in outcome.out and "random real images" in outcome.out
    assert f"report: {run}/report.html" in outcome.out and (run / "report.html").is_file()
    assert "selection.candidates=3" in outcome.err
    assert "training" not in outcome.err  # the store has all experts


@pytest.mark.usefixtures("no_report")
def test_longer_by_resuming_equals_longer_at_once(finished_run: Path, store: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert distill(run, store, steps=2).code == 0
    assert result(run)["images_sha256"] != result(finished_run)["images_sha256"]
    outcome = raydd("distill", "--resume", run, "--steps", str(STEPS))
    assert outcome.code == 0 and outcome.last_line == sha256_line(finished_run)
    assert steps_of(run) == list(range(STEPS))


@pytest.mark.usefixtures("no_report")
def test_resuming_a_finished_run_changes_nothing(finished_run: Path, run_copy: Path) -> None:
    outcome = raydd("distill", f"--resume={run_copy}")
    assert outcome.code == 0 and outcome.last_line == sha256_line(finished_run)
    assert result(run_copy)["evaluation"] == result(finished_run)["evaluation"]


def interrupting(times: int) -> Any:
    """A progress display at whose first step Ctrl-C is pressed so many times."""

    class Interrupting(Progress):
        def __call__(self, report: dict[str, Any]) -> None:
            if report["phase"] == "distill" and report["done"] == 1:
                for _ in range(times):
                    signal.raise_signal(signal.SIGINT)

    return Interrupting


@pytest.mark.usefixtures("no_report")
def test_control_c_stops_with_a_checkpoint(finished_run: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("raydd.progress.Progress", interrupting(1))
        outcome = distill(run, store)
    assert outcome.code == 130 and f"raydd distill --resume {run}" in outcome.err
    assert steps_of(run) == [0] and outcome.last_line == sha256_line(run)
    outcome = raydd("distill", "--resume", run)
    assert outcome.code == 0 and outcome.last_line == sha256_line(finished_run)


@pytest.mark.usefixtures("no_report")
def test_control_c_twice_stops_at_once(finished_run: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("raydd.progress.Progress", interrupting(2))
        outcome = distill(run, store)
    assert outcome.code == 130 and f"raydd distill --resume {run}" in outcome.err and "Traceback" not in outcome.err
    assert raydd("distill", "--resume", run).last_line == sha256_line(finished_run)


def test_evaluate_a_run_and_its_file(finished_run: Path, tmp_path: Path) -> None:
    options = ("--nets", "5", "--epochs", "1", "--json")
    of_run = raydd("evaluate", finished_run, *options)
    summary = json.loads(of_run.out)
    assert of_run.code == 0 and summary["nets"] == 5
    assert summary.keys() >= {"accuracy_mean", "accuracy_std", "nets", "random_accuracy_mean"}
    assert all(0 <= summary[name] <= 1 for name in ("accuracy_mean", "accuracy_std", "random_accuracy_mean"))
    # Nothing but the file is needed.
    file = shutil.copy(finished_run / "synthetic.safetensors", tmp_path / "mine.safetensors")
    assert json.loads(raydd("evaluate", file, *options).out) == summary


def test_evaluate_for_people(finished_run: Path) -> None:
    outcome = raydd("evaluate", finished_run / "synthetic.safetensors", "--nets", "2", "--epochs", "1")
    assert outcome.code == 0 and "std over 2 nets" in outcome.out and "chosen on the test split" in outcome.out


def test_report_is_written_anew(run_copy: Path) -> None:
    (run_copy / "report.html").unlink()
    outcome = raydd("report", run_copy)
    assert outcome.code == 0 and outcome.last_line == str(run_copy / "report.html")
    assert (run_copy / "report.html").is_file()


@pytest.mark.parametrize("form", ["png", "parquet", "mtt"])
def test_export(finished_run: Path, tmp_path: Path, form: str) -> None:
    out = tmp_path / "out"
    outcome = raydd("export", finished_run, "--to", form, out)
    assert outcome.code == 0 and outcome.out.startswith(f"{out}: ")
    kinds = {"png": ("*/*.png", 10), "parquet": ("*.parquet", 1), "mtt": ("*_best.pt", 3)}
    pattern, count = kinds[form]
    assert len(list(out.glob(pattern))) == count
    if form == "mtt":
        images = torch.load(out / "images_best.pt", weights_only=True)
        assert images_sha256(images) == result(finished_run)["images_sha256"]


@pytest.fixture
def parquet_folder(tmp_path: Path) -> Path:
    """Three classes of coloured noise in the layout of the Hugging Face hub, five training and two test images of each."""
    folder = tmp_path / "parquet"
    folder.mkdir()
    features = {"img": {"_type": "Image"}, "label": {"names": ["ant", "bee", "cat"], "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    for seed, (split, count) in enumerate({"train": 5, "test": 2}.items()):
        rows = [{"bytes": encode(pixels), "path": None} for pixels in noise(3 * count, 8, seed=seed)]
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        labels = np.arange(3).repeat(count)
        table = pa.table({"img": pa.array(rows, kind), "label": pa.array(labels)}).replace_schema_metadata(metadata)
        pq.write_table(table, folder / f"{split}-00000-of-00001.parquet")
    return folder


@pytest.mark.usefixtures("no_report")
def test_own_images(parquet_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYDD_CACHE", str(tmp_path / "cache"))
    run = tmp_path / "run"
    short = ("--mtt.syn_steps", "3", "--mtt.lr_img", "1", "--experts.batch_size", "8", "--evaluation.every", "0")
    arguments = ("--data", f"parquet:{parquet_folder}", "--ipc", "2", "--steps", "2", "--store", tmp_path / "store", "--run", run)
    outcome = raydd("distill", "cifar10-mtt-ipc1", *arguments, *SMALL, *short)
    assert outcome.code == 0, outcome.err
    found = artifact.read(run / "synthetic.safetensors")
    assert found.classes == ("ant", "bee", "cat") and found.synthetic.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert found.synthetic.images.shape == (6, 3, 8, 8) and outcome.last_line == sha256_line(run)


def test_commands_that_read_leave_a_run_as_it_is(run_copy: Path, tmp_path: Path) -> None:
    before = contents(run_copy)
    assert raydd("evaluate", run_copy, "--nets", "1", "--epochs", "0").code == 0
    assert raydd("export", run_copy, "--to", "png", tmp_path / "png").code == 0
    assert contents(run_copy) == before


def test_as_a_module_in_a_process_of_its_own() -> None:
    done = subprocess.run([sys.executable, "-m", "raydd", "distill", "nosuch"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("raydd: 'nosuch' is not a recipe. See raydd recipes; digits-mtt-ipc1")
