"""The expert store of a configuration: which recipe it has, what is missing from it, and having that trained."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raydd.config import Config, Execution, expert_epochs
from raydd.data import Dataset, Transform
from raydd.experts.identity import network_identity, training_identity
from raydd.experts.jobs import Meter, Progress, RunJobs, check_space, groups_of, inline_jobs
from raydd.experts.starts import StartsPlace
from raydd.experts.store import Store
from raydd.experts.train import learning_rate, training_recipe
from raydd.experts.worker import ExpertWorker, JobResult, start_epoch


def recipe(config: Config, dataset: Dataset, starts: StartsPlace | None = None) -> dict[str, Any]:
    """Everything that decides the bits of an expert besides its index, JSON-ready; its hash names the store.

    The count of experts is no part of it, nor, without a decaying rate, their length: the snapshots of a longer trajectory
    begin with those of a shorter one. `starts` are the networks that the experts of a later stage (PDD) begin as.
    """
    return {
        **network_identity(config, dataset),
        "training": {"lr": learning_rate(config, starts.stage if starts else 1), **training_identity(training_recipe(config))},
        "decay_of_epochs": config.experts.epochs if config.experts.decay else None,
        "seed": config.experts.seed,
        **({"stage": starts.stage, "starts": starts.key} if starts else {}),
    }


def store_root(execution: Execution) -> str:
    """Where stores are kept: `--store`, else $RAYDD_STORE, else ~/.cache/raydd/experts."""
    return execution.store or os.environ.get("RAYDD_STORE") or str(Path.home() / ".cache" / "raydd" / "experts")


def open_store(config: Config, root: str, dataset: Dataset, verify: bool = True, starts: StartsPlace | None = None) -> Store:
    """The store of this configuration under `root`, a path or a URI. Raises `StoreError` for damaged or foreign files."""
    return Store.open(root, recipe(config, dataset, starts), verify)


def train_missing(
    config: Config,
    dataset: Dataset,
    transform: Transform,
    store: Store,
    run_jobs: RunJobs = inline_jobs,
    progress: Callable[[Progress], None] = lambda progress: None,
    execution: Execution | None = None,
    starts: StartsPlace | None = None,
    stage: int = 1,
) -> list[JobResult]:
    """Train the experts that `config` asks for and the store lacks, and those that are too short; [] when none is.

    The store is that of `open_store` for the same `starts`, which must exist where they are given. `dataset` is what
    `raydd.curriculum_scores.training_split` gives for `stage`.
    With `experts.together` above 1 whole groups are trained, so up to together - 1 experts more than asked for may appear.
    `progress` is called after every job, and after every epoch of those that run in this process. Finished experts stay when this is
    interrupted. Raises `ResourceError` before starting when the disk cannot hold the result, and while writing when it fills up.
    """
    epochs = expert_epochs(config)
    jobs = groups_of(store.missing(config.experts.count, epochs), config.experts.together)
    if not jobs:
        return []
    writes = [expert for job in jobs for expert in job if not store.reaches(expert, epochs)]
    check_space(
        store.folder,
        len(writes) * (epochs + 1) * store.recipe["parameters"] * 4,
        f"{len(writes)} experts of {epochs} epochs",
        "--experts or --mtt.max_start_epoch",
    )
    images = sum(len(job) * len(dataset.train) * (epochs - (start_epoch(config, store, job) or 0)) for job in jobs)
    meter, results = Meter(sum(map(len, jobs)), images, progress), list[JobResult]()

    def keep(result: JobResult) -> None:
        results.append(result)
        meter.job(len(result.experts), result.images)

    worker = ExpertWorker(
        config=config,
        root=store.root,
        recipe=store.recipe,
        fingerprint=dataset.fingerprint,
        transform=transform,
        epochs=epochs,
        execution=execution or Execution(),
        starts=starts,
        stage=stage,
        dataset=dataset,
        on_epoch=meter.epoch,
    )
    run_jobs(worker, jobs, keep)
    return results
