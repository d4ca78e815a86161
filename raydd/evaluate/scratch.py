"""Train fresh networks on a small set and test them: the measure of every distillation method.

Source: specs/mtt_pdd.md section 2.4. The reference learns its step size for plain SGD and uses it here with momentum 0.9.
"""

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from raydd.config import Config
from raydd.errors import ConfigError, DataError
from raydd.evaluate.protocols import protocol
from raydd.models import FlatModel
from raydd.training import Batches, Recipe, Streams, TensorBatches, accuracy, fit, initial

PURPOSE = "evaluation"


@dataclass(frozen=True)
class Evaluation:
    """Test accuracies (0..1) of networks trained from scratch on one set.

    accuracies  after the last epoch, one for each network: the number to report
    mean, std   of these over the networks; std is the population's (ddof 0), as the reference prints it
    curve       (finished epochs, accuracies) at the sampled epochs, the last included
    best        the highest accuracy of each network on the curve. It is chosen on the test images, so it is optimistic: the more
                points the curve has, the more so. For diagnosis and for comparison with papers that report it.
    train_loss  mean training loss of the last epoch, one for each network
    """

    accuracies: tuple[float, ...]
    mean: float
    std: float
    best: tuple[float, ...]
    best_mean: float
    curve: tuple[tuple[int, tuple[float, ...]], ...]
    train_loss: tuple[float, ...]
    seconds: float
    protocol: str
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
    name: str = "mtt",
    samples: int = 10,
    together: bool | None = None,
) -> Evaluation:
    """Train `nets` networks on images float32 (N, C, H, W) in training space with labels int64 (N,), and test them on `test`.

    `lr` is the start rate, usually the learned step size; `evaluation.lr` is the caller's business. `nets` and `seed` default to
    `evaluation.nets` and the run's seed; network k depends on the seed and on k alone, with
    k from `first`. `samples` is the number of epochs at which
    the test accuracy is sampled, the last one included; 1 tests once.

    `together` trains all networks in one batched pass, which differs by rounding. Default: on a GPU, which small sets leave
    waiting for launches; not on a CPU, where a loop was faster nearly always (width 32, five networks, one core, loop against
    batched: 8 x 8 pixels 4.6 against 3.8 ms a step for 10 images and 21 against 28 ms for 100; 32 x 32 pixels 18 against
    23 ms for 10 and 152 against 574 ms for 100).

    Raises `ConfigError` for a rate that is not above 0, and `DataError` for images or labels that do not fit the network.
    """
    started = time.perf_counter()
    _check(model, images, labels, lr)
    device, nets = torch.device(device), nets if nets is not None else config.evaluation.nets
    phases = protocol(name).schedule(config.evaluation.epochs, lr)
    total = sum(phase.epochs for phase in phases)
    streams = Streams(config.seed if seed is None else seed, PURPOSE, tuple(range(first, first + nets)))
    networks = initial(model, streams, device)
    data = TensorBatches(images.detach().to(device), labels.to(device))
    vectorised = device.type == "cuda" if together is None else together
    points, curve = sample_epochs(total, samples), []
    for epoch in fit(model, data, networks, phases, training_recipe(config), streams, vectorised=vectorised):
        if epoch.number in points:
            curve.append((epoch.number, tuple(accuracy(model, networks.thetas, test).tolist())))
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
        protocol=name,
        epochs=total,
        lr=float(lr),
    )


def training_recipe(config: Config) -> Recipe:
    """How evaluation networks are trained, as `raydd.training` wants it."""
    settings = config.evaluation
    return Recipe(
        batch_size=settings.batch_size,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        strategy=config.augment.strategy if settings.augment else "none",
        parameters=config.augment.parameters,
    )


def sample_epochs(total: int, samples: int) -> set[int]:
    """`samples` epochs spread evenly over 1..total, `total` included."""
    return {max(1, round(total * point / samples)) for point in range(1, samples + 1)}


def _check(model: FlatModel, images: Tensor, labels: Tensor, lr: float) -> None:
    if not lr > 0:
        raise ConfigError([f"The evaluation's learning rate is {lr}; it must be above 0. Give one with --evaluation.lr."])
    if tuple(images.shape[1:]) != tuple(model.shape) or len(images) != len(labels) or not len(images):
        raise DataError(
            f"{tuple(images.shape)} images and {len(labels)} labels do not fit a network for images of shape {tuple(model.shape)}: "
            "evaluate with the data set and the model that the images were made for."
        )
    if int(labels.min()) < 0 or int(labels.max()) >= model.classes:
        raise DataError(f"labels {int(labels.min())}..{int(labels.max())} do not fit a network of {model.classes} classes.")
