"""Networks trained on all real images, here or on workers, and what is read from them: features, or scores of every image.

Network k depends on the seed, the settings and k alone, not on how many there are or who trains it.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raydd import devices
from raydd.config import Config, Execution
from raydd.coreset import scores
from raydd.coreset.forgetting import forgetting_scores
from raydd.data import Dataset, Resident, Transform, load
from raydd.errors import ConfigError, DataError, DivergenceError
from raydd.models import FlatModel, build
from raydd.select_config import SelectConfig
from raydd.training import Batches, Phase, Recipe, Streams, fit, initial

PURPOSE = "select"
BY_FEATURES = ("herding", "k_center", "grand")
"""Methods that read the features before the last layer."""


@dataclass(frozen=True)
class TrainedNetwork:
    """What one job brings back.

    index           which network
    arrays          what the method reads: `theta` (P,), and `statistics` (Q,) of batch normalisation where there is any, for features;
                    `counts`, `never` and `loss` (n,) for forgetting; `score` (n,)
    loss, accuracy  means over the last epoch's batches as trained on; None without any epoch
    seconds         wall seconds
    """

    index: int
    arrays: dict[str, np.ndarray]
    loss: float | None
    accuracy: float | None
    seconds: float


@dataclass(frozen=True)
class NetworkWorker:
    """Call it in the process that shall train: it loads the data onto its device and returns `index -> TrainedNetwork`.

    `settings` are resolved, `fingerprint` is that of the data. `dataset`, which saves loading it anew, and `on_epoch`, which is
    called after every epoch, serve only in the process that made them: they are left out when this is pickled for another.
    """

    method: str
    config: Config
    settings: SelectConfig
    fingerprint: str
    transform: Transform
    execution: Execution
    dataset: Dataset | None = None
    on_epoch: Callable[[], None] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "dataset": None, "on_epoch": None}

    def __call__(self) -> Callable[[int], TrainedNetwork]:
        """Raises `DataError` when the data found here is not the data that was asked for."""
        devices.prepare(self.execution.threads, self.execution.deterministic, self.config.tf32)
        device = devices.resolve(self.execution.device)
        dataset = self.dataset or load(self.config.data)
        if dataset.fingerprint != self.fingerprint:
            raise DataError(
                f"--data={self.config.data.source} holds other images on this machine than where the selection was started "
                f"(fingerprint {dataset.fingerprint[:12]}, not {self.fingerprint[:12]}). Give every machine the same files."
            )
        model = build(self.config.model, dataset.shape, len(dataset.classes))
        train = Resident.load(dataset.train, self.transform, device)
        if self.method in BY_FEATURES:
            # Refused now, not after the training.
            features_of(model, initial(model, Streams(0, PURPOSE, (0,)), device).thetas, train, torch.arange(2))
        return _Trainer(self, model, train, device)


@dataclass(frozen=True)
class _Trainer:
    order: NetworkWorker
    model: FlatModel
    train: Resident
    device: torch.device

    def __call__(self, index: int) -> TrainedNetwork:
        started, last = time.perf_counter(), dict[str, float]()

        def on_epoch(number: int, loss: float, accuracy: float) -> None:
            _refuse_divergence(self.order.settings, index, number, loss)
            last.update(loss=loss, accuracy=accuracy)
            if self.order.on_epoch:
                self.order.on_epoch()

        streams = Streams(self.order.config.seed, PURPOSE, (index,))
        arrays = self._forgetting(streams, on_epoch) if self.order.method == "forgetting" else self._read(streams, on_epoch)
        return TrainedNetwork(index, arrays, last.get("loss"), last.get("accuracy"), time.perf_counter() - started)

    def _forgetting(self, streams: Streams, on_epoch: Callable[[int, float, float], None]) -> dict[str, np.ndarray]:
        found = forgetting_scores(self.model, self.train, *self._training(), streams, self.device, on_epoch)
        return {"counts": found.counts.numpy(), "never": found.never.numpy(), "loss": found.loss.numpy()}

    def _read(self, streams: Streams, on_epoch: Callable[[int, float, float], None]) -> dict[str, np.ndarray]:
        # Read as in evaluation mode: batch normalisation by its running statistics.
        networks = initial(self.model, streams, self.device, statistics=True)
        for epoch in fit(self.model, self.train, networks, *self._training(), streams):
            on_epoch(epoch.number, epoch.loss.item(), epoch.accuracy.item())
        theta, running = networks.thetas[0], None if networks.statistics is None else networks.statistics[0]
        if self.order.method in ("grand", "el2n"):
            return {"score": scores_of(self.order.method, self.model, theta, self.train, running).numpy()}
        return {"theta": theta.cpu().numpy()} | ({} if running is None else {"statistics": running.cpu().numpy()})

    def _training(self) -> tuple[tuple[Phase, ...], Recipe]:
        settings, augment = self.order.settings, self.order.config.augment
        recipe = Recipe(
            batch_size=settings.batch_size,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            strategy=augment.strategy if settings.augment else "none",
            parameters=augment.parameters,
        )
        return (Phase(settings.lr, settings.epochs or 0),), recipe


def _refuse_divergence(settings: SelectConfig, index: int, epoch: int, loss: float) -> None:
    if not math.isfinite(loss):
        raise DivergenceError(
            f"Network {index} diverged in epoch {epoch}: its training loss is {loss}. Lower --select.lr={settings.lr:g} or "
            f"--select.momentum={settings.momentum:g}."
        )


@torch.no_grad()
def features_of(
    model: FlatModel, thetas: Tensor | Sequence[Tensor], data: Batches, rows: Tensor, statistics: Sequence[Tensor] | None = None
) -> Tensor:
    """Features (n, E x F) of the images `rows` (n,) before the last layer, those of E networks (P,) side by side; no augmentation.

    `statistics` are the running ones (Q,) of each network's batch normalisation, where there is any. Raises `ConfigError` for a
    network that names no features.
    """
    parts = []
    for some in rows.to(thetas[0].device).split(_batch(thetas[0])):
        images, _ = data.batch(some)
        running = statistics or [None] * len(thetas)
        parts.append(torch.cat([_embed(model, theta, images, own) for theta, own in zip(thetas, running, strict=True)], dim=1))
    return torch.cat(parts)


@torch.no_grad()
def scores_of(method: str, model: FlatModel, theta: Tensor, data: Batches, statistics: Tensor | None = None) -> Tensor:
    """`grand` or `el2n` of every image under one network (P,), with its running `statistics` (Q,) of batch normalisation if any.

    (n,) on the CPU; no augmentation. Raises `ConfigError` for grand and a network that names no features.
    """
    parts = []
    for some in torch.arange(len(data.labels), device=theta.device).split(_batch(theta)):
        images, labels = data.batch(some)
        logits = model(theta, images, statistics)
        if method == "el2n":
            parts.append(scores.el2n(logits, labels))
        else:
            parts.append(scores.grand(logits, labels, _embed(model, theta, images, statistics)))
    return torch.cat(parts).cpu()


def _embed(model: FlatModel, theta: Tensor, images: Tensor, statistics: Tensor | None) -> Tensor:
    """Features (B, F). Raises `ConfigError` for a network that names none."""
    try:
        return model.embed(theta, images, statistics)
    except AttributeError as error:
        if "'embed'" not in str(error):
            raise
        text = f"--model.name={model.config.name} has no features to select by. Use random, forgetting or el2n, or another model."
        raise ConfigError([text]) from error


def _batch(theta: Tensor) -> int:
    """Images at once: as `raydd.training.accuracy`."""
    return 2500 if theta.is_cuda else 200
