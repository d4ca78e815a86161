"""The expert store of a configuration: which recipe it has, what is missing from it, and having that trained."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from raydd.config import Config, Execution, expert_epochs
from raydd.data import Dataset, Transform
from raydd.errors import ResourceError
from raydd.experts.files import FORMAT
from raydd.experts.store import Store
from raydd.experts.train import training_recipe
from raydd.experts.worker import ExpertWorker, Job, JobResult, start_epoch
from raydd.models import build

MakeWorker = Callable[[], Callable[[Any], Any]]
RunJobs = Callable[[MakeWorker, Sequence[Any], Callable[[Any], None]], None]
"""Runs jobs somewhere: `run_jobs(make_worker, jobs, on_result)` calls `make_worker()` once in each process, gives every job to
one of the workers, and calls `on_result(result)` here as each finishes. An error in a worker is raised here."""


@dataclass(frozen=True)
class Progress:
    """How far building is: experts `done` of `total`, images per second over all workers, and the seconds that are left."""

    done: int
    total: int
    images_per_second: float
    seconds_left: float


def recipe(config: Config, dataset: Dataset) -> dict[str, Any]:
    """Everything that decides the bits of an expert besides its index, JSON-ready; its hash names the store.

    The count of experts is no part of it, nor, without a decaying rate, their length: the snapshots of a longer trajectory
    begin with those of a shorter one.
    """
    data = config.data
    return {
        "format": FORMAT,
        "data": {
            "fingerprint": dataset.fingerprint,
            "shape": list(dataset.shape),
            "classes": len(dataset.classes),
            "transform": {"zca_eps": data.zca_eps} if data.zca else {"mean": list(dataset.mean), "std": list(dataset.std)},
        },
        "model": asdict(config.model),
        "parameters": build(config.model, dataset.shape, len(dataset.classes)).size,
        "training": {"lr": config.experts.lr, **_augmentation(asdict(training_recipe(config)))},
        "decay_of_epochs": config.experts.epochs if config.experts.decay else None,
        "together": config.experts.together,
        "tf32": config.tf32,
        "seed": config.experts.seed,
    }


def _augmentation(values: dict[str, Any]) -> dict[str, Any]:
    """Without augmentation the rule for its parameters decides nothing."""
    return values | {"parameters": None} if values["strategy"] == "none" else values


def store_root(execution: Execution) -> str:
    """Where stores are kept: `--store`, else $RAYDD_STORE, else ~/.cache/raydd/experts."""
    return execution.store or os.environ.get("RAYDD_STORE") or str(Path.home() / ".cache" / "raydd" / "experts")


def open_store(config: Config, root: str, dataset: Dataset, verify: bool = True) -> Store:
    """The store of this configuration under `root`, a path or a URI. Raises `StoreError` for damaged or foreign files."""
    return Store.open(root, recipe(config, dataset), verify)


def group_of(expert: int, together: int) -> Job:
    """The experts that are always trained in one pass with this one: rounding then does not depend on how many are asked for."""
    first = expert // together * together
    return list(range(first, first + together))


def inline_jobs(make_worker: MakeWorker, jobs: Sequence[Any], on_result: Callable[[Any], None]) -> None:
    """`RunJobs` in this process, one job after another."""
    worker = make_worker()
    for job in jobs:
        on_result(worker(job))


def train_missing(
    config: Config,
    dataset: Dataset,
    transform: Transform,
    store: Store,
    run_jobs: RunJobs = inline_jobs,
    progress: Callable[[Progress], None] = lambda progress: None,
    execution: Execution | None = None,
) -> list[JobResult]:
    """Train the experts that `config` asks for and the store lacks, and those that are too short; [] when none is.

    With `experts.together` above 1 whole groups are trained, so up to together - 1 experts more than asked for may appear.
    `progress` is called after every job, and after every epoch of those that run in this process. Finished experts stay when this is
    interrupted. Raises `ResourceError` before starting when the disk cannot hold the result, and while writing when it fills up.
    """
    epochs = expert_epochs(config)
    missing = store.missing(config.experts.count, epochs)
    jobs = [list(job) for job in dict.fromkeys(tuple(group_of(expert, config.experts.together)) for expert in missing)]
    if not jobs:
        return []
    _check_space(store, jobs, epochs)
    meter = _Meter(config, store, jobs, epochs, len(dataset.train), progress)
    run_jobs(
        ExpertWorker(
            config=config,
            root=store.root,
            recipe=store.recipe,
            fingerprint=dataset.fingerprint,
            transform=transform,
            epochs=epochs,
            execution=execution or Execution(),
            dataset=dataset,
            on_epoch=meter.epoch,
        ),
        jobs,
        meter.job,
    )
    return meter.results


class _Meter:
    """Counts images against the clock."""

    def __init__(self, config: Config, store: Store, jobs: list[Job], epochs: int, images: int, progress: Callable[[Progress], None]):
        self.results: list[JobResult] = []
        self._total = sum(len(job) for job in jobs)
        self._images = sum(len(job) * images * (epochs - (start_epoch(config, store, job) or 0)) for job in jobs)
        self._seen, self._reported, self._progress = 0, 0, progress
        self._started = time.perf_counter()

    def epoch(self, images: int) -> None:
        self._seen += images
        self._reported += images
        self._tell()

    def job(self, result: JobResult) -> None:
        self.results.append(result)
        # Epochs of this job that were counted one by one must not count again.
        self._seen += result.images - self._reported
        self._reported = 0
        self._tell()

    def _tell(self) -> None:
        rate = self._seen / max(time.perf_counter() - self._started, 1e-9)
        done = sum(len(result.experts) for result in self.results)
        left = (self._images - self._seen) / rate if rate and done < self._total else 0.0
        self._progress(Progress(done, self._total, rate, left))


def _check_space(store: Store, jobs: list[Job], epochs: int) -> None:
    """Refuse to start what cannot be written. Raises `ResourceError` with both numbers."""
    free = store.folder.free_bytes()
    writes = [expert for job in jobs for expert in job if not store.reaches(expert, epochs)]
    needed = len(writes) * (epochs + 1) * store.recipe["parameters"] * 4
    if free is not None and free < needed:
        raise ResourceError(
            f"No space for {len(writes)} experts of {epochs} epochs in {store.folder.location}: they need {needed:,} bytes, "
            f"{free:,} are free. Free space, give a larger disk with --store, or lower --experts or --mtt.max_start_epoch."
        )
