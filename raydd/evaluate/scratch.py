"""Train fresh networks on a small set and test them: the measure of every distillation method.

How is a matter of the protocol (`raydd.evaluate.protocols`). Networks with batch normalisation train with the statistics of each
batch and are tested with running ones.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raydd.config import Config
from raydd.errors import ConfigError, DataError
from raydd.evaluate.protocols import Settings, protocol, resolve
from raydd.evaluate.staged import batches
from raydd.models import FlatModel
from raydd.training import Batches, Epoch, Loss, Networks, Phase, Recipe, Streams, TensorBatches, accuracy, fit, initial

PURPOSE = "evaluation"


@dataclass(frozen=True)
class TrainingSet:
    """What networks are trained on: images float32 (N, C, H, W) in training space, labels int64 (N,), and the start rate."""

    images: Tensor
    labels: Tensor
    lr: float

    def check(self, model: FlatModel) -> None:
        """Raise `ConfigError` for a rate that is not above 0, `DataError` for images or labels that do not fit the network."""
        images, labels = self.images, self.labels
        if not self.lr > 0:
            raise ConfigError([f"The evaluation's learning rate is {self.lr}; it must be above 0. Give one with --evaluation.lr."])
        if tuple(images.shape[1:]) != tuple(model.shape) or len(images) != len(labels) or not len(images):
            raise DataError(
                f"{tuple(images.shape)} images and {len(labels)} labels do not fit a network for images of shape {tuple(model.shape)}: "
                "evaluate with the data set and the model that the images were made for."
            )
        if int(labels.min()) < 0 or int(labels.max()) >= model.classes:
            raise DataError(f"labels {int(labels.min())}..{int(labels.max())} do not fit a network of {model.classes} classes.")


def train_on(
    model: FlatModel,
    networks: Networks,
    training: TrainingSet,
    settings: Settings,
    streams: Streams,
    *,
    first_epoch: int = 0,
    carry_momentum: bool = False,
    vectorised: bool = False,
    loss: Loss | None = None,
) -> Iterator[Epoch]:
    """Train `networks` in place on one set as an evaluation does, for `settings.phases(training.lr)`, and yield after every epoch.

    Nothing is tested, and the images go where the networks are. `first_epoch` is the number of the first epoch in the random
    streams, so that networks trained on several sets in turn draw anew for each. `carry_momentum` goes on with the momentum that
    `networks` has and keeps it when the rate drops, as PDD's programs do (specs/mtt_pdd.md section 3.2); networks without any
    (`velocity` None) begin without. False: as the protocol says, which begins without momentum. `loss` takes the place of the
    cross-entropy.

    Raises `ConfigError` or `DataError`, before any training, for what cannot be trained on.
    """
    training.check(model)
    phases = settings.phases(training.lr)
    if carry_momentum:
        phases = tuple(replace(phase, carries=True) for phase in phases)
    device = networks.thetas.device
    data = TensorBatches(training.images.detach().to(device), training.labels.to(device))
    behind = Phase(training.lr, first_epoch, carries=True)
    recipe, phases = training_recipe(settings), (behind, *phases)
    return fit(model, data, networks, phases, recipe, streams, first_epoch=first_epoch, vectorised=vectorised, loss=loss)


@dataclass(frozen=True)
class Evaluation:
    """Test accuracies (0..1) of networks trained from scratch on one set, or on several in turn.

    accuracies  after the last epoch, one for each network: the number to report
    mean, std   of these over the networks; std is the population's (ddof 0), as the reference prints it
    stages      the accuracies after each set, the last of them `accuracies`
    curve       (finished epochs, accuracies) at the sampled epochs of every set, the last of each included
    best        the highest accuracy of each network on the curve. It is chosen on the test images, so it is optimistic: the more
                points the curve has, the more so. For diagnosis and for comparison with papers that report it.
    train_loss  mean training loss of the last epoch, one for each network
    epochs      passes over all sets, of which MTT and DC make one more on each than `settings.epochs` says
    updates     optimiser updates of one network in all
    lr          the start rate on the last set
    """

    accuracies: tuple[float, ...]
    mean: float
    std: float
    stages: tuple[tuple[float, ...], ...]
    best: tuple[float, ...]
    best_mean: float
    curve: tuple[tuple[int, tuple[float, ...]], ...]
    train_loss: tuple[float, ...]
    seconds: float
    settings: Settings
    epochs: int
    updates: int
    lr: float


def evaluate(
    config: Config,
    model: FlatModel,
    sets: Sequence[TrainingSet],
    test: Batches,
    device: torch.device | str,
    nets: int | None = None,
    seed: int | None = None,
    *,
    ipc: int | None = None,
    first: int = 0,
    together: bool | None = None,
    on_pass: Callable[[int], None] = lambda nets: None,
) -> Evaluation:
    """Train `nets` networks on the sets in turn, going on with the same weights, and test them on `test`.

    `config.evaluation` says how, for the network `model.config`; but each set has its start rate, see `raydd.evaluate.rate`, and its
    own schedule from there. Images that several stored ones hold are given decoded. Epochs are numbered through, so every set draws
    anew; running statistics of batch normalisation go on, and with `evaluation.carry_momentum` the momentum does, also when the rate
    drops (specs/mtt_pdd.md section 3.2). On one set it is the protocol that says when momentum starts anew.

    `nets` and `seed` default to `evaluation.nets` and the run's seed; network k depends on the seed and on k alone, with k from
    `first`. `ipc` is that of `settings_for`. `on_pass(nets)` is called after every pass of so many networks.

    `together` trains all networks in one batched pass, which differs by rounding. Default: on a GPU, which small sets leave
    waiting for launches; not on a CPU, where a loop was faster nearly always (width 32, five networks, one core, loop against
    batched: 8 x 8 pixels 4.6 against 3.8 ms a step for 10 images and 21 against 28 ms for 100; 32 x 32 pixels 18 against
    23 ms for 10 and 152 against 574 ms for 100).

    Raises `ConfigError` for a rate that is not above 0 and for other settings that do not go together, and `DataError` for images
    or labels that do not fit the network.
    """
    started = time.perf_counter()
    for training in sets:
        training.check(model)
    counts = [len(training.labels) for training in sets]
    settings = settings_for(config, model, *counts, ipc=ipc)
    device, nets = torch.device(device), nets if nets is not None else config.evaluation.nets
    streams = Streams(config.seed if seed is None else seed, PURPOSE, tuple(range(first, first + nets)))
    networks = initial(model, streams, device, statistics=True)
    vectorised = device.type == "cuda" if together is None else together
    passes, curve = settings.passes(), []
    points = protocol(settings.protocol).tested(passes, settings.samples)
    for epoch in _in_turn(model, networks, sets, settings, streams, config.evaluation.carry_momentum, vectorised):
        if (epoch.number - 1) % passes + 1 in points:
            tested = accuracy(model, networks.thetas, test, statistics=networks.statistics)
            curve.append((epoch.number, tuple(tested.tolist())))
        on_pass(nets)
    return Evaluation(
        **_summed_up(curve, passes),
        train_loss=tuple(epoch.loss.tolist()),
        seconds=time.perf_counter() - started,
        settings=settings,
        epochs=len(sets) * passes,
        updates=passes * sum(batches(count, settings.batch_size) for count in counts),
        lr=float(sets[-1].lr),
    )


def _summed_up(curve: list[tuple[int, tuple[float, ...]]], passes: int) -> dict[str, Any]:
    """What the curve of an evaluation with so many passes over each set comes to."""
    final = np.array(curve[-1][1])
    best = np.array([accuracies for _, accuracies in curve]).max(axis=0)
    return {
        "accuracies": curve[-1][1],
        "mean": float(final.mean()),
        "std": float(final.std()),
        "stages": tuple(accuracies for number, accuracies in curve if number % passes == 0),
        "best": tuple(best.tolist()),
        "best_mean": float(best.mean()),
        "curve": tuple(curve),
    }


def _in_turn(
    model: FlatModel, networks: Networks, sets: Sequence[TrainingSet], settings: Settings, streams: Streams, carry: bool, vectorised: bool
) -> Iterator[Epoch]:
    """Train on the sets one after the other; one set alone is the protocol's."""
    carry = carry and len(sets) > 1
    for place, training in enumerate(sets):
        begun = place * settings.passes()
        yield from train_on(model, networks, training, settings, streams, first_epoch=begun, carry_momentum=carry, vectorised=vectorised)


