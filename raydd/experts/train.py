"""Expert trajectories: networks trained on the real data, with a snapshot after every epoch.

Source: specs/mtt_pdd.md section 1.2. An expert depends on the recipe, the seed and its own index, and on nothing else: not on
who trains it, how many there are, or whether its training was taken up again.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from raydd.config import Config
from raydd.errors import DivergenceError
from raydd.models import FlatModel
from raydd.training import Batches, Networks, Phase, Recipe, Streams, drop_once, fit, initial

PURPOSE = "expert"


@dataclass(frozen=True)
class Snapshot:
    """The state of E experts after `epoch` epochs, on the CPU: thetas float32 (E, P), and how the epoch went.

    `loss` and `accuracy` are means over the epoch's augmented batches, one value for each expert, and empty for the first
    snapshot of a walk. `images` is how many the epoch put through all experts together.
    """

    epoch: int
    thetas: Tensor
    loss: tuple[float, ...] = ()
    accuracy: tuple[float, ...] = ()
    images: int = 0


def training_recipe(config: Config) -> Recipe:
    """How experts are trained, as `raydd.training` wants it."""
    experts = config.experts
    return Recipe(
        batch_size=experts.batch_size,
        momentum=experts.momentum,
        weight_decay=experts.weight_decay,
        strategy=config.augment.strategy if experts.augment else "none",
        parameters=config.augment.parameters,
    )


def learning_rate(config: Config, stage: int) -> float:
    """The rate on real data: `experts.lr`, and `stages.real_lr` for the experts of later stages."""
    return config.experts.lr if stage == 1 else config.stages.real_lr


def phases(config: Config, epochs: int, stage: int = 1) -> tuple[Phase, ...]:
    """The learning rate of `epochs` epochs: constant, or dropped once after index epochs // 2 + 1 with `experts.decay`."""
    lr = learning_rate(config, stage)
    if config.experts.decay:
        return drop_once(epochs, epochs // 2 + 1, lr)
    return (Phase(lr, epochs),)


def streams(config: Config, experts: Sequence[int], stage: int = 1) -> Streams:
    """The random streams of these experts; those of every stage are others."""
    return Streams(config.experts.seed, PURPOSE if stage == 1 else f"{PURPOSE}-stage{stage}", tuple(experts))


def resumable(config: Config) -> bool:
    """Whether a trajectory may be continued from its last snapshot: without momentum that is all there is to its state."""
    return config.experts.momentum == 0


def trajectories(
    config: Config,
    model: FlatModel,
    data: Batches,
    experts: Sequence[int],
    epochs: int,
    device: torch.device | str,
    start: Snapshot | None = None,
    stage: int = 1,
) -> Iterator[Snapshot]:
    """Train these experts for `epochs` epochs and yield their snapshots, the first being the initialisation or `start`.

    The experts of a later `stage` (PDD) begin from given networks, as snapshot 0 in `start`.
    With `experts.together` above 1 all go through one batched pass, whose rounding depends on who is in it: give whole groups
    (`raydd.experts.jobs.group_of`). Continuing from `start` gives the same bits as training at once where `resumable`.
    Raises `DivergenceError` when a loss stops being finite.
    """
    own = streams(config, experts, stage)
    networks = initial(model, own, device) if start is None else Networks(start.thetas.to(device, copy=True))
    yield start or Snapshot(0, networks.thetas.to("cpu", copy=True))
    for done in fit(
        model,
        data,
        networks,
        phases(config, epochs, stage),
        training_recipe(config),
        own,
        first_epoch=start.epoch if start else 0,
        vectorised=config.experts.together > 1,
    ):
        losses = tuple(done.loss.tolist())
        _refuse_divergence(config, experts, done.number, losses, stage)
        # Without the copy every snapshot on a CPU would be the live weights.
        thetas = networks.thetas.to("cpu", copy=True)
        yield Snapshot(done.number, thetas, losses, tuple(done.accuracy.tolist()), done.images)


def _refuse_divergence(config: Config, experts: Sequence[int], epoch: int, losses: tuple[float, ...], stage: int) -> None:
    rate = f"Lower --experts.lr={config.experts.lr:g}"
    if stage > 1:  # a run that has come so far keeps both
        rate = f"Start anew under another --run with a lower --stages.real_lr={config.stages.real_lr:g}"
    for expert, loss in zip(experts, losses, strict=True):
        if not math.isfinite(loss):
            raise DivergenceError(
                f"Expert {expert}{f' of stage {stage}' if stage > 1 else ''} diverged in epoch {epoch}: its training loss is {loss}. "
                f"{rate}{f' or --experts.momentum={config.experts.momentum:g}' if config.experts.momentum else ''}."
            )
