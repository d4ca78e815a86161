"""CAFE: match features layer by layer, tell real images apart by the synthetic centres, and train networks by a two-level rule.

Source: specs/dc_dsa_dm_cafe_selection_cl.md section 7. The rule is that of the reference without its leak (accumulators that are never
reset), and with caps on both levels, since the reference's inner loop may never end.
"""

import time
from dataclasses import replace

import torch
from torch import Tensor

from raydd.augment.classes import ClassDraw, apply_classes
from raydd.config import Config
from raydd.matching import cafe
from raydd.metagrad import derivatives_of
from raydd.methods.base import DataFacts, MethodEntry, NetworkRules, Optimiser, Resources, register
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
    train_on_set,
)
from raydd.methods.real_training import warmed
from raydd.training import Recipe
from raydd.types import Candidate, Network, Score, SyntheticSet, Update

MILESTONES = (0.6, 0.8, 0.9)
"""Shares of the iterations after which the image rate is halved."""


class CAFE:
    """CAFE on one device. The loss is that of the reference over the number of classes."""

    def __init__(self, config: Config, resources: Resources):
        self._config, self._settings, self._resources = config, config.cafe, resources
        self._derivatives = derivatives_of(resources.model)
        self._strategy = config.augment.strategy if config.cafe.dsa else "none"
        self._recipe = Recipe(config.cafe.batch_train, strategy=self._strategy, parameters="per-image")
        self._classes = resources.model.classes
        self._chunks = Chunks(resources.model, resources.device, "maps", config.cafe.class_chunk)
        early, late = config.cafe.early_weight, config.cafe.late_weight
        # Maps of every block before its pooling, and of the last one behind it.
        self._weights = (*[early] * (config.model.depth - 1), late, late)

    def score(self, synthetic: SyntheticSet, candidate: Candidate, draws: StepKey) -> Score:
        """The matching loss, first order; with `selection.rank_classes` the mean over these classes, told apart from each other alone."""
        started = time.perf_counter()
        classes = ranked_classes(self._config, draws, self._classes)
        real, drawn = self._real(candidate, draws, classes)
        seen = apply_classes(by_class(synthetic.images, self._classes)[classes], drawn)
        place = (self._resources.model, candidate.network.theta, real, seen, self._weights, self._settings.discrimination_weight)
        terms = cafe.score(*place, self._chunks.of(synthetic=seen.shape[1], frozen=synthetic.frozen))
        size = sum(mean.square().sum() for mean in real.means) / len(seen)
        return Score(terms.loss.item() / len(seen), time.perf_counter() - started, float(size))

    def update(self, synthetic: SyntheticSet, candidate: Candidate, draws: StepKey) -> Update:
        """The gradient of the same loss, on the CPU."""
        started = time.perf_counter()
        real, drawn = self._real(candidate, draws)
        free, seen, whole = seen_apart(synthetic, self._classes, drawn)
        place = (self._resources.model, candidate.network.theta, real, whole, self._weights, self._settings.discrimination_weight)
        chunk = self._chunks.of(synthetic=whole.shape[1], frozen=synthetic.frozen)
        terms, towards = cafe.match(*place, chunk, synthetic.frozen)
        (gradient,) = torch.autograd.grad(seen, free, towards / self._classes)
        return Update(terms.loss.item() / self._classes, gradient.flatten(0, 1).cpu(), torch.zeros(()), time.perf_counter() - started)

    def begin(self, born: int) -> Network:
        """A fresh random network that has answered no query, warmed up where the settings ask for it."""
        network = fresh(self._resources, self._config, born)
        network = warmed(self._resources, self._config, network, self._settings.lr_net, self._recipe)
        return replace(network, memory={"accuracies": torch.empty(0)})

    def prepare(self, network: Network, draws: StepKey) -> Network:
        """Nothing is needed before the first update."""
        return network

    def advance(self, synthetic: SyntheticSet, network: Network, draws: StepKey) -> Network:
        """The network after its training on the set; finished instead, where its accuracies of the last updates hardly differ."""
        settings = self._settings
        before = network.memory.get("accuracies", torch.empty(0))
        accuracies = torch.cat([before, self._query(network, draws, 0)[None]])[-settings.window :]
        network = replace(network, memory={"accuracies": accuracies})
        if len(accuracies) == settings.window and _range(accuracies) < settings.outer_range:
            return replace(network, memory={"accuracies": accuracies, "finished": torch.ones(())})
        window: list[Tensor] = []
        for epoch in range(settings.max_inner):
            number = draws.step * settings.max_inner + epoch
            network = train_on_set(self._derivatives, network, synthetic, settings.lr_net, self._recipe, draws.seed, number)
            window = [*window, self._query(network, draws, epoch + 1)][-settings.window :]
            if len(window) == settings.window and _range(torch.stack(window)) > settings.inner_range:
                break
        return network

    def _query(self, network: Network, draws: StepKey, place: int) -> Tensor:
        """Mean over the classes of the accuracy on random training images, () on the CPU; `place` numbers the queries of a step."""
        real = self._resources.real
        rows = real.random_rows(self._settings.queries, draws.seed, draws.step, "queries", place)
        labels = torch.arange(self._classes, device=self._resources.device)
        with torch.no_grad():
            found = [
                self._resources.model(network.theta, real.images(own)).argmax(1) == label for own, label in zip(rows, labels, strict=True)
            ]
        return torch.stack(found).float().mean().cpu()

    def _real(
        self, candidate: Candidate, draws: StepKey, classes: Tensor | slice = slice(None)
    ) -> tuple[cafe.RealFeatures, ClassDraw | None]:
        drawn = of_classes(siamese(self._config, self._resources, self._strategy, candidate, draws), classes)
        real, count = self._resources.real, self._settings.batch_real
        rows = real.random_rows(count, draws.seed, draws.step, purpose(self._config, "real-batch", candidate), draws.attempt)
        seen = apply_classes(real.images(rows[classes]), drawn)
        return cafe.real_features(self._resources.model, candidate.network.theta, seen, self._chunks.of(real=count)), drawn


def _range(values: Tensor) -> Tensor:
    return values.max() - values.min()


def _optimiser(config: Config, side: int, outer: int) -> Optimiser:
    halvings = sum(outer >= share * config.cafe.iterations for share in MILESTONES)
    return image_optimiser(config.cafe.lr_img / 2**halvings, config.cafe.momentum)


def _problems(config: Config, facts: DataFacts | None) -> list[str]:
    found = (
        []
        if config.model.name == "convnet"
        else [f"--model.name={config.model.name}: cafe matches the maps of a convnet. Use --model.name convnet."]
    )
    if facts is not None and len(facts.classes) < 2:
        found.append("cafe tells classes apart, and this data has one. Give data with two or more classes, or another --method.")
    found += rank_problems(config, facts, least=2)
    found += chunk_problems(config, config.cafe.class_chunk)
    found += batch_problems("cafe.batch_real", config.cafe.batch_real, facts)
    return found + batch_problems("cafe.queries", config.cafe.queries, facts)


register(
    MethodEntry(
        name="cafe",
        build=CAFE,
        draw=draw_key,
        optimiser=_optimiser,
        step_size=lambda config: EVALUATION_RATE,
        rates=lambda config: {"cafe.lr_img": config.cafe.lr_img},
        networks=NetworkRules(
            length=lambda config: config.cafe.max_outer, iterations=lambda config: config.cafe.iterations, warms=True, ranks_classes=True
        ),
        matched=lambda config: "maps",
        problems=_problems,
    )
)
