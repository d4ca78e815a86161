"""Plain SGD on the flat parameters of several networks at once; experts and evaluation are both built on it.

Everything random is drawn from `rng.stream(seed, epoch, purpose, network)` before it is used, so a network's result depends on
its own streams alone: not on how many train beside it, and not on whether training was interrupted between epochs.
Nothing waits for the device inside an epoch: losses and hits stay there until the caller reads them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from raydd.augment import cutmix, dc, diffaug, dsa
from raydd.augment.cutmix import CutMixDraw
from raydd.models import FlatModel
from raydd.rng import stream


class Batches(Protocol):
    """Images and labels resident on one device; `batch` picks rows by index."""

    labels: Tensor

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) and labels (B,) of the indices (B,)."""
        ...


@dataclass(frozen=True)
class TensorBatches:
    """Images float (n, C, H, W) in training space and labels int64 (n,), on one device."""

    images: Tensor
    labels: Tensor

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The rows `indices` (B,)."""
        return self.images[indices], self.labels[indices]


@dataclass(frozen=True)
class Recipe:
    """How every batch is made and stepped; momentum and weight decay as in `torch.optim.SGD` with dampening 0.

    `family` is the module of `raydd.augment` whose `strategy` augments; `parameters` is for dsa and diffaug. `cutmix` is the
    probability that a batch is mixed.
    """

    batch_size: int
    momentum: float = 0.0
    weight_decay: float = 0.0
    strategy: str = "none"
    parameters: str = "per-image"
    family: Literal["dsa", "diffaug", "dc"] = "dsa"
    cutmix: float = 0.0


@dataclass(frozen=True)
class Phase:
    """So many epochs at one learning rate. A new phase starts without momentum, as a rebuilt optimiser does, unless it `carries` on."""

    lr: float
    epochs: int
    carries: bool = False


def drop_once(epochs: int, after: int, lr: float) -> tuple[Phase, ...]:
    """`epochs` in all, with the rate divided by 10 once epoch index `after` (from 0) is done; one phase if none is left then.

    Source: specs/mtt_pdd.md sections 1.2 and 2.4.
    """
    first = min(epochs, after + 1)
    rest = epochs - first
    return (Phase(lr, first), Phase(lr * 0.1, rest)) if rest else (Phase(lr, first),)


@dataclass(frozen=True)
class Streams:
    """Names the randomness of E networks: network k draws from (seed, epoch, "PURPOSE-...", indices[k])."""

    seed: int
    purpose: str
    indices: tuple[int, ...]

    def generators(self, epoch: int, what: str) -> list[Generator]:
        """One generator for each network."""
        return [stream(self.seed, epoch, f"{self.purpose}-{what}", index) for index in self.indices]


@dataclass
class Networks:
    """The state of E networks: thetas (E, P), updated in place, and their momentum (E, P) or None before the first step.

    `statistics` (E, Q) are the running ones of batch normalisation, which training then keeps up; None where nobody needs them.
    """

    thetas: Tensor
    velocity: Tensor | None = None
    statistics: Tensor | None = None


@dataclass(frozen=True)
class Epoch:
    """What one epoch of E networks showed, on the device: mean loss (E,) and accuracy (E,) over the batches as trained on.

    `number` counts finished epochs, from 1. `images` is how many went through all networks together.
    """

    number: int
    loss: Tensor
    accuracy: Tensor
    images: int


@dataclass(frozen=True)
class Batch:
    """Images (B, C, H, W) as a network sees them, labels (B,), and how the images were mixed."""

    images: Tensor
    labels: Tensor
    mixed: CutMixDraw | None

    def cross_entropy(self, logits: Tensor) -> Tensor:
        """The mean cross-entropy of logits (B, classes), of mixed images by both labels."""
        return cutmix.cross_entropy(logits, self.labels, self.mixed)


Loss = Callable[[int, Batch, Tensor], Tensor]
"""`loss(network, batch, logits (B, classes)) -> ()`: what networks are trained by in place of the cross-entropy."""


def initial(model: FlatModel, streams: Streams, device: torch.device | str, statistics: bool = False) -> Networks:
    """Fresh networks, one for each stream: `model.init` on the CPU, then moved.

    `statistics` asks for running ones, in networks that have batch normalisation. Without them a network is tested with the
    statistics of the test batch, as experts and students are, which are no more than their parameters.
    """
    thetas = torch.stack([model.init(generator) for generator in streams.generators(0, "init")]).to(device)
    if not (statistics and model.statistics_size):
        return Networks(thetas)
    return Networks(thetas, statistics=model.initial_statistics().to(device).repeat(len(thetas), 1))


def fit(
    model: FlatModel,
    data: Batches,
    networks: Networks,
    phases: Sequence[Phase],
    recipe: Recipe,
    streams: Streams,
    *,
    first_epoch: int = 0,
    vectorised: bool = False,
    loss: Loss | None = None,
) -> Iterator[Epoch]:
    """Train `networks` in place through the phases and yield after every epoch.

    `first_epoch` leaves out that many epochs which `networks` already has behind it. The continuation equals uninterrupted
    training bit for bit where no momentum is under way. `vectorised` trains all networks in one pass of `torch.func.vmap`
    instead of one after another; results then differ by rounding, and there is no `loss` of one's own.
    """
    if vectorised and loss is not None:
        raise ValueError("a loss of one's own is computed network by network, not vectorised")
    epoch = 0
    for phase in phases:
        if not phase.carries:
            networks.velocity = None
        for _ in range(phase.epochs):
            if epoch >= first_epoch:
                yield train_epoch(model, data, networks, phase.lr, recipe, streams, epoch, vectorised, loss)
            epoch += 1


def train_epoch(
    model: FlatModel,
    data: Batches,
    networks: Networks,
    lr: float,
    recipe: Recipe,
    streams: Streams,
    epoch: int,
    vectorised: bool = False,
    loss: Loss | None = None,
) -> Epoch:
    """One pass over `data` in an order of each network's own; the last, smaller batch is used too."""
    thetas, count = networks.thetas, len(data.labels)
    order = torch.stack([torch.randperm(count, generator=g) for g in streams.generators(epoch, "order")]).to(thetas.device)
    augment = streams.generators(epoch, "augment")
    total, hits = torch.zeros(2, len(thetas), device=thetas.device)
    for start in range(0, count, recipe.batch_size):
        rows = order[:, start : start + recipe.batch_size]
        batches = [_batch(data, indices, generator, recipe) for indices, generator in zip(rows, augment, strict=True)]
        if vectorised:
            losses, correct = _step_together(model, networks, batches, lr, recipe)
        else:
            losses, correct = _step_in_turn(model, networks, batches, lr, recipe, loss or _cross_entropy)
        total += losses * len(batches[0].labels)
        hits += correct
    return Epoch(epoch + 1, total / count, hits / count, count * len(thetas))


