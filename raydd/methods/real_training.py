"""Training networks on the real images as IDC does: augmented, mixed by CutMix, in one stream of shuffled passes.

The stream goes on across updates and networks, and never looks at the synthetic set. Source: specs/idc_dream_pdd.md section 1.5.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from raydd.augment import cutmix, diffaug
from raydd.config import IDCConfig
from raydd.data import RealData
from raydd.metagrad import derivatives_of
from raydd.models import FlatModel
from raydd.rng import stream
from raydd.training import Recipe, sgd_
from raydd.types import Network


class RealTraining:
    """Trains networks on one device with the settings of `idc`."""

    def __init__(self, model: FlatModel, real: RealData, settings: IDCConfig, seed: int):
        self._model, self._real, self._settings, self._seed = model, real, settings, seed
        self._size = min(settings.batch_net or settings.batch_real, len(real.resident))
        self._gradient = derivatives_of(model).gradient
        self._recipe = Recipe(self._size, settings.momentum_net, settings.weight_decay_net)

    def update_batches(self) -> int:
        """Batches of one network update.

        The reference takes one more where a pass ends within an update with a short batch; a fixed number lets any step find its place.
        """
        return self.batches(self._settings.net_images)

    def batches(self, images: int) -> int:
        """Batches that see at least so many images."""
        return math.ceil(images / self._size)

    @property
    def epoch_batches(self) -> int:
        """Batches of one pass; its last, smaller batch is used too."""
        return math.ceil(len(self._real.resident) / self._size)

    def update(self, network: Network, step: int) -> Network:
        """The network after its update number `step` of the run, which has its own batches of the stream."""
        count = self.update_batches()
        return self._train(network, range(step * count, (step + 1) * count), "network", 0)

    def warm_up(self, network: Network, batches: int) -> Network:
        """A new network after so many batches of a stream of its own; its optimiser goes on with the momentum, as in the reference."""
        return self._train(network, range(batches), "warm-up", network.born)

    def _train(self, network: Network, numbers: range, name: str, index: int) -> Network:
        theta, velocity = network.theta.clone(), network.velocity.clone()
        passes, order = -1, torch.empty(0)
        for number in numbers:
            at, place = divmod(number, self.epoch_batches)
            if at != passes:
                passes, order = at, torch.randperm(len(self._real.resident), generator=stream(self._seed, at, f"{name}-order", index))
            rows = order[place * self._size : (place + 1) * self._size]
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
