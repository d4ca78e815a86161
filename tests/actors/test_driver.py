import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from raydd.actors.driver import drive
from raydd.errors import ResourceError, StoreError, WorkerError
from tests.actors.ray_toys import ToyRun

pytestmark = pytest.mark.usefixtures("ray_cluster")
BUNDLES = [{"CPU": 1.0}, {"CPU": 1.0}]


def test_result_and_every_report_arrive(tmp_path: Path) -> None:
    reports = []
    result = drive(ToyRun(str(tmp_path / "count")), BUNDLES, reports.append)
    assert result["count"] == 10 and result["bundles"] == 2 and result["pid"] != os.getpid()
    assert [report["done"] for report in reports] == list(range(1, 11))


@pytest.mark.parametrize("error", [StoreError("--experts=3: the store has 2."), ZeroDivisionError("a bug")])
def test_errors_keep_their_type_and_text(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        drive(ToyRun(str(tmp_path / "count"), fail=error), BUNDLES)
    assert type(caught.value) is type(error) and caught.value.args == error.args
    assert (tmp_path / "count").read_text() == "1"


def test_driver_that_dies_is_started_again_and_carries_on(tmp_path: Path) -> None:
    reports = []
    result = drive(ToyRun(str(tmp_path / "count"), die_at=4), BUNDLES, reports.append)
    assert (result["attempt"], result["start"], result["count"]) == (2, 4, 10)
    (warning,) = [report for report in reports if report["phase"] == "warning"]
    assert "driver died" in warning["text"]
    assert [report["done"] for report in reports if report.get("attempt") == 2] == [5, 6, 7, 8, 9, 10]


def test_driver_that_is_frozen_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raydd.actors.driver._SILENCE_SECONDS", 12.0)
    monkeypatch.setattr("raydd.actors.driver._WAITING_SECONDS", 6.0)
    reports = []
    result = drive(ToyRun(str(tmp_path / "count"), die_at=4, freeze=True), BUNDLES, reports.append)
    assert (result["attempt"], result["start"], result["count"]) == (2, 4, 10)
    texts = [report.get("text", "") for report in reports]
    assert any("The driver does not answer" in text and "waiting up to 12 s" in text for text in texts)
    assert any("no report for 12 s" in text for text in texts)


def test_driver_that_keeps_dying_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match=r"driver died 1 times.*last checkpoint.*`raydd distill --resume x`"):
        drive(ToyRun(str(tmp_path / "count"), die_at=4, deaths=9), BUNDLES, max_restarts=0, resume="raydd distill --resume x")


def interrupt_after(file: Path, count: int, *pauses: float) -> threading.Thread:
    """Send this process SIGINT once the run has counted so far, and again after each pause."""

    def watch() -> None:
        end = time.monotonic() + 60
        while not (file.exists() and int(file.read_text() or 0) >= count) and time.monotonic() < end:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
        for pause in pauses:
            time.sleep(pause)
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def test_first_interrupt_stops_at_the_next_step(tmp_path: Path) -> None:
    file, reports, handler = tmp_path / "count", [], signal.getsignal(signal.SIGINT)
    thread = interrupt_after(file, 3)
    result = drive(ToyRun(str(file), endless=True), BUNDLES, reports.append)
    thread.join(10)
    assert result["count"] >= 3 and "stopping" in [report["phase"] for report in reports]
    assert signal.getsignal(signal.SIGINT) is handler


def test_second_interrupt_ends_the_driver(tmp_path: Path) -> None:
    file = tmp_path / "count"
    thread = interrupt_after(file, 3, 1.0)
    with pytest.raises(KeyboardInterrupt):
        drive(ToyRun(str(file), endless=True, deaf=True), BUNDLES)
    thread.join(10)
    end = time.monotonic() + 30
    while time.monotonic() < end:
        before = file.read_text()
        time.sleep(0.3)
        if file.read_text() == before:
            return
    pytest.fail("the driver still counts")


def test_run_that_does_not_stop_is_ended(tmp_path: Path) -> None:
    thread = interrupt_after(tmp_path / "count", 1)
    with pytest.raises(WorkerError, match=r"did not stop within 0.5 s"):
        drive(ToyRun(str(tmp_path / "count"), endless=True, deaf=True), BUNDLES, stop_timeout=0.5)
    thread.join(10)


def test_too_much_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="--workers=7 asks for 8 CPUs"):
        drive(ToyRun(str(tmp_path / "count")), [{"CPU": 1.0}] * 8)
    assert not (tmp_path / "count").exists()


def test_ctrl_c_at_a_terminal_reaches_the_run_as_a_stop(tmp_path: Path) -> None:
    """A terminal sends SIGINT to every process of the group, those of Ray included."""
    program = textwrap.dedent(f"""
        from raydd.actors.cluster import connect, disconnect
        from raydd.actors.driver import drive
        from tests.actors.ray_toys import ToyRun
        connection = connect(num_cpus=2, object_store_memory=100 * 2**20)
        print(drive(ToyRun({str(tmp_path / "count")!r}, endless=True), [{{"CPU": 1.0}}] * 2)["count"], flush=True)
        disconnect(connection)
    """)
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    end = time.monotonic() + 60
    while not (tmp_path / "count").exists() and time.monotonic() < end:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and int(out) >= 1, err