def augmented(data: Batches, indices: Tensor, generator: Generator, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """The batch `indices` (B,), augmented by a fresh draw of the recipe's strategy."""
    images, labels = data.batch(indices)
    if recipe.family == "dc":
        drawn = dc.draw(generator, recipe.strategy, images.shape)
        return dc.apply(images, drawn and drawn.to(images.device)), labels
    family = diffaug if recipe.family == "diffaug" else dsa
    drawn = family.draw(generator, recipe.strategy, len(images), images.shape[-1], recipe.parameters)
    return family.apply(images, drawn and drawn.to(images.device)), labels


def _batch(data: Batches, indices: Tensor, generator: Generator, recipe: Recipe) -> Batch:
    """The augmented batch `indices` (B,), mixed where the recipe and the lot say so."""
    images, labels = augmented(data, indices, generator, recipe)
    mixed = cutmix.draw(generator, len(images), images.shape[-1], recipe.cutmix) if recipe.cutmix else None
    mixed = mixed and mixed.to(images.device)
    return Batch(cutmix.apply(images, mixed), labels, mixed)


def sgd_(theta: Tensor, gradient: Tensor, velocity: Tensor | None, lr: float, recipe: Recipe) -> Tensor | None:
    """One step of `torch.optim.SGD`, in place on theta and velocity; returns the velocity, None without momentum."""
    if recipe.weight_decay:
        gradient = gradient.add(theta, alpha=recipe.weight_decay)
    if not recipe.momentum:
        theta.add_(gradient, alpha=-lr)
        return None
    velocity = gradient.clone() if velocity is None else velocity.mul_(recipe.momentum).add_(gradient)
    theta.add_(velocity, alpha=-lr)
    return velocity


def _cross_entropy(network: int, batch: Batch, logits: Tensor) -> Tensor:
    return batch.cross_entropy(logits)


def _step_in_turn(
    model: FlatModel, networks: Networks, batches: list[Batch], lr: float, recipe: Recipe, loss_of: Loss
) -> tuple[Tensor, Tensor]:
    """One step of every network, each by itself: the arithmetic of one network does not know of the others."""
    losses, hits, velocities = [], [], []
    for index, batch in enumerate(batches):
        theta = networks.thetas[index].detach().requires_grad_()
        if networks.statistics is None:
            logits = model(theta, batch.images)
        else:
            logits, statistics = model.observe(theta, batch.images, networks.statistics[index])
            networks.statistics[index] = statistics
        loss = loss_of(index, batch, logits)
        (gradient,) = torch.autograd.grad(loss, theta)
        before = None if networks.velocity is None else networks.velocity[index]
        velocities.append(sgd_(theta.detach(), gradient, before, lr, recipe))
        losses.append(loss.detach())
        hits.append((logits.argmax(-1) == batch.labels).sum())
    if networks.velocity is None and recipe.momentum:
        networks.velocity = torch.stack([velocity for velocity in velocities if velocity is not None])
    return torch.stack(losses), torch.stack(hits)


def _step_together(model: FlatModel, networks: Networks, batches: list[Batch], lr: float, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """One step of every network in one batched pass."""
    images, labels = (torch.stack([getattr(batch, part) for batch in batches]) for part in ("images", "labels"))
    targets = [labels]
    if recipe.cutmix:  # whether mixed or not, so that all networks do the same
        targets.append(torch.stack([batch.labels if batch.mixed is None else batch.labels[batch.mixed.partners] for batch in batches]))
        targets.append(torch.tensor([1.0 if batch.mixed is None else batch.mixed.ratio for batch in batches]).to(images))
    running = [] if networks.statistics is None else [networks.statistics]

    def loss(theta: Tensor, images: Tensor, targets: list[Tensor], running: list[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        logits, *after = model.observe(theta, images, *running) if running else (model(theta, images),)
        own = F.cross_entropy(logits, targets[0])
        if len(targets) > 1:
            _, partners, ratio = targets
            own = ratio * own + (1 - ratio) * F.cross_entropy(logits, partners)
        return own, ((logits.argmax(-1) == targets[0]).sum(), *after)

    batched = torch.func.vmap(torch.func.grad_and_value(loss, has_aux=True))
    gradients, (losses, (hits, *after)) = batched(networks.thetas, images, targets, running)
    networks.velocity = sgd_(networks.thetas, gradients, networks.velocity, lr, recipe)
    if after:
        (networks.statistics,) = after
    return losses, hits


@torch.no_grad()
def accuracy(model: FlatModel, thetas: Tensor, data: Batches, batch_size: int | None = None, statistics: Tensor | None = None) -> Tensor:
    """The share of `data` that each of the networks (E, P) classifies rightly: float32 (E,), on their device.

    Batch normalisation uses the running `statistics` (E, Q), and without them the statistics of each test batch.

    Default batches are large on a GPU, which then needs few launches, and of 200 on a CPU, whose cache they still fit
    (32 x 32, width 32, one core: 2,000 images took 0.3 s in batches of up to 250 and 0.8 s at once).
    """
    size = batch_size or (2500 if thetas.is_cuda else 200)
    count = len(data.labels)
    hits = torch.zeros(len(thetas), device=thetas.device)
    for start in range(0, count, size):
        images, labels = data.batch(torch.arange(start, min(start + size, count), device=thetas.device))
        logits = (model(theta, images, None if statistics is None else statistics[place]) for place, theta in enumerate(thetas))
        hits += torch.stack([(own.argmax(-1) == labels).sum() for own in logits])
    return hits / count