def settings_for(config: Config, model: FlatModel, *counts: int, ipc: int | None = None) -> Settings:
    """The protocol of `config.evaluation` for this network and sets of so many training images each, trained on in turn.

    `ipc` is how many stored images of each class the sets hold in all; default `config.ipc`, which is right for one stage.
    Raises `ConfigError` for settings that do not go together.
    """
    settings = resolve(config, model.config, counts, model.shape[-1], model.classes, ipc)
    for count in counts:
        _check_last_batch(model, settings, count)
    return settings


def training_recipe(settings: Settings) -> Recipe:
    """How evaluation networks are trained, as `raydd.training` wants it."""
    return Recipe(
        batch_size=settings.batch_size,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        strategy=settings.strategy,
        parameters=settings.parameters,
        family="dsa" if settings.augment == "none" else settings.augment,
        cutmix=settings.cutmix,
    )


def _check_last_batch(model: FlatModel, settings: Settings, count: int) -> None:
    """A batch of one image has no statistics where it is down to one pixel; torch would refuse it in mid-training."""
    last = count % settings.batch_size or settings.batch_size
    if last > 1 or not model.statistics_size:
        return
    try:
        model(torch.empty(model.size, device="meta"), torch.empty(last, *model.shape, device="meta"))
    except ValueError as error:
        raise ConfigError(
            [
                f"--evaluation.batch_size={settings.batch_size} leaves one image of {count} for the last batch, which the batch "
                f"normalisation of {model.config.name} cannot take; choose another one."
            ]
        ) from error
