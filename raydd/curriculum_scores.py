"""The scores of a curriculum: one file for each training that gives them, beside the expert stores, shared by runs and workers.

The driver of a run computes them once (`ready`); everybody else reads them (`training_split`).
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import pyarrow as pa
import torch
from filelock import FileLock, Timeout

from raydd import curriculum
from raydd.config import Config, Execution, fingerprint
from raydd.coreset import Forgetting
from raydd.coreset.forgetting import packed, unpacked
from raydd.coreset.networks import NetworkWorker, TrainedNetwork
from raydd.data import Dataset, Transform
from raydd.errors import CheckpointError, DivergenceError, StoreError
from raydd.experts.folder import Folder
from raydd.models import build
from raydd.select_config import SelectConfig

FOLDER = "forgetting"
_WAIT_SECONDS = 0.5

RunJobs = Callable[[Callable[[], Callable[[Any], Any]], Sequence[Any], Callable[[Any], None]], None]
"""`run_jobs(make_worker, jobs, on_result)`, as `raydd.services` has it."""


def training_split(config: Config, root: str, dataset: Dataset, stage: int) -> Dataset:
    """The real data of a stage: without a curriculum all of it, the same object; else with the stage's training images alone.

    `dataset` is what `raydd.data.load` gives, `root` the folder of the stores, where the scores are; they are read and never computed
    here. How pixels become training space is a matter of the whole set: fit the transform on `dataset`. Raises `StoreError` where the
    scores are absent or damaged, `ConfigError` where the stage is empty for a class.
    """
    if config.curriculum.scores == "none":
        return dataset
    found = stored(config, root, dataset)
    if found is None:
        raise StoreError(
            f"{_folder(root).place(file_name(config, dataset))} is absent: the scores of the curriculum, computed where a run is started. "
            "Give all machines one --store."
        )
    return curriculum.stage_dataset(dataset, curriculum.stage_rows(config, found, dataset, stage))


def ready(
    config: Config,
    root: str,
    dataset: Dataset,
    transform: Transform,
    execution: Execution,
    run_jobs: RunJobs,
    report: Callable[[dict[str, Any]], None] = lambda progress: None,
    heed: Callable[[], None] = lambda: None,
) -> dict[str, Any] | None:
    """Have the scores computed if they are not there, and check every stage; returns `curriculum.summary`, None without a curriculum.

    One network is trained by `run_jobs`; `report` hears of its epochs and of what the stages use. `heed()` is called now and then; what
    it raises ends the training, which is done anew the next time. Raises `ConfigError` where a stage is empty for a class, `StoreError`
    for a damaged file, `DivergenceError`.
    """
    if config.curriculum.scores == "none":
        return None
    found = stored(config, root, dataset)
    if found is None:
        with _turn(_folder(root), file_name(config, dataset), heed):
            found = stored(config, root, dataset)
            if found is None:
                found = _computed(config, dataset, transform, execution, run_jobs, report, heed)
                details = {"recipe": recipe(config, dataset)}
                _folder(root).write(file_name(config, dataset), pa.py_buffer(packed(found, details)))
    result = curriculum.summary(config, found, dataset)
    report({"phase": "note", "text": result["text"]})
    return result


def recipe(config: Config, dataset: Dataset) -> dict[str, Any]:
    """Everything that decides the scores, JSON-ready; its hash names the file."""
    own, data = config.curriculum, config.data
    names = ("epochs", "lr", "momentum", "weight_decay", "batch_size", "seed")
    return {
        "format": 1,
        "fingerprint": dataset.fingerprint,
        "transform": {"zca_eps": data.zca_eps} if data.zca else {"mean": list(dataset.mean), "std": list(dataset.std)},
        "model": asdict(config.model),
        "parameters": build(config.model, dataset.shape, len(dataset.classes)).size,
        "training": {name: getattr(own, name) for name in names},
        "augment": asdict(config.augment) if own.augment else None,
        "tf32": config.tf32,
    }


def file_name(config: Config, dataset: Dataset) -> str:
    """The name of the file in the folder `FOLDER` of the stores."""
    return f"{fingerprint(recipe(config, dataset))[:16]}.safetensors"


def stored(config: Config, root: str, dataset: Dataset) -> Forgetting | None:
    """The scores of a run with these settings, None where they are not computed yet. Raises `StoreError` for a damaged file."""
    folder, file = _folder(root), file_name(config, dataset)
    try:
        with folder.source(file) as source:
            found, details = unpacked(source.read(), folder.place(file))
    except FileNotFoundError:
        return None
    except CheckpointError as error:
        raise StoreError(f"{error} Delete it; the next run computes the scores anew.") from error
    if details.get("recipe") != recipe(config, dataset) or len(found.counts) != len(dataset.train):
        raise StoreError(f"{folder.place(file)}: holds the scores of another training. Delete it; the next run computes them anew.")
    return found


def _folder(root: str) -> Folder:
    return Folder(root).child(FOLDER)


@contextlib.contextmanager
def _turn(folder: Folder, file: str, heed: Callable[[], None]) -> Iterator[None]:
    """Hold the lock beside a file, so that one process of a machine computes it and the others wait; object stores have none."""
    if folder.local is None:
        yield
        return
    folder.local.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.local / f".{file}.lock")
    while not lock.is_locked:
        heed()
        with contextlib.suppress(Timeout):
            lock.acquire(timeout=_WAIT_SECONDS)
    try:
        yield
    finally:
        lock.release()


def _computed(
    config: Config,
    dataset: Dataset,
    transform: Transform,
    execution: Execution,
    run_jobs: RunJobs,
    report: Callable[[dict[str, Any]], None],
    heed: Callable[[], None],
) -> Forgetting:
    own, results, done = config.curriculum, list[TrainedNetwork](), 0

    def tell(epochs: int) -> None:
        report({"phase": "curriculum", "done": epochs, "total": own.epochs})

    def on_epoch() -> None:
        nonlocal done
        done += 1
        tell(done)
        heed()

    settings = SelectConfig(1, own.epochs, own.lr, own.momentum, own.weight_decay, own.batch_size, own.augment)
    worker = NetworkWorker(
        method="forgetting",
        config=replace(config, seed=own.seed),
        settings=settings,
        fingerprint=dataset.fingerprint,
        transform=transform,
        execution=execution,
        dataset=dataset,
        on_epoch=on_epoch,
    )
    tell(0)
    try:
        run_jobs(worker, [0], results.append)
    except DivergenceError as error:
        raise DivergenceError(str(error).replace("--select.", "--curriculum.")) from error
    if done < own.epochs:  # the epochs of another process are heard of only here
        tell(own.epochs)
    return Forgetting(**{name: torch.tensor(array) for name, array in results[0].arrays.items()})
