"""What the machine does not have is refused before the run, and what fails on the way loses nothing."""

import errno
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.bad_input.refusals import refused, refused_run
from tests.commands import SMALL, distill, raydd, result, steps_of


def test_gpu_where_there_is_none(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refused_run(tmp_path / "run", store, "--device", "cuda", words=("--device=cuda needs a CUDA device", "--device cpu"))
    for command in ("experts", "plan"):
        refused(raydd(command, "digits-mtt-ipc1", *SMALL, "--device", "cuda"), "--device=cuda needs a CUDA device")


def test_more_gpus_than_there_are(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    words = ("--workers=3 asks for 3 GPUs", "this machine has 2", "Lower --workers")
    refused_run(tmp_path / "run", store, "--device", "cuda", "--workers", "3", words=words)


@pytest.mark.parametrize("workers", ["0", "2"])
def test_more_threads_than_cores(store: Path, tmp_path: Path, workers: str) -> None:
    refused_run(tmp_path / "run", store, "--workers", workers, "--threads", "3000", words=("--threads=3000 is more than the", "cores"))
    refused(raydd("experts", "digits-mtt-ipc1", *SMALL, "--workers", workers, "--threads", "3000"), "--threads=3000")


def test_more_workers_than_fit(store: Path, tmp_path: Path) -> None:
    words = ("--workers=100000 takes 33554.43 GB for the processes alone", "Lower --workers")
    refused_run(tmp_path / "run", store, "--workers", "100000", words=words)
    refused(raydd("experts", "digits-mtt-ipc1", *SMALL, "--workers", "100000"), *words)


def test_more_memory_than_there_is(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raydd.plan.available_bytes", lambda device: 10**6)
    refused_run(tmp_path / "run", store, words=("worker(s) needs about", "1.0 MB free"))
    refused(raydd("plan", "digits-mtt-ipc1", *SMALL), "worker(s) needs about")


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may grow beyond 100 kB, as on a disk that is nearly full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("small_files")
def test_experts_that_cannot_be_written(tmp_path: Path) -> None:
    refused_run(tmp_path / "run", tmp_path / "store", "--model.width", "32", words=("expert_00000.arrow", "cannot be written"))
    assert not list((tmp_path / "store").glob("*/*.arrow"))


def full(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """From now on the disk is full whenever a file is replaced whose name starts so."""
    replace = os.replace

    def fail(source: Path, target: Path) -> None:
        if Path(target).name.startswith(name):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    monkeypatch.setattr("raydd.files.os.replace", fail)


@pytest.mark.usefixtures("no_report")
def test_no_space_for_a_checkpoint(finished_run: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        full(patch, "step_00000004")
        refused(distill(run, store), "No space left for", "step_00000004.safetensors", "bytes")
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step_00000002.safetensors"]
    assert raydd("distill", "--resume", run).code == 0
    assert result(run)["images_sha256"] == result(finished_run)["images_sha256"] and steps_of(run) == [0, 1, 2, 3]


@pytest.mark.usefixtures("no_report")
def test_no_space_for_the_run(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        full(patch, "config.json")
        refused(distill(run, store), "No space left for", "config.json")
    assert distill(run, store, "--evaluation.no_at_end", steps=0).code == 0


def test_no_space_for_an_export(finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full(monkeypatch, "")
    refused(raydd("export", finished_run, "--to", "mtt", tmp_path / "out"), "No space left for")


def test_fault_that_no_part_foresaw(finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "/the/file")

    monkeypatch.setattr("raydd.artifact.read", fail)
    refused(raydd("export", finished_run, "--to", "png", tmp_path / "out"), "/the/file: Permission denied")


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB.")])
def test_no_memory(finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("raydd.artifact.read", fail)
    refused(raydd("export", finished_run, "--to", "png", tmp_path / "out"), "Not enough memory", "raydd plan")


def test_bug_keeps_its_traceback(finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr("raydd.artifact.read", fail)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        raydd("export", finished_run, "--to", "png", tmp_path / "out")
