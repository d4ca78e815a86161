"""Learning classes phase by phase from the images that were kept of each: the protocols, for networks of one head of all classes.

scratch        a new network for each phase, with the full head, trained on all that is kept (DatasetCondensation, `CL_DM.py`). Logits
               of classes still to come take part in softmax and prediction; there is nothing else that they could mean.
sequential     the network of the phase before, trained on with all that is kept. Its head grows: logits of classes to come are cut off
               (`SeenHead`), and the rows of new classes are drawn afresh when they come. What is cut off gets no gradient and is drawn
               anew before it is used, so that the full-size vector is exactly a head that grows.
sequential+kd  the same, with the soft labels of its earlier self (Efficient-Dataset-Condensation, `continual-learning`).

Source: specs/dc_dsa_dm_cafe_selection_cl.md section 10. Staged sets are trained on stage by stage inside a phase, as
`evaluation.stages` says: stage s on the images of all phases so far, up to that stage (section 10.3).
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from raydd import devices
from raydd.config import Config, Execution
from raydd.continual_config import ContinualConfig
from raydd.data import Dataset, ImageSet, Resident, Transform, load
from raydd.errors import ConfigError, DataError
from raydd.evaluate import TrainingSet, rate, settings_for, stage_sequence, train_on
from raydd.models import FlatModel, build
from raydd.training import Batch, Batches, Loss, Networks, Streams, accuracy, initial

PURPOSE = "continual"


@dataclass(frozen=True)
class Kept:
    """What is kept of one phase, as networks are trained on it.

    images  float32 (n, C, H, W) in training space, decoded
    labels  int64 (n,), the place of the class in the order of all classes
    stages  int64 (n,), from 1; every phase has as many stages
    rates   the learned step size of each stage, or what stands for it
    stored  images of each class as they are stored, of all stages
    """

    images: Tensor
    labels: Tensor
    stages: Tensor
    rates: tuple[float, ...]
    stored: int


class SeenHead(FlatModel):
    """A network whose head has grown to its first `seen` classes: the logits of later ones are cut off."""

    def __init__(self, whole: FlatModel, seen: int):
        super().__init__(whole._module, whole.shape, seen, whole.config)

    def __call__(self, theta: Tensor, images: Tensor, statistics: Tensor | None = None) -> Tensor:
        """Logits (B, seen)."""
        return super().__call__(theta, images, statistics)[:, : self.classes]

    def observe(self, theta: Tensor, images: Tensor, statistics: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, seen) and the running statistics after the batch."""
        logits, after = super().observe(theta, images, statistics)
        return logits[:, : self.classes], after


def learn(
    config: Config,
    settings: ContinualConfig,
    model: FlatModel,
    kept: Sequence[Kept],
    tests: Sequence[Batches],
    net: int,
    device: torch.device | str,
    on_pass: Callable[[], None] = lambda: None,
) -> list[list[float]]:
    """Train network `net` through the phases of `kept` and test it after each.

    Row t of the result has the accuracies (0..1) on `tests[0..t]`, the test images of each phase's classes, labelled as in `kept`. Each
    phase trains as `config.evaluation` says, at the mean of the phases' learned rates where the protocol has none of its own. The network
    depends on `config.seed`, `net` and the images alone. `on_pass()` is called after every pass over a set.
    """
    classes = model.classes // len(kept)
    _head(model, 0, model.classes)  # refused before any training
    networks: Networks | None = None
    matrix = []
    for phase in range(len(kept)):
        seen = SeenHead(model, (phase + 1) * classes)
        head = model if settings.protocol == "scratch" else seen
        streams = Streams(config.seed, f"{PURPOSE}-{phase + 1}", (net,))
        fresh, before = initial(model, streams, device, statistics=True), networks
        loss = None
        if before is None or settings.protocol == "scratch":
            networks = fresh
        else:
            networks = grown(model, before, fresh, phase * classes, (phase + 1) * classes)
            if settings.protocol == "sequential+kd":
                loss = held_near(SeenHead(model, phase * classes), before, settings)
        _train(config, head, seen, networks, sets_of(config, kept[: phase + 1]), kept[0].stored, streams, loss, on_pass)
        matrix.append([accuracy(head, networks.thetas, test, statistics=networks.statistics).item() for test in tests[: phase + 1]])
    return matrix


def sets_of(config: Config, kept: Sequence[Kept]) -> list[TrainingSet]:
    """What networks are trained on in turn after the last of these phases: the images of all of them, by stages, at their mean rate."""
    images, labels, stages = (torch.cat([getattr(own, name) for own in kept]) for name in ("images", "labels", "stages"))
    sets = []
    for stage, chosen in stage_sequence(config.evaluation.stages, stages):
        learned = math.fsum(own.rates[stage - 1] for own in kept) / len(kept)
        sets.append(TrainingSet(images[chosen], labels[chosen], rate(config, learned)))
    return sets


def passes(config: Config, model: FlatModel, kept: Sequence[Kept]) -> int:
    """Passes over sets that `learn` makes in all. Raises `ConfigError` for settings of the evaluation that do not go together."""
    classes, total = model.classes // len(kept), 0
    for phase in range(len(kept)):
        sets = sets_of(config, kept[: phase + 1])
        seen = SeenHead(model, (phase + 1) * classes)
        total += len(sets) * settings_for(config, seen, *(len(own.labels) for own in sets), ipc=kept[0].stored).passes()
    return total


