"""Training networks on the real images as IDC does: augmented, mixed by CutMix, in one stream of shuffled passes.

The stream goes on across updates and networks, and never looks at the synthetic set. Source: specs/idc_dream_pdd.md section 1.5.

Methods that train networks on the synthetic set instead may have new slots of a pool warmed up on real data too, `warmed`.
"""

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from raydd.augment import cutmix, diffaug
from raydd.config import Config, IDCConfig
from raydd.data import RealData
from raydd.metagrad import derivatives_of
from raydd.methods.base import Resources
from raydd.models import FlatModel
from raydd.rng import stream
from raydd.training import Recipe, augmented, sgd_
from raydd.types import Network


class RealTraining:
    """Trains networks on one device with the settings of `idc`."""

    def __init__(self, model: FlatModel, real: RealData, settings: IDCConfig, seed: int):
        self._model, self._real, self._settings, self._seed = model, real, settings, seed
        self.size = min(settings.batch_net or settings.batch_real, len(real.resident))
        self._gradient = derivatives_of(model).gradient
        self._recipe = Recipe(self.size, settings.momentum_net, settings.weight_decay_net)

    def update_batches(self) -> int:
        """Batches of one network update.

        The reference takes one more where a pass ends within an update with a short batch; a fixed number lets any step find its place.
        """
        return self.batches(self._settings.net_images)

    def batches(self, images: int) -> int:
        """Batches that see at least so many images."""
        return math.ceil(images / self.size)

    @property
    def epoch_batches(self) -> int:
        """Batches of one pass; its last, smaller batch is used too."""
        return math.ceil(len(self._real.resident) / self.size)

    def update(self, network: Network, step: int) -> Network:
        """The network after its update number `step` of the run, which has its own batches of the stream."""
        count = self.update_batches()
        return self._train(network, range(step * count, (step + 1) * count), "network", 0)

    def warm_up(self, network: Network, batches: int) -> Network:
        """A new network after so many batches of a stream of its own; its optimiser goes on with the momentum, as in the reference."""
        return self._train(network, range(batches), "warm-up", network.born)

    def _train(self, network: Network, numbers: range, name: str, index: int) -> Network:
        theta, velocity = network.theta.clone(), network.velocity.clone()
        for number, rows in _batches(len(self._real.resident), self.size, numbers, self._seed, name, index):
            velocity = self._step(theta, velocity, rows, stream(self._seed, number, f"{name}-augmentation", index))
        return replace(network, theta=theta, velocity=velocity)

    def _step(self, theta: Tensor, velocity: Tensor, rows: Tensor, generator: torch.Generator) -> Tensor:
        settings = self._settings
        images, labels = self._real.resident.batch(rows)
        side, device = images.shape[-1], images.device
        drawn = diffaug.draw(generator, settings.net_strategy, len(rows), side, "per-image")
        mixed = cutmix.draw(generator, len(rows), side, settings.mix_probability)
        drawn, mixed = drawn and drawn.to(device), mixed and mixed.to(device)
        seen = cutmix.apply(diffaug.apply(images, drawn), mixed)
        gradient = self._gradient(theta, seen, cutmix.chances(labels, self._model.classes, mixed))
        moved = sgd_(theta, gradient, velocity, settings.lr_net, self._recipe)
        return velocity if moved is None else moved


def warmed(resources: Resources, config: Config, network: Network, lr: float, recipe: Recipe) -> Network:
    """A new network of a method that trains networks on the synthetic set, after its warm-up on real data; else the same network.

    Plain SGD at the method's own rate `lr`, batches and augmentation: momentum and what its memory holds stay as they are.
    """
    real, born = resources.real.resident, network.born
    size = min(recipe.batch_size, len(real))
    numbers = range(warm_up_batches(config, born, size, 0))
    if not numbers:
        return network
    theta, gradient = network.theta.clone(), derivatives_of(resources.model).gradient
    for number, rows in _batches(len(real), size, numbers, config.seed, "warm-up", born):
        images, labels = augmented(real, rows, stream(config.seed, number, "warm-up-augmentation", born), recipe)
        sgd_(theta, gradient(theta, images, labels), None, lr, recipe)
    return replace(network, theta=theta)


def warm_up_batches(config: Config, born: int, size: int, default: int) -> int:
    """Batches of `size` for a slot that competes with others: `selection.warm_up_images`, else `default`, so often as its number draws."""
    selection = config.selection
    if selection.candidates == 1:
        return 0
    images = default if selection.warm_up_images is None else selection.warm_up_images
    times = 1 + int(torch.randint(selection.warm_up_spread + 1, (), generator=stream(config.seed, born, "warm-up-spread")))
    return times * math.ceil(images / size)


def _batches(count: int, size: int, numbers: range, seed: int, name: str, index: int) -> Iterator[tuple[int, Tensor]]:
    """Of shuffled passes over `count` images in batches of `size`, the batches with these numbers: (number, rows int64 (b,))."""
    each, passes, order = math.ceil(count / size), -1, torch.empty(0)
    for number in numbers:
        at, place = divmod(number, each)
        if at != passes:
            passes, order = at, torch.randperm(count, generator=stream(seed, at, f"{name}-order", index))
        yield number, order[place * size : (place + 1) * size]
