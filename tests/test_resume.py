"""A run that ended at any moment, in any way, and was resumed is the run that was never interrupted: bits, records, evaluations."""

import contextlib
import os
import random
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from raydd import artifact, files, launch, runfolder
from raydd.config import Config
from raydd.errors import CheckpointError, ConfigError
from raydd.files import read_json, read_lines
from raydd.runfolder import RunFolder
from tests.runs import (
    CONFIG,
    SETTINGS,
    assert_equal_runs,
    but,
    command,
    evaluations,
    execution,
    go,
    metrics,
    resuming,
    wait_for_steps,
    with_networks,
)
from tests.runs import launch as start

EVALUATED = but(evaluation__every=3, evaluation__at_end=True)
# For commands that are killed at some step: many short steps, and checkpoints that no kill meets.
LONG = {**SETTINGS, "steps": 90}
EVERY = 7


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raydd.session.write_report", lambda path: None)


@pytest.fixture(scope="module")
def evaluated(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run with evaluations."""
    path = tmp_path_factory.mktemp("evaluated") / "run"
    go(path, store, EVALUATED)
    return path


@pytest.fixture(scope="module")
def long(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted run of `LONG`."""
    path = tmp_path_factory.mktemp("long") / "run"
    go(path, store, but(**{name.replace(".", "__"): value for name, value in LONG.items()}))
    return path


# Death between any two writes


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the program handles it."""


@contextlib.contextmanager
def dying_at(write: int) -> Iterator[None]:
    """End the program at its write number `write`, counted from 0, leaving behind what a death in its middle leaves."""
    real, count = files._writing, 0

    @contextlib.contextmanager
    def writing(path: Path, size: int) -> Iterator[None]:
        nonlocal count
        count += 1
        if count > write:
            if path.suffix == ".jsonl":
                with open(path, "a") as file:
                    file.write('{"step":0,"to')
            else:
                path.parent.mkdir(exist_ok=True)
                path.with_name(f".{path.name}.1.tmp").write_bytes(b"half of ")
            raise Killed
        with real(path, size):
            yield

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "_writing", writing)
        yield


def dies(path: Path, store: Path, write: int, config: Config = EVALUATED) -> bool:
    try:
        with dying_at(write):
            go(path, store, config)
    except Killed:
        return True
    return False


def test_death_at_any_write(evaluated: Path, store: Path, tmp_path: Path, no_report: None) -> None:
    """Every write of a run in turn, and a second death at some write of the resumption."""
    chance, write = random.Random(0), 0
    RunFolder.create(tmp_path / "first", EVALUATED, execution(tmp_path / "first", store)).close()
    while True:
        path = Path(shutil.copytree(tmp_path / "first", tmp_path / str(write)))
        if not dies(path, store, write):
            break
        dies(path, store, chance.randrange(12))
        go(path, store, EVALUATED)
        assert_equal_runs(path, evaluated)
        leftovers = [file.name for file in path.rglob("*.tmp")]
        assert leftovers == []
        write += 1
    assert write > 20
    assert_equal_runs(path, evaluated)


# Whole process groups


def test_process_group_killed_at_random_steps(long: Path, store: Path, tmp_path: Path) -> None:
    chance, path = random.Random(1), tmp_path / "run"
    arguments = command(path, store, LONG, checkpoint_every=EVERY)
    killed = sorted(chance.sample(range(5, 85), 3))
    for steps in killed:
        process = start(arguments)
        wait_for_steps(process, path, steps)
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        process.communicate()
        arguments = resuming(path)
    finish(path)
    assert_equal_runs(path, long)
    resumed = [entry["step"] for entry in read_json(path / "environment.json")["resumed"]]
    assert len(resumed) == 3 and all(step >= (seen - 1) // EVERY * EVERY for step, seen in zip(resumed, killed, strict=True))


def finish(path: Path, **settings: object) -> None:
    """Carry on in this process."""
    config, how = RunFolder.view(path).settings()
    result = launch.resume(path, config, replace(how, **settings))
    assert result["complete"]


def test_process_group_with_ray_killed(long: Path, store: Path, tmp_path: Path) -> None:
    """Nothing of the killed group goes on, and the run does, without Ray."""
    path = tmp_path / "run"
    process = start(command(path, store, LONG, workers=2, checkpoint_every=EVERY))
    wait_for_steps(process, path, 40)
    children = psutil.Process(process.pid).children(recursive=True)
    assert {"raylet", "gcs_server"} <= {child.name() for child in children}
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    gone, alive = psutil.wait_procs(children, timeout=60)
    assert len(gone) > 5 and not alive
    finish(path, workers=0)
    assert_equal_runs(path, long)


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGINT, 0), (signal.SIGTERM, 0), (signal.SIGINT, 2)])
def test_signal_stops_at_a_checkpoint(number: int, workers: int, long: Path, store: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    process = start(command(path, store, LONG, workers=workers))
    wait_for_steps(process, path, 20)
    # What Ctrl-C does: a signal to every process of the group. SIGTERM comes to one.
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    _, told = process.communicate(timeout=120)
    steps = len(metrics(path))
    assert process.returncode == 130, told
    assert f"stopped after step {steps}; carry on with: raydd distill --resume {path}" in told and "Traceback" not in told
    assert 20 <= steps < 90 and (path / "checkpoints" / f"step_{steps:08d}.safetensors").exists()
    assert read_json(path / "result.json")["steps"] == steps and (path / "report.html").exists()
    finish(path, workers=0)
    assert_equal_runs(path, long)


# Stops in this process


def test_stopped_after_any_step(evaluated: Path, store: Path, tmp_path: Path, no_report: None) -> None:
    """One step at a time, and then one evaluation at a time."""
    path, results = tmp_path / "run", []
    while not results or not results[-1]["complete"]:
        results.append(go(path, store, EVALUATED, should_stop=iter([False, *[True] * 99]).__next__))
    assert [result["steps"] for result in results] == [1, 2, 3, 4, 5, 6, 7, 8, 8, 8]
    assert_equal_runs(path, evaluated)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("dsa", {}),
        ("dsa", {"selection__slots": "keep"}),
        ("idc", {"selection__every": 1}),
        ("dreamplus", {}),
        ("cafe", {"cafe__outer_range": 0.0, "cafe__max_outer": 3}),
    ],
)
def test_stopped_within_and_between_network_lifetimes(name: str, settings: dict, tmp_path: Path, no_report: None) -> None:
    """After every step; the last runs through the rest. Slots, momentum of the classes and memories come back."""
    config = with_networks(name, **settings)
    whole = go(tmp_path / "whole", tmp_path, config)
    path, done = tmp_path / "run", []
    for _ in range(4):
        done.append(go(path, tmp_path, config, should_stop=iter([False, True]).__next__)["steps"])
    assert done == [1, 2, 3, 4]
    assert go(path, tmp_path, config)["images_sha256"] == whole["images_sha256"]
    assert_equal_runs(path, tmp_path / "whole")
    places = [(record["outer"], record["inner"]) for record in metrics(path)]
    assert places[0] == (0, 0) and places[-1][0] >= 1 and (0, 1) in places
    assert torch.isfinite(artifact.read(path / "synthetic.safetensors").synthetic.images).all()


def test_stop_while_experts_are_trained(store: Path, tmp_path: Path, no_report: None) -> None:
    """Finished experts stay, and nothing of the run is lost."""
    path, own, seen = tmp_path / "run", tmp_path / "experts", []
    config = replace(EVALUATED, experts=replace(CONFIG.experts, seed=3))
    result = go(path, own, config, should_stop=lambda: any(each.get("done") for each in seen), report=seen.append)
    assert (result["steps"], result["complete"]) == (0, False)
    assert len(list(own.rglob("*.arrow"))) == 1 and metrics(path) == []
    go(path, own, config)
    go(tmp_path / "other", own, config)
    assert_equal_runs(path, tmp_path / "other")


# Checkpoints


def test_a_truncated_checkpoint_is_passed_over(evaluated: Path, store: Path, tmp_path: Path, no_report: None) -> None:
    path, reports = Path(shutil.copytree(evaluated, tmp_path / "run")), []
    newest = max((path / "checkpoints").iterdir())
    newest.write_bytes(newest.read_bytes()[:-100])
    go(path, store, EVALUATED, report=reports.append)
    (warning,) = [report["text"] for report in reports if report["phase"] == "warning"]
    assert newest.name in warning and "truncated" in warning and "Carrying on from step_00000006.safetensors" in warning
    assert_equal_runs(path, evaluated)


def test_without_any_good_checkpoint_nothing_is_touched(evaluated: Path, store: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(evaluated, tmp_path / "run"))
    for file in (path / "checkpoints").iterdir():
        file.write_bytes(b"")
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file() and file.name != ".lock"}
    with pytest.raises(CheckpointError, match=r"no usable checkpoint.*\n.*step_00000008.*truncated"):
        go(path, store, EVALUATED)
    assert {file: file.read_bytes() for file in before} == before


def test_other_images_under_the_same_name_are_refused(
    evaluated: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from raydd import setup

    real = setup.data.load
    monkeypatch.setattr(setup.data, "load", lambda *arguments: replace(real(*arguments), fingerprint="others"))
    with pytest.raises(CheckpointError, match=r"belongs to another run \(data_fingerprint is .* there, others here\)"):
        go(Path(shutil.copytree(evaluated, tmp_path / "run")), store, EVALUATED)


def test_data_may_have_moved(tmp_path: Path) -> None:
    from raydd.run import identity

    here, there = (but(data__source=f"parquet:{place}", data__root=place) for place in ("/here", "/there"))
    assert identity(here) == identity(there) != identity(but(data__source="folder:/here"))


# Going on


def test_more_steps_equal_as_many_at_first(evaluated: Path, store: Path, tmp_path: Path, no_report: None) -> None:
    path = tmp_path / "run"
    go(path, store, but(EVALUATED, steps=4))
    assert read_json(path / "config.json")["config"]["steps"] == 4
    go(path, store, EVALUATED)
    # The shorter run was evaluated at its end too.
    own = [record for record in evaluations(path) if record["step"] != 4]
    assert own == evaluations(evaluated)
    (path / "evaluations.jsonl").write_bytes((evaluated / "evaluations.jsonl").read_bytes())
    assert_equal_runs(path, evaluated)


def test_fewer_steps_than_done_are_refused(evaluated: Path, store: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(evaluated, tmp_path / "run"))
    with pytest.raises(ConfigError, match="--steps=7: .* has done 8 steps already"):
        go(path, store, but(EVALUATED, steps=7))
    assert_equal_runs(path, evaluated)


def test_an_annealed_run_cannot_be_longer(store: Path, tmp_path: Path, no_report: None) -> None:
    """Its schedule depends on the number of steps."""
    config = but(selection__policy="annealed", steps=3)
    go(tmp_path / "run", store, config)
    with pytest.raises(CheckpointError, match="steps is 3 there, 4 here"):
        go(tmp_path / "run", store, replace(config, steps=4))


def test_a_finished_run_tells_its_result_again(
    evaluated: Path, store: Path, tmp_path: Path, no_report: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, reports = Path(shutil.copytree(evaluated, tmp_path / "run")), []
    first = read_json(path / "result.json")
    monkeypatch.setattr("raydd.setup.Evaluator.__call__", lambda *_: pytest.fail("evaluated again"))
    monkeypatch.setattr("raydd.transition.build_experts", lambda *_: pytest.fail("experts are not needed"))
    result = go(path, store, EVALUATED, report=reports.append)
    assert result["complete"] and result["images_sha256"] == first["images_sha256"] and result["evaluation"] == first["evaluation"]
    assert_equal_runs(path, evaluated)
    assert reports == []


def test_another_evaluation_of_a_finished_run(evaluated: Path, store: Path, tmp_path: Path, no_report: None) -> None:
    path = Path(shutil.copytree(evaluated, tmp_path / "run"))
    result = go(path, store, but(EVALUATED, evaluation__nets=3))
    assert result["evaluation"]["nets"] == 3
    assert [record["nets"] for record in read_lines(path / "evaluations.jsonl")[-2:]] == [3, 3]


def test_other_rounding_is_told(evaluated: Path, store: Path, tmp_path: Path, no_report: None) -> None:
    path, reports, threads = Path(shutil.copytree(evaluated, tmp_path / "run")), [], torch.get_num_threads()
    try:
        go(path, store, EVALUATED, report=reports.append, threads=threads + 1)
    finally:
        torch.set_num_threads(threads)
    assert [report["text"] for report in reports] == [
        f"--threads {threads + 1} where the run had {threads}: equal up to rounding, not bit for bit."
    ]


def test_records_are_on_disk_before_the_checkpoint(store: Path, tmp_path: Path, no_report: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a loss of power no record is missing behind a checkpoint."""
    order: list[str] = []
    monkeypatch.setattr(runfolder, "sync", lambda paths: order.append("records"))
    real = files.atomic_write_bytes
    monkeypatch.setattr("raydd.sealed.atomic_write_bytes", lambda path, data: (order.append(path.parent.name), real(path, data)))
    go(tmp_path / "run", store, but(steps=4))
    assert [each for each in order if each != "run"] == ["records", "checkpoints"] * 2
