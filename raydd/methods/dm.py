"""DM: match the mean features of real and synthetic images, class by class, under fresh random networks.

Source: specs/dc_dsa_dm_cafe_selection_cl.md section 6.
"""

import time

import torch
from torch import Tensor

from raydd.augment.classes import ClassDraw, apply_classes
from raydd.config import Config
from raydd.matching import features
from raydd.methods.base import DataFacts, MethodEntry, NetworkRules, Resources, register
from raydd.methods.chunks import Chunks
from raydd.methods.networks import (
    EVALUATION_RATE,
    StepKey,
    batch_problems,
    by_class,
    chunk_problems,
    draw_key,
    fresh,
    image_optimiser,
    of_classes,
    purpose,
    rank_problems,
    ranked_classes,
    seen_apart,
    siamese,
)
from raydd.methods.real_training import warmed
from raydd.training import Recipe
from raydd.types import Candidate, Network, Score, SyntheticSet, Update

WARM_UP_BATCH = 256
"""Real images in a batch of a network's warm-up: that of the paper's evaluation, since nothing else trains a network."""


class DistributionMatching:
    """DM on one device. The loss is the mean over the classes of the squared distance of mean features."""

    def __init__(self, config: Config, resources: Resources):
        self._config, self._settings, self._resources = config, config.dm, resources
        self._classes = resources.model.classes
        self._chunks = Chunks(resources.model, resources.device, "features", config.dm.class_chunk)

    def score(self, synthetic: SyntheticSet, candidate: Candidate, draws: StepKey) -> Score:
        """The matching loss, first order; with `selection.rank_classes` the mean over these classes."""
        started = time.perf_counter()
        classes = ranked_classes(self._config, draws, self._classes)
        drawn = of_classes(siamese(self._config, self._resources, self._config.augment.strategy, candidate, draws), classes)
        real = self._real(candidate, draws, drawn, classes)
        seen = apply_classes(by_class(synthetic.images, self._classes)[classes], drawn)
        chunk = self._chunks.of(synthetic=seen.shape[1], frozen=synthetic.frozen)
        means = features.mean_features(self._resources.model, candidate.network.theta, seen, chunk)
        losses, _ = features.feature_distance("mse", real, means)
        return Score(losses.mean().item(), time.perf_counter() - started, real.square().sum(1).mean().item())

    def update(self, synthetic: SyntheticSet, candidate: Candidate, draws: StepKey) -> Update:
        """The gradient of the same loss, on the CPU."""
        started = time.perf_counter()
        drawn = siamese(self._config, self._resources, self._config.augment.strategy, candidate, draws)
        real = self._real(candidate, draws, drawn)
        free, seen, whole = seen_apart(synthetic, self._classes, drawn)
        model, theta = self._resources.model, candidate.network.theta
        chunk = self._chunks.of(synthetic=whole.shape[1], frozen=synthetic.frozen)
        losses, towards = features.match_features(model, theta, real, whole, "mse", chunk, synthetic.frozen)
        (gradient,) = torch.autograd.grad(seen, free, towards / len(losses))
        return Update(losses.mean().item(), gradient.flatten(0, 1).cpu(), torch.zeros(()), time.perf_counter() - started)

    def begin(self, born: int) -> Network:
        """A fresh random network, warmed up where the settings ask for it."""
        recipe = Recipe(WARM_UP_BATCH, strategy=self._config.augment.strategy, parameters="per-image")
        return warmed(self._resources, self._config, fresh(self._resources, self._config, born), EVALUATION_RATE, recipe)

    def prepare(self, network: Network, draws: StepKey) -> Network:
        """Nothing is needed before the update."""
        return network

    def advance(self, synthetic: SyntheticSet, network: Network, draws: StepKey) -> Network:
        """DM trains no network."""
        return network

    def _real(self, candidate: Candidate, draws: StepKey, drawn: ClassDraw | None, classes: Tensor | slice = slice(None)) -> Tensor:
        real, count = self._resources.real, self._settings.batch_real
        rows = real.random_rows(count, draws.seed, draws.step, purpose(self._config, "real-batch", candidate), draws.attempt)
        seen = apply_classes(real.images(rows[classes]), drawn)
        return features.mean_features(self._resources.model, candidate.network.theta, seen, self._chunks.of(real=count))


def _problems(config: Config, facts: DataFacts | None) -> list[str]:
    return (
        rank_problems(config, facts)
        + chunk_problems(config, config.dm.class_chunk)
        + batch_problems("dm.batch_real", config.dm.batch_real, facts)
    )


register(
    MethodEntry(
        name="dm",
        build=DistributionMatching,
        draw=draw_key,
        optimiser=lambda config, side, outer: image_optimiser(config.dm.lr_img, config.dm.momentum),
        step_size=lambda config: EVALUATION_RATE,
        rates=lambda config: {"dm.lr_img": config.dm.lr_img},
        networks=NetworkRules(length=lambda config: 1, warms=True, ranks_classes=True),
        matched=lambda config: "features",
        problems=_problems,
    )
)
