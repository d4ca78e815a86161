"""A run folder: never overwritten, written by one process, and put back to a checkpoint's step on resumption."""

import hashlib
import json
import os
import shlex
import struct
import subprocess
import sys

import pytest
import torch

from raydd import environment
from raydd.config import Config, DataConfig, Execution
from raydd.errors import CheckpointError, ConfigError, ResourceError
from raydd.files import read_json, read_lines
from raydd.runfolder import RunFolder, images_sha256

CONFIG = Config(ipc=2, steps=7, data=DataConfig(source="digits"))
EXECUTION = Execution(run="somewhere", workers=2)


@pytest.fixture
def run(tmp_path):
    with RunFolder.create(tmp_path / "run", CONFIG, EXECUTION) as folder:
        yield folder


def test_settings_come_back(run):
    assert RunFolder.view(run.path).settings() == (CONFIG, EXECUTION)
    assert read_json(run.path / "config.json").keys() == {"config", "execution", "raydd"}


def test_environment_says_what_it_ran_on(run):
    found = read_json(run.path / "environment.json")
    assert found["versions"]["torch"] == torch.__version__ and found["versions"]["python"] == sys.version.split()[0]
    assert found["cpus"] == os.cpu_count() and found["command"] == shlex.join(sys.argv)
    assert {"ray", "numpy", "raydd"} <= found["versions"].keys() and {"platform", "gpus", "commit", "started"} <= found.keys()


def test_a_run_is_never_overwritten(run):
    before = (run.path / "config.json").read_bytes()
    run.close()
    with pytest.raises(ConfigError, match=r"--run=.*run already holds a run\. Carry on with --resume .*run, or choose another --run"):
        RunFolder.create(run.path, Config(), Execution())
    assert (run.path / "config.json").read_bytes() == before


def test_a_folder_with_other_things_is_not_used(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match=r"not empty and not a run \(it holds thesis\.tex\)"):
        RunFolder.create(tmp_path, CONFIG, EXECUTION)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(ConfigError, match="is a file"):
        RunFolder.create(tmp_path / "thesis.tex", CONFIG, EXECUTION)


def test_a_run_that_died_before_its_settings_may_be_started_again(tmp_path):
    for name in (".lock", "environment.json", ".config.json.99.tmp"):
        (tmp_path / name).write_text("{}")
    with RunFolder.create(tmp_path, CONFIG, EXECUTION) as folder:
        assert folder.settings()[0] == CONFIG


def test_only_a_run_can_be_opened(tmp_path):
    for make in (RunFolder.open, RunFolder.view):
        with pytest.raises(ConfigError, match=r"is not a run folder \(it has no config\.json\)"):
            make(tmp_path)


def test_damaged_settings_are_named(run):
    for text in ("{", "[]", '{"config": {}}'):
        (run.path / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"config\.json"):
            run.settings()


def test_a_second_writer_is_refused_and_a_reader_is_not(run):
    with pytest.raises(ResourceError, match=rf"run is being written by another process \(pid {os.getpid()} on "):
        RunFolder.open(run.path)
    assert RunFolder.view(run.path).settings()[0] == CONFIG
    run.close()
    run.close()
    RunFolder.open(run.path).close()


def test_the_lock_dies_with_its_process(run):
    run.close()
    code = "import sys, os; from raydd.runfolder import RunFolder; r = RunFolder.open(sys.argv[1]); print('up', flush=True); input()"
    other = subprocess.Popen([sys.executable, "-c", code, str(run.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "up\n"
        with pytest.raises(ResourceError, match=rf"pid {other.pid} "):
            RunFolder.open(run.path)
    finally:
        other.kill()
        other.communicate()
    RunFolder.open(run.path).close()


def fill(run: RunFolder) -> None:
    for step in range(6):
        run.append({"step": step, "loss": 1 / (step + 1)})
        if step % 2 == 1:
            run.append_evaluation({"step": step + 1, "accuracy_mean": 0.5})
    run.append_fault(2, "worker", "died")
    run.append_fault(5, "redraw", "not finite")


@pytest.mark.parametrize("torn", ["", '{"step":6,"lo', '{"step":6}'])
def test_truncate_after_goes_back_to_a_step(run, torn):
    fill(run)
    with open(run.metrics, "a") as file:
        file.write(torn)
    run.truncate_after(3)
    assert read_lines(run.metrics) == [{"step": s, "loss": 1 / (s + 1)} for s in range(4)]
    assert [r["step"] for r in read_lines(run.evaluations)] == [2, 4]
    assert [r["step"] for r in read_lines(run.faults)] == [2]
    run.append({"step": 4, "loss": 0.1})
    assert [r["step"] for r in read_lines(run.metrics)] == [0, 1, 2, 3, 4]


def test_truncate_to_the_beginning_and_of_nothing(run):
    run.truncate_after(3)
    assert not run.metrics.exists()
    fill(run)
    run.truncate_after(-1)
    assert read_lines(run.metrics) == read_lines(run.evaluations) == read_lines(run.faults) == []


def test_a_crash_while_truncating_loses_nothing(run, monkeypatch):
    fill(run)
    before = run.metrics.read_bytes()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run.truncate_after(1)
    assert run.metrics.read_bytes() == before


def test_resumptions_are_recorded_beside_the_first_start(run):
    first = read_json(run.path / "environment.json")
    run.note_resumption(3, Execution(workers=0))
    run.note_resumption(5, Execution(workers=3))
    found = read_json(run.path / "environment.json")
    assert {k: v for k, v in found.items() if k != "resumed"} == first
    assert [(r["step"], r["execution"]["workers"]) for r in found["resumed"]] == [(3, 0), (5, 3)]


def test_result_holds_hash_steps_seconds_evaluation(run):
    run.write_result({"images_sha256": "ab" * 32, "steps": 7, "seconds": 1.5, "evaluation": {"accuracy_mean": 0.5}})
    expected = {"images_sha256": "ab" * 32, "steps": 7, "seconds": 1.5, "evaluation": {"accuracy_mean": 0.5}}
    assert json.loads(run.result.read_text()) == expected


def test_images_sha256_is_of_little_endian_float32():
    values = [0.0, -1.5, 3.25e-8, 7.0]
    expected = hashlib.sha256(struct.pack("<4f", *values)).hexdigest()
    images = torch.tensor(values).reshape(1, 1, 2, 2)
    assert images_sha256(images) == expected
    # Memory layout does not matter, the order of values does.
    assert images_sha256(images.transpose(2, 3).contiguous().transpose(2, 3).requires_grad_()) == expected
    assert images_sha256(images.transpose(2, 3)) != expected


def test_commit_is_only_of_a_repository_that_tracks_the_code(tmp_path):
    git = ["git", "-c", "user.name=n", "-c", "user.email=e", "-C", str(tmp_path)]
    assert environment.commit(tmp_path) is None
    (tmp_path / "errors.py").write_text("x = 1\n")
    subprocess.run([*git, "init", "-q"], check=True)
    assert environment.commit(tmp_path) is None
    subprocess.run([*git, "add", "errors.py"], check=True)
    subprocess.run([*git, "commit", "-qm", "one"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert environment.commit(tmp_path) == head
    (tmp_path / "errors.py").write_text("x = 2\n")
    assert environment.commit(tmp_path) == head + "+changes"
