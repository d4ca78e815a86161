"""Ray's own processes are killed under a command: it ends soon with a reason, and the run goes on later from its checkpoint."""

import time
from pathlib import Path

import psutil
import pytest

from raydd.files import read_json
from tests.runs import SETTINGS, assert_equal_runs, but, command, go, launch, wait_for_steps

pytestmark = [pytest.mark.multinode, pytest.mark.timeout(600)]
STEPS, EVERY = 400, 5
LONG = {**SETTINGS, "steps": STEPS}
REASONS = {
    "raylet": "(the raylet) was killed",
    "gcs_server": "has not answered for 5 s",
}


@pytest.fixture(scope="module")
def undisturbed(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("undisturbed") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("raydd.session.write_report", lambda path: None)
        go(path, store, but(steps=STEPS))
    return path


@pytest.mark.parametrize("killed", list(REASONS))
def test_what_ray_consists_of_is_killed(killed: str, undisturbed: Path, store: Path, tmp_path: Path, no_report: None) -> None:
    """The raylet or the head."""
    path = tmp_path / "run"
    process = launch(command(path, store, LONG, workers=1, checkpoint_every=EVERY))
    wait_for_steps(process, path, 12)
    children = psutil.Process(process.pid).children(recursive=True)
    struck = time.monotonic()
    next(child for child in children if child.name() == killed).kill()
    _, told = process.communicate(timeout=120)
    print(f"{killed}: ended with code {process.returncode} after {time.monotonic() - struck:.1f} s")
    assert process.returncode == 2, told
    assert REASONS[killed] in told and f"raydd distill --resume {path}" in told and "Traceback" not in told
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not [child for child in alive if child.name() == "raylet" or child.cmdline()[:1] in (["ray::Driver"], ["ray::Worker"])]
    go(path, store, but(steps=STEPS))
    assert_equal_runs(path, undisturbed)
    (resumed,) = read_json(path / "environment.json")["resumed"]
    assert resumed["step"] >= 10
