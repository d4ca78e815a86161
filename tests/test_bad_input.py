"""Bad input is refused with a message of one screen and exit code 2, and loses nothing: no run folder is left, none is changed."""

import errno
import json
import os
import resource
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from raydd import artifact
from tests.commands import SMALL, contents, distill, raydd, result, steps_of


def refused(outcome: object, *words: str) -> None:
    """The command was refused with a message that holds these words."""
    text = outcome.refusal()
    for word in words:
        assert word in text, f"{word!r} is not in: {text}"


def refused_run(run: Path, store: Path, *arguments: str, words: tuple[str, ...]) -> None:
    """The run was refused and left no folder."""
    refused(distill(run, store, *arguments), *words)
    assert not run.exists()


# What the user wrote


def test_unknown_command() -> None:
    refused(raydd("distil"), "'distil' is not a command", "recipes, plan, experts, distill")


@pytest.mark.parametrize("command", ["plan", "experts", "distill"])
def test_unknown_recipe(command: str) -> None:
    refused(raydd(command, "nosuch"), "'nosuch' is not a recipe", "digits-mtt-ipc1")
    refused(raydd(command), f"raydd {command} needs a recipe")


def test_unknown_setting(store: Path, tmp_path: Path) -> None:
    refused_run(tmp_path / "run", store, "--temperature", "3", words=("--temperature",))