def grown(model: FlatModel, networks: Networks, fresh: Networks, first: int, stop: int) -> Networks:
    """Copies of networks, without momentum, whose head has the rows of classes first..stop - 1 from `fresh`."""
    new = _head(model, first, stop).to(networks.thetas.device)
    statistics = None if networks.statistics is None else networks.statistics.clone()
    return Networks(torch.where(new, fresh.thetas, networks.thetas), statistics=statistics)


def held_near(old: FlatModel, before: Networks, settings: ContinualConfig) -> Loss:
    """The loss of sequential+kd: cross-entropy, and `soft_label_loss` against the networks `before` on the same batch.

    `old` is the model with the head of `before`; these stay as they are.
    """

    def loss(network: int, batch: Batch, logits: Tensor) -> Tensor:
        with torch.no_grad():
            statistics = None if before.statistics is None else before.statistics[network]
            soft = old(before.thetas[network], batch.images, statistics)
        return batch.cross_entropy(logits) + settings.kd_weight * soft_label_loss(logits, soft, settings.kd_temperature)

    return loss


def soft_label_loss(logits: Tensor, old: Tensor, temperature: float) -> Tensor:
    """T^2 n KL(softmax(old / T) || softmax(logits[:, :n] / T)), the mean over the entries of old logits (B, n); logits (B, m >= n).

    Source: specs/dc_dsa_dm_cafe_selection_cl.md section 10.2; the mean over entries times n is the mean over the batch.
    """
    ours, theirs = (values.div(temperature).log_softmax(1) for values in (logits[:, : old.shape[1]], old))
    return temperature**2 * F.kl_div(ours, theirs, reduction="batchmean", log_target=True)


def _train(
    config: Config,
    head: FlatModel,
    seen: FlatModel,
    networks: Networks,
    sets: Sequence[TrainingSet],
    ipc: int,
    streams: Streams,
    loss: Loss | None,
    on_pass: Callable[[], None],
) -> None:
    """Train in place on sets in turn, each with epochs of its own and momentum as `evaluation.carry_momentum` says."""
    how = settings_for(config, seen, *(len(own.labels) for own in sets), ipc=ipc)
    carry = config.evaluation.carry_momentum and len(sets) > 1
    for place, own in enumerate(sets):
        for _ in train_on(head, networks, own, how, streams, first_epoch=place * how.passes(), carry_momentum=carry, loss=loss):
            on_pass()


def _head(model: FlatModel, first: int, stop: int) -> Tensor:
    """Which parameters, bool (P,), belong to the classes first..stop - 1: rows of the last layer's weight and bias.

    Raises `ConfigError` for a network that does not end in a linear layer with a row for each class.
    """
    (_, weight), (_, bias) = model.layout[-2:]
    if len(weight) != 2 or weight[0] != model.classes or bias != (model.classes,):
        raise ConfigError([f"--model.name={model.config.name} does not end in a linear layer of {model.classes} classes; take another."])
    chosen = torch.zeros(model.size, dtype=torch.bool)
    views = model.views(chosen)
    for name, _ in model.layout[-2:]:
        views[name][first:stop] = True
    return chosen


@dataclass(frozen=True)
class LearnedNetwork:
    """What one job brings back: the accuracies of `learn` for network `net` on what `source` kept, and the wall seconds."""

    source: str
    net: int
    matrix: list[list[float]]
    seconds: float


@dataclass(frozen=True)
class ContinualWorker:
    """Call it in the process that shall train: it loads the test images and returns `(source, net) -> LearnedNetwork`.

    `order` are the class numbers of the data in the order of learning, `fingerprint` is that of the data. `kept` has what each source
    kept of the phases, once for all networks or once for each. `dataset`, which saves loading it anew, and `on_pass`, which is called
    after every pass over a set, serve only in the process that made them: they are left out when this is pickled for another.
    """

    config: Config
    settings: ContinualConfig
    execution: Execution
    order: tuple[int, ...]
    fingerprint: str
    transform: Transform
    kept: dict[str, list[list[Kept]]]
    dataset: Dataset | None = None
    on_pass: Callable[[], None] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "dataset": None, "on_pass": None}

    def __call__(self) -> Callable[[tuple[str, int]], LearnedNetwork]:
        """Raises `DataError` when the data found here is not the data that was asked for."""
        devices.prepare(self.execution.threads, self.execution.deterministic, self.config.tf32)
        device = devices.resolve(self.execution.device)
        dataset = self.dataset or load(self.config.data)
        if dataset.fingerprint != self.fingerprint:
            raise DataError(
                f"--data={self.config.data.source} holds other images on this machine than where the phases were distilled "
                f"(fingerprint {dataset.fingerprint[:12]}, not {self.fingerprint[:12]}). Give every machine the same files."
            )
        model = build(self.config.model, dataset.shape, len(dataset.classes))
        parts = split_test(dataset, self.order, self.settings.phases)
        tests = [Resident.load(own, self.transform, device) for own in parts]

        def work(job: tuple[str, int]) -> LearnedNetwork:
            (source, net), started = job, time.perf_counter()
            kept = self.kept[source]
            own = kept[net] if len(kept) > 1 else kept[0]
            matrix = learn(self.config, self.settings, model, own, tests, net, device, self.on_pass or (lambda: None))
            return LearnedNetwork(source, net, matrix, time.perf_counter() - started)

        return work


def split_test(dataset: Dataset, order: Sequence[int], phases: int) -> list[ImageSet]:
    """The test images of each phase's classes, labelled by the place of the class in `order`."""
    places = np.empty(len(order), np.int64)
    places[list(order)] = np.arange(len(order))
    labels = places[dataset.test.labels]
    phase = labels // (len(order) // phases)
    return [ImageSet(dataset.test.images[phase == own], labels[phase == own]) for own in range(phases)]
