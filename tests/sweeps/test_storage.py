"""A sweep whose --storage is a URI: trials are runs at URIs, and everything can be read on another machine."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from raydd.files import read_json
from raydd.places import working_folder
from raydd.runfolder import RunFolder
from sweeping import storage
from sweeping.question import SMALL
from tests import s3 as bucket
from tests.sweeps import SWEEPS
from tests.sweeps.test_whole_sweeps import given, undisturbed


@pytest.mark.usefixtures("s3")
def test_notes_and_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYDD_CACHE", str(tmp_path))
    folder = f"s3://{bucket.BUCKET}/notes"
    assert not storage.holds(folder, "runs")
    storage.note(f"{folder}/runs/one", "stopped.json", {"step": 3})
    assert storage.holds(folder, "runs") and not storage.holds(folder, "experiment_state-")
    assert bucket.names("notes") == ["runs/one/stopped.json"]
    storage.fetch(f"{folder}/runs", ["one"])  # a note without a run
    local = working_folder(folder)
    local.mkdir(parents=True, exist_ok=True)
    (local / "table.md").write_text("| a |")
    storage.deliver(folder)
    assert bucket.read("notes/table.md") == b"| a |"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_sweep_on_s3(s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends, refuses to begin twice, and on a machine that has nothing of it finds every trial finished."""
    settings = {**SMALL, "steps": 6, "evaluation.every": 3}
    place = f"s3://{bucket.BUCKET}/sweeps"
    arguments = ["--storage", place, "--candidates", "1", *given(settings), "--set", "checkpoint_every=2", "--workers", "0"]
    assert _sweep(tmp_path / "one", *arguments)[0] == 0
    code, told = _sweep(tmp_path / "one", *arguments)
    assert code == 2 and "already holds a sweep" in told
    code, told = _sweep(tmp_path / "two", *arguments, "--resume")
    assert code == 0 and "trials to run" not in told and f"{place}/candidates/report.html" in told
    held = bucket.names("sweeps/candidates")
    assert {"sweep.json", "table.md", "best.toml", "report.html"} <= set(held)
    assert not any(b"hushhushhush" in bucket.read(f"sweeps/candidates/{name}") for name in held)
    monkeypatch.setenv("RAYDD_CACHE", str(tmp_path / "three"))
    found = read_json(tmp_path / "two" / _below(f"{place}/candidates") / "sweep.json")
    (trial,) = found["trials"]
    run = RunFolder.view(f"{place}/candidates/{trial['run']}")
    expected = undisturbed(tmp_path / "alone", tmp_path / "store", **{**settings, "selection.candidates": 1})
    assert read_json(run.result)["images_sha256"] == trial["images_sha256"] == expected


def _below(place: str) -> Path:
    """The working folder of a place, below that of all."""
    return working_folder(place).relative_to(Path(os.environ["RAYDD_CACHE"]))


def _sweep(machine: Path, *arguments: str) -> tuple[int, str]:
    """Run the sweep on a machine; its exit code and what it said."""
    environment = {**os.environ, "RAYDD_CACHE": str(machine), "RAY_AUTH_MODE": "disabled"}
    command = [sys.executable, str(SWEEPS / "candidates.py"), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout + done.stderr
