"""Who trains experts: a callable that a process builds once, with the data resident, and then gives groups of experts."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from raydd import devices
from raydd.config import Config, Execution
from raydd.curriculum_scores import training_split
from raydd.data import Dataset, Resident, Transform, load
from raydd.environment import versions
from raydd.errors import DataError
from raydd.experts.jobs import Job
from raydd.experts.starts import StartsPlace
from raydd.experts.store import Store
from raydd.experts.train import Snapshot, resumable, trajectories
from raydd.models import FlatModel, build
from raydd.training import accuracy


@dataclass(frozen=True)
class JobResult:
    """What a job did: its experts, wall seconds, images put through training, and the test accuracy (0..1) of each expert."""

    experts: tuple[int, ...]
    seconds: float
    images: int
    accuracies: tuple[float, ...]


@dataclass(frozen=True)
class ExpertWorker:
    """Call it in the process that shall train: it loads the data onto its device and returns `job -> JobResult`.

    The store is opened from `root` and `recipe`, and `fingerprint` is that of the data. With `starts` the experts are those of a
    later stage (PDD), which begin as these networks. `stage` says whose real images they train on (`raydd.curriculum`); the scores
    are under `root`. `dataset`, which saves loading it anew
    from `config.data`, and `on_epoch`, which hears how many images every epoch took, serve only in the process that made them:
    they are left out when this is pickled for another.
    """

    config: Config
    root: str
    recipe: dict[str, Any]
    fingerprint: str
    transform: Transform
    epochs: int
    execution: Execution = field(default_factory=Execution)
    starts: StartsPlace | None = None
    stage: int = 1
    dataset: Dataset | None = None
    on_epoch: Callable[[int], None] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "dataset": None, "on_epoch": None}

    def __call__(self) -> Callable[[Job], JobResult]:
        """Raises `DataError` when the data found here is not the data that the experts are for."""
        devices.prepare(self.execution.threads, self.execution.deterministic, self.config.tf32)
        device = devices.resolve(self.execution.device)
        dataset = self.dataset or training_split(self.config, self.root, load(self.config.data), self.stage)
        if dataset.fingerprint != self.fingerprint:
            raise DataError(
                f"--data={self.config.data.source} holds other images on this machine than where the run was started "
                f"(fingerprint {dataset.fingerprint[:12]}, not {self.fingerprint[:12]}). Give every machine the same files."
            )
        return _Trainer(
            self,
            Store.open(self.root, self.recipe, verify=False),
            build(self.config.model, dataset.shape, len(dataset.classes)),
            Resident.load(dataset.train, self.transform, device),
            Resident.load(dataset.test, self.transform, device),
            device,
        )


@dataclass(frozen=True)
class _Trainer:
    order: ExpertWorker
    store: Store
    model: FlatModel
    train: Resident
    test: Resident
    device: torch.device

    def __call__(self, job: Job) -> JobResult:
        """Train what the job's experts lack and write it. Experts that another process finished meanwhile are left alone."""
        started = time.perf_counter()
        order, images = self.order, 0
        short = [expert for expert in job if not self.store.reaches(expert, order.epochs)]
        if not short:
            return JobResult(tuple(job), 0.0, 0, tuple(self._known_accuracy(expert) for expert in job))
        stage = order.starts.stage if order.starts else 1
        walk = []
        for snapshot in trajectories(order.config, self.model, self.train, job, order.epochs, self.device, self._start(job), stage):
            walk.append(snapshot)
            images += snapshot.images
            if order.on_epoch and snapshot.images:
                order.on_epoch(snapshot.images)
        accuracies = accuracy(self.model, walk[-1].thetas.to(self.device), self.test).tolist()
        for place, expert in enumerate(job):
            if expert in short:
                self._write(expert, place, walk, accuracies[place])
        return JobResult(tuple(job), time.perf_counter() - started, images, tuple(accuracies))

    def _start(self, job: Job) -> Snapshot | None:
        """What the job goes on from: the last snapshots that all its experts have, the networks of the stage's start, or nothing."""
        epoch = start_epoch(self.order.config, self.store, job)
        if epoch is not None:
            return Snapshot(epoch, torch.stack([self.store.tensor(expert, epoch) for expert in job]))
        return self.order.starts and Snapshot(0, self.order.starts.thetas(job))

    def _write(self, expert: int, place: int, walk: list[Snapshot], test_accuracy: float) -> None:
        """Put the walk of one expert behind the snapshots that it already has."""
        first = walk[0].epoch
        before = self.store.metadata(expert) if first else {}
        kept = [self.store.theta(expert, epoch) for epoch in range(first)]
        metadata = {
            "layout": self.model.layout,
            "train_loss": before.get("train_loss", [])[:first] + [snapshot.loss[place] for snapshot in walk[1:]],
            "train_accuracy": before.get("train_accuracy", [])[:first] + [snapshot.accuracy[place] for snapshot in walk[1:]],
            "test_accuracy": [*before.get("test_accuracy", []), [walk[-1].epoch, test_accuracy]],
            "versions": versions(),
            "device": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu",
        }
        self.store.write(expert, kept + [snapshot.thetas[place].numpy() for snapshot in walk], metadata)

    def _known_accuracy(self, expert: int) -> float:
        return self.store.metadata(expert)["test_accuracy"][-1][1]


def start_epoch(config: Config, store: Store, job: Job) -> int | None:
    """The last epoch that all experts of a job have, from which training can go on; None where it must begin anew."""
    lengths = [store.epochs(expert) for expert in job]
    known = [length for length in lengths if length is not None]
    return min(known) if resumable(config) and len(known) == len(job) else None
