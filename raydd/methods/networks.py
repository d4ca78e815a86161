"""What the methods share whose networks train between updates: the key of a step, fresh networks, training on the synthetic set."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from raydd.augment import dsa
from raydd.augment.classes import ClassDraw, apply_classes
from raydd.config import Config
from raydd.metagrad import Derivatives
from raydd.methods.base import DataFacts, Optimiser, Resources
from raydd.rng import stream
from raydd.training import Recipe, TensorBatches, augmented, sgd_
from raydd.types import Candidate, Network, SyntheticSet

EVALUATION_RATE = 0.01
"""The rate at which the papers of these methods train networks on the result; nothing learns it."""


@dataclass(frozen=True)
class StepKey:
    """(seed, step, attempt), from which a worker draws all randomness of the step before it computes anything."""

    key: tuple[int, int, int]

    @property
    def seed(self) -> int:
        return self.key[0]

    @property
    def step(self) -> int:
        return self.key[1]

    @property
    def attempt(self) -> int:
        return self.key[2]

    def next(self) -> "StepKey":
        """The key of the step that follows, first attempt."""
        return StepKey((self.seed, self.step + 1, 0))


def draw_key(config: Config, synthetic: SyntheticSet, step: int, attempt: int) -> StepKey:
    """`MethodEntry.draw` of these methods."""
    return StepKey((config.seed, step, attempt))


def purpose(config: Config, name: str, candidate: Candidate) -> str:
    """The stream of a step's draw: one for all its candidates, or with `selection.common_draws` off one for each."""
    return name if config.selection.common_draws else f"{name}-{candidate.index}"


def siamese(config: Config, resources: Resources, strategy: str, candidate: Candidate, draws: StepKey) -> ClassDraw | None:
    """DSA's draw of a step: one operation and one set of parameters for all images of a class, real and synthetic."""
    generator = stream(draws.seed, draws.step, purpose(config, "siamese", candidate), draws.attempt)
    drawn = dsa.draw_classes(generator, strategy, resources.model.classes, resources.model.shape[-1])
    return drawn and drawn.to(resources.device)


def ranked_classes(config: Config, draws: StepKey, classes: int) -> Tensor | slice:
    """The classes on which the candidates of a step are scored, the same for all: int64 (k,), ascending, or all of them as a slice."""
    count = config.selection.rank_classes
    if count is None:
        return slice(None)
    order = torch.randperm(classes, generator=stream(draws.seed, draws.step, "rank-classes", draws.attempt))
    return order[:count].sort().values


def of_classes(drawn: ClassDraw | None, classes: Tensor | slice) -> ClassDraw | None:
    """The part of a draw that is for some of the classes."""
    if drawn is None or isinstance(classes, slice):
        return drawn
    stages = []
    for stage in drawn.stages:
        values = tuple({name: value[classes.to(value.device)] for name, value in each.items()} for each in stage.values)
        stages.append(replace(stage, choice=stage.choice[classes], values=values))
    return ClassDraw(tuple(stages))


def fresh(resources: Resources, config: Config, born: int) -> Network:
    """Network number `born` of a run, without momentum: untrained, or in a later stage a copy of one of its start networks."""
    if resources.starts is None:
        theta = resources.model.init(stream(config.seed, born, "network")).to(resources.device)
    else:
        chosen = torch.randint(resources.start_count, (), generator=stream(config.seed, born, "start-network"))
        theta = resources.starts.theta(int(chosen), 0).to(resources.device, copy=True)
    return Network(theta, torch.zeros_like(theta), born)


def by_class(images: Tensor, classes: int) -> Tensor:
    """Class-major images (C x n, ...) as (C, n, ...)."""
    return images.unflatten(0, (classes, -1))


def parted(synthetic: SyntheticSet, classes: int) -> tuple[Tensor, Tensor]:
    """The frozen images (C, frozen, ...) of a set, and the free ones (C, n - frozen, ...), ready to record what happens to them.

    Beside each other, `torch.cat(parted(...), 1)`, they are the `by_class` of all, with a graph through the free ones alone.
    """
    images = by_class(synthetic.images.detach(), classes)
    return images[:, : synthetic.frozen], images[:, synthetic.frozen :].detach().requires_grad_()


def seen_apart(synthetic: SyntheticSet, classes: int, drawn: ClassDraw | None) -> tuple[Tensor, Tensor, Tensor]:
    """The free images (C, n - frozen, ...), what the network sees of them, with a graph, and what it sees of all (C, n, ...), without."""
    fixed, free = parted(synthetic, classes)
    with torch.enable_grad():
        seen = apply_classes(free, drawn)
    return free, seen, torch.cat([apply_classes(fixed, drawn), seen.detach()], 1)


def train_on_set(
    derivatives: Derivatives, network: Network, synthetic: SyntheticSet, lr: float, recipe: Recipe, seed: int, epoch: int
) -> Network:
    """The network after one epoch of plain SGD on the synthetic set, its images held fixed; `epoch` numbers the epochs of the run."""
    theta, data = network.theta.clone(), TensorBatches(synthetic.images, synthetic.labels)
    order = torch.randperm(len(data.labels), generator=stream(seed, epoch, "network-order")).to(theta.device)
    generator = stream(seed, epoch, "network-augmentation")
    for rows in order.split(recipe.batch_size):
        images, labels = augmented(data, rows, generator, recipe)
        sgd_(theta, derivatives.gradient(theta, images, labels), None, lr, recipe)
    return replace(network, theta=theta)


def image_optimiser(lr: float, momentum: float) -> Optimiser:
    """SGD on the images, where the base method steps on the sum over the classes."""
    return Optimiser(lr, momentum, class_sum=True)


def chunk_problems(config: Config, chunk: int | None) -> list[str]:
    """Refuses a class chunk where the statistics of all classes together belong to the method."""
    if chunk is None or config.model.norm != "batch":
        return []
    return [
        f"--{config.method}.class_chunk={chunk} with --model.norm batch: statistics are those of all classes in one pass. "
        f"Leave --{config.method}.class_chunk out, or use --model.norm instance."
    ]


def rank_problems(config: Config, facts: DataFacts | None, least: int = 1) -> list[str]:
    """Refuses a number of classes to score on that the data does not have, or below `least`."""
    count = config.selection.rank_classes
    if count is None or (count >= least and (facts is None or count <= len(facts.classes))):
        return []
    allowed = f"from {least} to {len(facts.classes)}, the classes of the data" if facts else f"at least {least}"
    return [f"--selection.rank_classes={count} must be {allowed}, for {config.method}. Leave it out for all classes."]


def batch_problems(flag: str, count: int, facts: DataFacts | None) -> list[str]:
    """Refuses a number of real images of a class that some class does not have."""
    if facts is None or min(facts.counts) >= count:
        return []
    smallest = min(range(len(facts.counts)), key=facts.counts.__getitem__)
    return [f"--{flag}={count}: class {facts.classes[smallest]!r} has {facts.counts[smallest]} training images. Use at most as many."]