def test_value_of_the_wrong_type(store: Path, tmp_path: Path) -> None:
    refused_run(tmp_path / "run", store, "--selection.candidates", "many", words=("--selection.candidates", "'many'"))
    refused_run(tmp_path / "run", store, "--selection.policy", "best", words=("--selection.policy", "dynadistill"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--data", "nosuch"), ("--data=nosuch is not a source", "digits", "parquet:DIR")),
        (("--data", "parquet:/no/such/folder"), ("parquet:/no/such/folder", "no such folder")),
        (("--method", "nosuch"), ("--method=nosuch is not a method", "mtt")),
        (("--model.name", "nosuch"), ("--model.name=nosuch is not a model", "convnet")),
        (("--model.depth", "4"), ("--model.depth=4", "8 x 8", "--data.size")),
        (("--selection.candidates", "4"), ("--selection.candidates=4 is more than the pool of 3 experts", "raise --experts")),
        (("--selection.pool", "2"), ("--selection.candidates=3 is more than the pool of 2 experts",)),
        (("--selection.pool", "9"), ("--selection.pool=9 is more than --experts=3",)),
        (("--experts.epochs", "4"), ("experts of 7 epochs", "--experts.epochs=4", "lower --mtt.max_start_epoch")),
        (("--selection.temperature", "0"), ("--selection.temperature=0.0 must be above 0",)),
        (("--selection.temperature", "-1"), ("--selection.temperature=-1.0 must be above 0",)),
        (("--selection.temperature", "nan"), ("--selection.temperature=nan must be a finite number",)),
        (("--selection.sign", "2"), ("--selection.sign=2.0 must be between -1", "and 1")),
        (("--mtt.lr_img", "inf"), ("--mtt.lr_img=inf must be a finite number",)),
        (("--mtt.momentum", "1"), ("--mtt.momentum=1.0 must be below 1",)),
        (("--augment.strategy", "crop_spin"), ("unknown operation 'spin'", "color, crop, cutout")),
        (("--ipc", "125"), ("--ipc=125 is more than the 124 training images of class 8", "at most 124")),
        (("--ipc", "125", "--init", "noise"), ("--ipc=125", "--evaluation.no_at_end")),
        (("--workers", "-1"), ("--workers=-1 must be at least 0",)),
        (("--threads", "0"), ("--threads=0 must be at least 1",)),
        (("--checkpoint_every", "0"), ("--checkpoint_every=0 must be at least 1",)),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith("--") else "",
)
def test_setting_that_cannot_be(store: Path, tmp_path: Path, arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    refused_run(tmp_path / "run", store, *arguments, words=words)


@pytest.mark.parametrize(
    ("method", "arguments", "words"),
    [
        ("dc", ("--ipc", "2"), ("--ipc=2 has no loop counts", "1, 10, 20, 30, 40, 50", "Give --dc.outer", "--dc.inner")),
        ("dsa", ("--ipc", "5", "--dc.outer", "3"), ("--ipc=5 has no loop counts", "--dc.inner")),
        ("dc", (), ("--dc.batch_real=256: class '8' has 124 training images", "at most as many")),
        ("dm", ("--dm.batch_real", "125"), ("--dm.batch_real=125: class '8' has 124",)),
        ("cafe", (), ("--cafe.batch_real=256", "--cafe.queries=128")),
        ("cafe", ("--model.name", "mlp"), ("--model.name=mlp: cafe matches the maps of a convnet", "--model.name convnet")),
        ("idc", ("--init", "real"), ("--init=real with --idc.factor=2", "--init mix, kmeans or noise")),
        ("idc", ("--init", "mix", "--idc.factor", "9"), ("--idc.factor=9 is more than the 8 pixels of a side",)),
        ("idc", ("--init", "mix", "--ipc", "32"), ("--init=mix with --ipc=32", "128 training images of each class")),
        ("idc", ("--init", "mix", "--selection.every", "101"), ("--selection.every=101 is more than the 100 image updates",)),
        ("idc", ("--init", "mix", "--selection.rank_batch", "own"), ("--selection.rank_batch=own needs", "dream or dreamplus")),
        ("idc", ("--init", "mix", "--idc.mix_probability", "2"), ("--idc.mix_probability=2.0 must be at most 1",)),
        ("dream", ("--init", "mix", "--idc.batch_real", "125"), ("--idc.batch_real=125: class '8' has 124",)),
        ("dream", ("--init", "kmeans", "--ipc", "32"), ("--init=kmeans with --ipc=32", "128 training images of each class")),
        ("dream", ("--init", "mix", "--dream.subsample", "3"), ("--dream.subsample=3 does not divide --idc.batch_real=64",)),
        ("dreamplus", ("--init", "mix", "--model.depth", "4"), ("--model.depth=4", "8 x 8")),
        ("dm", ("--model.name", "resnet18", "--dm.batch_real", "9"), ("--model resnet18", "cannot take images of 8 x 8")),
        ("dm", ("--selection.slots", "keep", "--selection.pool", "2"), ("--selection.candidates=3 is more than the 2 network slots",)),
        ("dm", ("--selection.share_start",), ("--selection.share_start=True does not go with --method dm",)),
        ("dc", ("--selection.rank_batch", "own"), ("--selection.rank_batch=own does not go with --method dc",)),
        ("dc", ("--selection.warm_up_images", "9"), ("--selection.warm_up_images=9 does not go with --method dc",)),
        ("mtt", ("--selection.slots", "keep"), ("--selection.slots=keep does not go with --method mtt",)),
        ("mtt", ("--selection.every", "2", "--selection.no_common_draws"), ("--selection.every=2", "--selection.common_draws=False")),
    ],
    ids=lambda value: value if isinstance(value, str) else next((part for part in value if part.startswith("--")), ""),
)
def test_setting_that_does_not_go_with_the_method(
    store: Path, tmp_path: Path, method: str, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    """The experts of another method are neither looked for nor trained."""
    refused_run(tmp_path / "run", store, "--method", method, *arguments, words=words)


def test_one_class_cannot_be_told_apart(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYDD_CACHE", str(tmp_path / "cache"))
    for split in ("train", "test"):
        folder = tmp_path / "data" / split / "cat"
        folder.mkdir(parents=True)
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "a.png")
    arguments = ("--data", f"folder:{tmp_path / 'data'}", "--method", "cafe", "--cafe.batch_real", "1", "--cafe.queries", "1")
    refused_run(tmp_path / "run", store, *arguments, words=("at least two classes", "found: cat"))


def test_every_fault_is_told_at_once(store: Path, tmp_path: Path) -> None:
    faults = ("--selection.temperature", "0", "--ipc", "0", "--selection.candidates", "9", "--experts.epochs", "2", "--threads", "0")
    words = ("--selection.temperature=0.0", "--ipc=0", "--selection.candidates=9", "--experts.epochs=2", "--threads=0")
    refused_run(tmp_path / "run", store, *faults, words=words)


@pytest.mark.parametrize("command", ["plan", "experts"])
def test_plan_and_experts_check_settings_too(command: str) -> None:
    refused(raydd(command, "digits-mtt-ipc1", "--mtt.syn_steps", "0", "--threads", "0"), "--mtt.syn_steps=0", "--threads=0")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ("No such file",)),
        (b"title = [", ("cannot be read",)),
        (b"\xff\xfe\x00", ("cannot be read",)),
        (b'title = "t"', ("lacks source",)),
        (b'title = "t"\nsource = "s"\nsettings = 3', ("lacks the table [settings]",)),
        (b'title = "t"\nsource = 3\n[settings]', ("lacks source",)),
        (b'title = "t"\nsource = "s"\n[settings]\nmtt = 3\nipx = 2\nsteps = "x"', ("mtt=3", "ipx is not a setting", "steps='x'")),
    ],
)
def test_recipe_file_that_cannot_be_used(tmp_path: Path, content: bytes | None, words: tuple[str, ...]) -> None:
    path = tmp_path / "mine.toml"
    if content is not None:
        path.write_bytes(content)
    refused(raydd("distill", path, "--run", tmp_path / "run"), "mine", *words)
    assert not (tmp_path / "run").exists()


