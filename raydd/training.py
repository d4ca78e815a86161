"""Plain SGD on the flat parameters of several networks at once; experts and evaluation are both built on it.

Everything random is drawn from `rng.stream(seed, epoch, purpose, network)` before it is used, so a network's result depends on
its own streams alone: not on how many train beside it, and not on whether training was interrupted between epochs.
Nothing waits for the device inside an epoch: losses and hits stay there until the caller reads them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from raydd.augment import dsa
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
    """How every batch is made and stepped; momentum and weight decay as in `torch.optim.SGD` with dampening 0."""

    batch_size: int
    momentum: float = 0.0
    weight_decay: float = 0.0
    strategy: str = "none"
    parameters: str = "per-image"


@dataclass(frozen=True)
class Phase:
    """So many epochs at one learning rate. A new phase starts without momentum, as a rebuilt optimiser does."""

    lr: float
    epochs: int


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
    """The state of E networks: thetas (E, P), updated in place, and their momentum (E, P) or None before the first step."""

    thetas: Tensor
    velocity: Tensor | None = None


@dataclass(frozen=True)
class Epoch:
    """What one epoch of E networks showed, on the device: mean loss (E,) and accuracy (E,) over the batches as trained on.

    `number` counts finished epochs, from 1. `images` is how many went through all networks together.
    """

    number: int
    loss: Tensor
    accuracy: Tensor
    images: int


def initial(model: FlatModel, streams: Streams, device: torch.device | str) -> Networks:
    """Fresh networks, one for each stream: `model.init` on the CPU, then moved."""
    return Networks(torch.stack([model.init(generator) for generator in streams.generators(0, "init")]).to(device))


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
) -> Iterator[Epoch]:
    """Train `networks` in place through the phases and yield after every epoch.

    `first_epoch` leaves out that many epochs which `networks` already has behind it. The continuation equals uninterrupted
    training bit for bit where no momentum is under way. `vectorised` trains all networks in one pass of `torch.func.vmap`
    instead of one after another; results then differ by rounding.
    """
    epoch = 0
    for phase in phases:
        networks.velocity = None
        for _ in range(phase.epochs):
            if epoch >= first_epoch:
                yield train_epoch(model, data, networks, phase.lr, recipe, streams, epoch, vectorised)
            epoch += 1


def train_epoch(
    model: FlatModel, data: Batches, networks: Networks, lr: float, recipe: Recipe, streams: Streams, epoch: int, vectorised: bool = False
) -> Epoch:
    """One pass over `data` in an order of each network's own; the last, smaller batch is used too."""
    thetas, count = networks.thetas, len(data.labels)
    order = torch.stack([torch.randperm(count, generator=g) for g in streams.generators(epoch, "order")]).to(thetas.device)
    augment = streams.generators(epoch, "augment")
    loss, hits = torch.zeros(2, len(thetas), device=thetas.device)
    step = _step_together if vectorised else _step_in_turn
    for start in range(0, count, recipe.batch_size):
        batches = [
            augmented(data, indices, g, recipe) for indices, g in zip(order[:, start : start + recipe.batch_size], augment, strict=True)
        ]
        losses, correct = step(model, networks, batches, lr, recipe)
        loss += losses * len(batches[0][1])
        hits += correct
    return Epoch(epoch + 1, loss / count, hits / count, count * len(thetas))


def augmented(data: Batches, indices: Tensor, generator: Generator, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """The batch `indices` (B,), augmented by a fresh draw of the recipe's strategy."""
    images, labels = data.batch(indices)
    drawn = dsa.draw(generator, recipe.strategy, len(images), images.shape[-1], recipe.parameters)
    return dsa.apply(images, drawn and drawn.to(images.device)), labels


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


def _loss(model: FlatModel, theta: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy () and the number of hits ()."""
    logits = model(theta, images)
    return F.cross_entropy(logits, labels), (logits.argmax(-1) == labels).sum()


def _step_in_turn(
    model: FlatModel, networks: Networks, batches: list[tuple[Tensor, Tensor]], lr: float, recipe: Recipe
) -> tuple[Tensor, Tensor]:
    """One step of every network, each by itself: the arithmetic of one network does not know of the others."""
    losses, hits, velocities = [], [], []
    for index, (images, labels) in enumerate(batches):
        theta = networks.thetas[index].detach().requires_grad_()
        loss, correct = _loss(model, theta, images, labels)
        (gradient,) = torch.autograd.grad(loss, theta)
        before = None if networks.velocity is None else networks.velocity[index]
        velocities.append(sgd_(theta.detach(), gradient, before, lr, recipe))
        losses.append(loss.detach())
        hits.append(correct)
    if networks.velocity is None and recipe.momentum:
        networks.velocity = torch.stack([velocity for velocity in velocities if velocity is not None])
    return torch.stack(losses), torch.stack(hits)


def _step_together(
    model: FlatModel, networks: Networks, batches: list[tuple[Tensor, Tensor]], lr: float, recipe: Recipe
) -> tuple[Tensor, Tensor]:
    """One step of every network in one batched pass."""

    def loss(theta: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return _loss(model, theta, images, labels)

    images, labels = (torch.stack(part) for part in zip(*batches, strict=True))
    batched = torch.func.vmap(torch.func.grad_and_value(loss, has_aux=True))
    gradients, (losses, hits) = batched(networks.thetas, images, labels)
    networks.velocity = sgd_(networks.thetas, gradients, networks.velocity, lr, recipe)
    return losses, hits


@torch.no_grad()
def accuracy(model: FlatModel, thetas: Tensor, data: Batches, batch_size: int | None = None) -> Tensor:
    """The share of `data` that each of the networks (E, P) classifies rightly: float32 (E,), on their device.

    Default batches are large on a GPU, which then needs few launches, and of 200 on a CPU, whose cache they still fit
    (32 x 32, width 32, one core: 2,000 images took 0.3 s in batches of up to 250 and 0.8 s at once).
    """
    size = batch_size or (2500 if thetas.is_cuda else 200)
    count = len(data.labels)
    hits = torch.zeros(len(thetas), device=thetas.device)
    for start in range(0, count, size):
        images, labels = data.batch(torch.arange(start, min(start + size, count), device=thetas.device))
        hits += torch.stack([(model(theta, images).argmax(-1) == labels).sum() for theta in thetas])
    return hits / count
