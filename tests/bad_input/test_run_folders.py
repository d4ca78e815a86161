"""Run folders and result files that are not what a command needs are refused and stay as they are."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from raydd import artifact
from tests.bad_input.refusals import refused
from tests.commands import contents, distill, raydd, result, steps_of


def test_folder_that_holds_a_run(run_copy: Path, store: Path) -> None:
    before = contents(run_copy)
    refused(distill(run_copy, store), "already holds a run", f"--resume {run_copy}")
    assert contents(run_copy) == before


def test_folder_that_holds_something_else(store: Path, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"mine")
    refused(distill(tmp_path, store), "is not empty and not a run", "photo.jpg")
    assert contents(tmp_path) == {"photo.jpg": b"mine"}
    refused(distill(tmp_path / "photo.jpg", store), "is a file")
    refused(distill(tmp_path / "photo.jpg" / "run", store), "cannot be made")


def test_empty_folder_stays_when_its_run_is_refused(store: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    refused(distill(run, store, "--mtt.max_start_epoch", "9", "--no_train_experts"), "raydd experts")
    assert run.is_dir() and not list(run.iterdir())


def test_resuming_what_is_no_run(tmp_path: Path) -> None:
    refused(raydd("distill", "--resume", tmp_path), "is not a run folder", "--run")
    refused(raydd("distill", "--resume", tmp_path / "absent"), "is not a run folder")
    refused(raydd("distill", "--resume"), "--resume needs the run folder")
    assert not list(tmp_path.iterdir())


def test_resuming_with_other_settings(run_copy: Path) -> None:
    before = contents(run_copy)
    changed = ("--mtt.lr_img", "7", "--seed", "3")
    words = ("--mtt.lr_img=7.0 (the run has 20.0)", "--seed=3 (the run has 0)", "only --steps, --evaluation.*")
    refused(raydd("distill", "--resume", run_copy, *changed), *words)
    refused(raydd("distill", "--resume", run_copy, "--run", "elsewhere"), "--run and --resume exclude each other")
    refused(raydd("distill", "--resume", run_copy, "--threads", "0"), "--threads=0")
    refused(raydd("distill", "--resume", run_copy, "--steps", "1"), "--steps=1", "4 steps")
    assert contents(run_copy) == before


def test_run_with_damaged_settings(run_copy: Path) -> None:
    path = run_copy / "config.json"
    settings = json.loads(path.read_text())
    settings["config"]["ipc"] = "many"
    path.write_text(json.dumps(settings))
    refused(raydd("distill", "--resume", run_copy), "ipc='many'")
    path.write_text("{")
    for command in (("distill", "--resume", run_copy), ("report", run_copy)):
        refused(raydd(*command), str(path))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.usefixtures("no_report")
def test_truncated_checkpoint_is_passed_over(finished_run: Path, run_copy: Path) -> None:
    truncate(run_copy / "checkpoints" / "step_00000004.safetensors")
    outcome = raydd("distill", "--resume", run_copy)
    assert outcome.code == 0 and "step_00000004.safetensors: truncated" in " ".join(outcome.err.split())
    assert result(run_copy)["images_sha256"] == result(finished_run)["images_sha256"]
    assert steps_of(run_copy) == [0, 1, 2, 3]


def test_no_checkpoint_left(run_copy: Path) -> None:
    for path in (run_copy / "checkpoints").iterdir():
        truncate(path)
    before = contents(run_copy)
    words = ("no usable checkpoint", "step_00000004.safetensors: truncated", "step_00000002.safetensors: truncated")
    refused(raydd("distill", "--resume", run_copy), *words)
    assert contents(run_copy) == before


def test_truncated_result_file(run_copy: Path, tmp_path: Path) -> None:
    file = run_copy / "synthetic.safetensors"
    truncate(file)
    refused(raydd("evaluate", file), str(file), "truncated")
    refused(raydd("evaluate", run_copy), str(file), "truncated")
    refused(raydd("export", run_copy, "--to", "png", tmp_path / "png"), str(file), "truncated")
    assert not (tmp_path / "png").exists()


def test_what_is_no_result(run_copy: Path, tmp_path: Path) -> None:
    refused(raydd("evaluate", tmp_path / "absent"), "does not exist")
    refused(raydd("evaluate", tmp_path), "is not a run folder")
    refused(raydd("evaluate", run_copy / "config.json"), "config.json", "not a file of raydd")
    refused(raydd("evaluate", run_copy / "checkpoints" / "step_00000004.safetensors"), "is a raydd-checkpoint")
    refused(raydd("report", tmp_path / "absent"), "is not a run folder")
    refused(raydd("export", tmp_path / "absent", "--to", "png", tmp_path / "out"), "is not a run folder")


def test_options_of_evaluation_and_export(run_copy: Path, tmp_path: Path) -> None:
    refused(raydd("evaluate", run_copy, "--nets", "0"), "nets=0 must be at least 1")
    refused(raydd("evaluate", run_copy, "--lr", "0"), "lr=0.0 must be above 0")
    refused(raydd("evaluate", run_copy, "--device", "tpu"), "--device", "cuda")
    refused(raydd("evaluate"), "raydd evaluate")
    refused(raydd("export", run_copy, "--to", "gif", tmp_path / "out"), "--to", "parquet")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("")
    refused(raydd("export", run_copy, "--to", "png", tmp_path / "out"), "was not made by an export")


def test_evaluating_on_other_images(run_copy: Path) -> None:
    file = run_copy / "synthetic.safetensors"
    artifact.write(file, replace(artifact.read(file), fingerprint="0" * 64))
    refused(raydd("evaluate", file), "--data=digits", "not the images that", "Point --data at the same ones")
