"""Runs, and the experts under them, on an S3-compatible server: the images are those of a run in a folder, to the bit."""

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from raydd.experts.store import Store
from raydd.files import read_json
from raydd.runfolder import RunFolder
from tests import runs
from tests import s3 as bucket
from tests.commands import raydd, result
from tests.runs import CONFIG, command, go, resuming


def uri(name: str) -> str:
    return f"s3://{bucket.BUCKET}/{name}"


def on(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on this is another machine: one with nothing of the run, though with the decoded data."""
    machine.mkdir(exist_ok=True)
    data = Path(os.environ["RAYDD_CACHE"])
    for path in data.glob("*.*"):
        if path.is_file() and not (machine / path.name).exists():
            (machine / path.name).symlink_to(path.resolve())
    monkeypatch.setenv("RAYDD_CACHE", str(machine))


@pytest.mark.usefixtures("no_report", "s3")
def test_run_that_stops_and_goes_on_elsewhere(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = go(tmp_path / "whole", store)["images_sha256"]
    place, done = uri("runs/stopped"), []
    config = runs.but(steps=8)
    on(tmp_path / "one", monkeypatch)
    RunFolder.create(place, config, runs.execution(place, store)).close()

    def stop() -> bool:
        done.append(1)
        return len(done) > 5

    first = _through(place, config, store, stop)
    assert not first["complete"] and 0 < first["steps"] < 8
    on(tmp_path / "two", monkeypatch)
    outcome = raydd("distill", "--resume", place)
    assert outcome.code == 0, outcome.err
    folder = RunFolder.view(place)
    assert result(folder.path)["images_sha256"] == whole and whole in outcome.out
    assert read_json(folder.path / "environment.json")["resumed"][0]["step"] == first["steps"]
    assert "hushhushhush" not in "".join(bucket.read(f"runs/stopped/{name}").decode("latin1") for name in bucket.names("runs/stopped"))
    on(tmp_path / "three", monkeypatch)
    exported = raydd("export", place, "--to", "png", tmp_path / "png")
    assert exported.code == 0 and (tmp_path / "png" / "grid.png").exists()
    evaluated = raydd("evaluate", place, "--nets", "1", "--epochs", "1", "--json")
    assert evaluated.code == 0 and '"accuracy_mean"' in evaluated.out


def _through(place: str, config: Any, store: Path, stop: Any) -> dict[str, Any]:
    import torch

    from raydd.run import run
    from raydd.services import InlineServices

    with RunFolder.open(place) as folder:
        return run(folder, config, runs.execution(place, store), InlineServices(torch.device("cpu")), stop, lambda report: None)


@pytest.mark.usefixtures("s3")
def test_expert_store(store: Path) -> None:
    """Experts that were uploaded are read back bit for bit."""
    folder = next(path for path in store.iterdir() if (path / "recipe.json").exists())
    recipe = read_json(folder / "recipe.json")["recipe"]
    ours, theirs = Store.open(str(store), recipe), Store.open(uri("experts"), recipe)
    assert theirs.experts() == []
    for expert in ours.experts():
        snapshots = [ours.theta(expert, epoch) for epoch in range(ours.epochs(expert) + 1)]
        theirs.write(expert, snapshots, {})
    again = Store.open(uri("experts"), recipe)
    assert again.experts() == ours.experts()
    assert all((again.theta(e, 1) == ours.theta(e, 1)).all() for e in ours.experts())


@pytest.mark.usefixtures("s3")
def test_bucket_that_is_not_there(store: Path, tmp_path: Path) -> None:
    outcome = raydd("distill", "digits-mtt-ipc1", "--store", store, "--run", "s3://elsewhere/run", "--workers", "0", "--model.width", "8")
    text = outcome.refusal()
    assert "s3://elsewhere/run/" in text and "NO_SUCH_BUCKET" in text and "hushhushhush" not in text


SETTINGS = {name: value for name, value in runs.SETTINGS.items() if name != "steps"}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_and_taken_up_on_another_machine(s3: Any, store: Path, tmp_path: Path) -> None:
    """The process is killed without warning, and nothing of its machine is left but what it had uploaded."""
    config = runs.but(steps=24)
    whole = go(tmp_path / "whole", store, config)["images_sha256"]
    place = uri("runs/killed")
    process = _launch(command(place, store, {**SETTINGS, "steps": 24}, checkpoint_every=2), tmp_path / "one")
    end = time.monotonic() + 200
    while not any("step_00000006" in name for name in bucket.names("runs/killed/data/checkpoints")):
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    again = _launch(resuming(place), tmp_path / "two")
    out, err = again.communicate(timeout=300)
    assert again.returncode == 0, err
    assert whole in out
    folder = next((tmp_path / "two").rglob("killed"))
    assert read_json(folder / "environment.json")["resumed"][0]["step"] >= 4


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("no_report")
def test_server_away_for_a_while(s3: Any, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run goes on without it, tells so, and has everything there in the end."""
    monkeypatch.setattr("raydd.runfolder.PATIENCE", 0.0)
    whole = go(tmp_path / "whole", store)["images_sha256"]
    place, heard = uri("runs/away"), []

    def hear(report: dict[str, Any]) -> None:
        if report["phase"] in ("warning", "note"):
            heard.append(report["text"])
        if report["phase"] == "distill" and report["done"] == 2:
            s3.stop()
        if report["phase"] == "distill" and report["done"] == 4:
            s3.start()

    from raydd.launch import distill

    outcome = distill(CONFIG, runs.execution(place, store), hear)
    assert outcome["complete"] and outcome["images_sha256"] == whole
    assert "next checkpoint tries again" in heard[0] and heard[1] == f"{place} is up to date again."
    on(tmp_path / "two", monkeypatch)
    assert result(RunFolder.view(place).path)["images_sha256"] == whole


def _launch(arguments: list[str], machine: Path) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen(
        arguments, env={**os.environ, "RAYDD_CACHE": str(machine)}, stdout=pipe, stderr=pipe, text=True, start_new_session=True,
        cwd=Path(__file__).parents[1],
    )  # fmt: skip