# Data


@pytest.fixture
def parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Parquet files without a column of images."""
    monkeypatch.setenv("RAYDD_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "parquet"
    folder.mkdir()
    for split in ("train", "test"):
        pq.write_table(pa.table({"label": [0, 1], "text": ["a", "b"]}), folder / f"{split}-00000-of-00001.parquet")
    return folder


def test_parquet_without_images(parquet: Path, store: Path, tmp_path: Path) -> None:
    words = ("has no column image or img", "its columns are: label, text")
    refused_run(tmp_path / "run", store, "--data", f"parquet:{parquet}", words=words)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for split in ("train", "test"):
        rows = pa.array([{"bytes": None, "path": "a.png"}, {"bytes": b"no picture", "path": None}], kind)
        pq.write_table(pa.table({"label": [0, 1], "image": rows}), parquet / f"{split}-00000-of-00001.parquet")
    refused_run(tmp_path / "run", store, "--data", f"parquet:{parquet}", words=("row 0", "no image bytes"))


def test_parquet_that_is_truncated(parquet: Path, store: Path, tmp_path: Path) -> None:
    file = parquet / "train-00000-of-00001.parquet"
    file.write_bytes(file.read_bytes()[:-20])
    refused_run(tmp_path / "run", store, "--data", f"parquet:{parquet}", words=(str(file), "not a readable Parquet file"))


# Experts


def test_store_without_the_experts(tmp_path: Path) -> None:
    words = ("3 experts of 7 epochs", "lacks 3 of them", "raydd experts digits-mtt-ipc1 --experts 3 --experts.epochs 7")
    refused_run(tmp_path / "run", tmp_path / "store", "--no_train_experts", words=words)


def test_store_with_experts_that_are_too_short(store: Path, tmp_path: Path) -> None:
    longer = ("--mtt.max_start_epoch", "9", "--no_train_experts")
    refused_run(tmp_path / "run", store, *longer, words=("--mtt.max_start_epoch=9", "10 epochs", "lacks 3", "raydd experts"))


def test_truncated_store(store: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(store, tmp_path / "store"))
    file = next(copy.glob("*/expert_00001.arrow"))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    refused_run(tmp_path / "run", copy, words=(str(file), "damaged", "Delete it and run `raydd experts`"))
    assert len(list(copy.glob("*/*.arrow"))) == 3


def test_store_that_is_a_file(store: Path, tmp_path: Path) -> None:
    path = tmp_path / "store"
    path.write_text("mine")
    refused_run(tmp_path / "run", path, words=(str(path),))
    assert path.read_text() == "mine"


# Machine


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


# Run folders


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
