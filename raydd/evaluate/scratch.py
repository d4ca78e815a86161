"""Train fresh networks on a small set and test them: the measure of every distillation method.

How is a matter of the protocol (`raydd.evaluate.protocols`). Networks with batch normalisation train with the statistics of each
batch and are tested with running ones.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from raydd.config import Config
from raydd.errors import ConfigError, DataError
from raydd.evaluate.protocols import Settings, protocol, resolve
from raydd.models import FlatModel
from raydd.training import Batches, Epoch, Networks, Phase, Recipe, Streams, TensorBatches, accuracy, fit, initial

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
) -> Iterator[Epoch]:
    """Train `networks` in place on one set as an evaluation does, for `settings.phases(training.lr)`, and yield after every epoch.

    Nothing is tested, and the images go where the networks are. `first_epoch` is the number of the first epoch in the random
    streams, so that networks trained on several sets in turn draw anew for each. `carry_momentum` goes on with the momentum that
    `networks` has and keeps it when the rate drops, as PDD's programs do (specs/mtt_pdd.md section 3.2); networks without any
    (`velocity` None) begin without. False: as the protocol says, which begins without momentum.

    Raises `ConfigError` or `DataError`, before any training, for what cannot be trained on.
    """
    training.check(model)
    phases = settings.phases(training.lr)
    if carry_momentum:
        phases = tuple(replace(phase, carries=True) for phase in phases)
    device = networks.thetas.device
    data = TensorBatches(training.images.detach().to(device), training.labels.to(device))
    behind = Phase(training.lr, first_epoch, carries=True)
    return fit(model, data, networks, (behind, *phases), training_recipe(settings), streams, first_epoch=first_epoch, vectorised=vectorised)


@dataclass(frozen=True)
class Evaluation:
    """Test accuracies (0..1) of networks trained from scratch on one set.

    accuracies  after the last epoch, one for each network: the number to report
    mean, std   of these over the networks; std is the population's (ddof 0), as the reference prints it
    curve       (finished epochs, accuracies) at the sampled epochs, the last included
    best        the highest accuracy of each network on the curve. It is chosen on the test images, so it is optimistic: the more
                points the curve has, the more so. For diagnosis and for comparison with papers that report it.
    train_loss  mean training loss of the last epoch, one for each network
    epochs      passes over the images, which MTT and DC make one more of than `settings.epochs` says
    """

    accuracies: tuple[float, ...]
    mean: float
    std: float
    best: tuple[float, ...]
    best_mean: float
    curve: tuple[tuple[int, tuple[float, ...]], ...]
    train_loss: tuple[float, ...]
    seconds: float
    settings: Settings
    epochs: int
    lr: float


def evaluate(
    config: Config,
    model: FlatModel,
    images: Tensor,
    labels: Tensor,
    lr: float,
    test: Batches,
    device: torch.device | str,
    nets: int | None = None,
    seed: int | None = None,
    *,
    first: int = 0,
    together: bool | None = None,
    on_pass: Callable[[int], None] = lambda nets: None,
) -> Evaluation:
    """Train `nets` networks on images float32 (N, C, H, W) in training space with labels int64 (N,), and test them on `test`.

    `config.evaluation` says how, for the network `model.config`; but the start rate is `lr`, see `raydd.evaluate.rate`. Images that
    several stored ones hold are given decoded. `nets` and `seed` default to `evaluation.nets` and the run's seed; network k depends
    on the seed and on k alone, with k from `first`. `on_pass(nets)` is called after every pass of so many networks.

    `together` trains all networks in one batched pass, which differs by rounding. Default: on a GPU, which small sets leave
    waiting for launches; not on a CPU, where a loop was faster nearly always (width 32, five networks, one core, loop against
    batched: 8 x 8 pixels 4.6 against 3.8 ms a step for 10 images and 21 against 28 ms for 100; 32 x 32 pixels 18 against
    23 ms for 10 and 152 against 574 ms for 100).

    Raises `ConfigError` for a rate that is not above 0 and for other settings that do not go together, and `DataError` for images
    or labels that do not fit the network.
    """
    started = time.perf_counter()
    training = TrainingSet(images, labels, lr)
    training.check(model)
    settings = settings_for(config, model, len(labels))
    device, nets = torch.device(device), nets if nets is not None else config.evaluation.nets
    phases = settings.phases(lr)
    total = sum(phase.epochs for phase in phases)
    streams = Streams(config.seed if seed is None else seed, PURPOSE, tuple(range(first, first + nets)))
    networks = initial(model, streams, device, statistics=True)
    vectorised = device.type == "cuda" if together is None else together
    points, curve = protocol(settings.protocol).tested(total, settings.samples), []
    for epoch in train_on(model, networks, training, settings, streams, vectorised=vectorised):
        if epoch.number in points:
            tested = accuracy(model, networks.thetas, test, statistics=networks.statistics)
            curve.append((epoch.number, tuple(tested.tolist())))
        on_pass(nets)
    final = np.array(curve[-1][1])
    best = np.array([accuracies for _, accuracies in curve]).max(axis=0)
    return Evaluation(
        accuracies=curve[-1][1],
        mean=float(final.mean()),
        std=float(final.std()),
        best=tuple(best.tolist()),
        best_mean=float(best.mean()),
        curve=tuple(curve),
        train_loss=tuple(epoch.loss.tolist()),
        seconds=time.perf_counter() - started,
        settings=settings,
        epochs=total,
        lr=float(lr),
    )


def settings_for(config: Config, model: FlatModel, count: int) -> Settings:
    """The protocol of `config.evaluation` for this network and `count` training images in all.

    Raises `ConfigError` for settings that do not go together.
    """
    settings = resolve(config, model.config, count // model.classes, model.shape[-1], model.classes)
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
