"""DC and DSA: match the gradients of real and synthetic images, class by class, on networks that train on the synthetic set.

DSA is DC with the same random augmentation of the real and the synthetic images of a class (and real initial images, a setting of
its recipes). Source: specs/dc_dsa_dm_cafe_selection_cl.md sections 4 and 5.

With a batch norm the reference lets the network see 16 real images of every class together and then fixes the statistics for the
image update. Here every class's batch, real or synthetic, is normalised by its own statistics, as it is where the network trains: no
state besides the parameters then goes from step to step, and classes stay independent of each other.
"""

import time

import torch
from torch import Tensor

from raydd.augment.classes import ClassDraw, apply_classes
from raydd.config import Config
from raydd.matching import distances, gradients
from raydd.metagrad import derivatives_of
from raydd.methods.base import DataFacts, MethodEntry, NetworkRules, Resources, register
from raydd.methods.chunks import Chunks
from raydd.methods.networks import (
    EVALUATION_RATE,
    StepKey,
    batch_problems,
    by_class,
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

LOOPS = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}
"""ipc -> (image updates with each network, epochs between two of them)."""


def loops(config: Config) -> tuple[int, int]:
    """(outer, inner) of the settings, else of the paper's table."""
    outer, inner = LOOPS.get(config.ipc, (1, 1))
    return config.dc.outer or outer, inner if config.dc.inner is None else config.dc.inner


class GradientMatching:
    """DC on one device, or with `siamese` DSA. The loss is the mean over the classes of the distance of their gradients."""

    def __init__(self, config: Config, resources: Resources, siamese: bool):
        self._config, self._settings, self._resources = config, config.dc, resources
        self._derivatives = derivatives_of(resources.model)
        self._strategy = config.augment.strategy if siamese else "none"
        self._recipe = Recipe(config.dc.batch_train, strategy=self._strategy, parameters="per-image")
        self._distance = distances.dc_distance(resources.model.layout, self._settings.metric, self._settings.eps)
        self._labels = torch.arange(resources.model.classes, device=resources.device)
        self._chunks = Chunks(resources.model, resources.device, "gradients", config.dc.class_chunk)
        self._kept: tuple[object, Tensor] | None = None

    def score(self, synthetic: SyntheticSet, candidate: Candidate, draws: StepKey) -> Score:
        """The matching loss, first order; with `selection.rank_classes` the mean over these classes."""
        started = time.perf_counter()
        classes = ranked_classes(self._config, draws, len(self._labels))
        real, drawn = self._real(candidate, draws, classes), of_classes(self._siamese(candidate, draws), classes)
        seen = apply_classes(by_class(synthetic.images, len(self._labels))[classes], drawn)
        chunk = self._chunks.of(synthetic=seen.shape[1], frozen=synthetic.frozen)
        place = (self._resources.model, candidate.network.theta, real, seen, self._labels[classes], self._distance, chunk)
        losses = gradients.scores(*place)
        size = distances.squared_norms(self._distance, real).mean()
        return Score(losses.mean().item(), time.perf_counter() - started, size.item())

    def update(self, synthetic: SyntheticSet, candidate: Candidate, draws: StepKey) -> Update:
        """The gradient of the same loss, on the CPU."""
        started = time.perf_counter()
        real = self._real(candidate, draws)
        free, seen, whole = seen_apart(synthetic, len(self._labels), self._siamese(candidate, draws))
        chunk = self._chunks.of(synthetic=whole.shape[1], frozen=synthetic.frozen)
        place = (self._resources.model, candidate.network.theta, real, whole, self._labels, self._distance, chunk)
        losses, towards = gradients.match(*place, synthetic.frozen)
        (gradient,) = torch.autograd.grad(seen, free, towards / len(losses))
        return Update(losses.mean().item(), gradient.flatten(0, 1).cpu(), torch.zeros(()), time.perf_counter() - started)

    def begin(self, born: int) -> Network:
        """A fresh random network, warmed up where the settings ask for it."""
        return warmed(self._resources, self._config, fresh(self._resources, self._config, born), self._settings.lr_net, self._recipe)

    def prepare(self, network: Network, draws: StepKey) -> Network:
        """Nothing is needed before the first update."""
        return network

    def advance(self, synthetic: SyntheticSet, network: Network, draws: StepKey) -> Network:
        """The network after its epochs on the synthetic set."""
        _, inner = loops(self._config)
        for epoch in range(draws.step * inner, (draws.step + 1) * inner):
            network = train_on_set(self._derivatives, network, synthetic, self._settings.lr_net, self._recipe, draws.seed, epoch)
        return network

    def _real(self, candidate: Candidate, draws: StepKey, classes: Tensor | slice = slice(None)) -> Tensor:
        """Gradients (C, P) of the real batches; those of all classes for the last candidate and step are kept for its update."""
        place, whole = (candidate.network.theta, draws.key, candidate.index), isinstance(classes, slice)
        if not whole or self._kept is None or self._kept[0][0] is not place[0] or self._kept[0][1:] != place[1:]:
            real, count = self._resources.real, self._settings.batch_real
            rows = real.random_rows(count, draws.seed, draws.step, purpose(self._config, "real-batch", candidate), draws.attempt)
            seen = apply_classes(real.images(rows[classes]), of_classes(self._siamese(candidate, draws), classes))
            chunk = self._chunks.of(real=count)
            found = gradients.class_gradients(self._resources.model, candidate.network.theta, seen, self._labels[classes], chunk)
            if not whole:
                return found
            self._kept = (place, found)
        return self._kept[1]

    def _siamese(self, candidate: Candidate, draws: StepKey) -> ClassDraw | None:
        return siamese(self._config, self._resources, self._strategy, candidate, draws)


def _problems(config: Config, facts: DataFacts | None) -> list[str]:
    found = rank_problems(config, facts) + batch_problems("dc.batch_real", config.dc.batch_real, facts)
    if config.ipc not in LOOPS and (config.dc.outer is None or config.dc.inner is None):
        found.append(
            f"--ipc={config.ipc} has no loop counts in the paper's table ({', '.join(map(str, LOOPS))}). Give --dc.outer (image updates "
            "with each network) and --dc.inner (epochs between two of them)."
        )
    return found


for _name, _siamese in (("dc", False), ("dsa", True)):
    register(
        MethodEntry(
            name=_name,
            build=lambda config, resources, siamese=_siamese: GradientMatching(config, resources, siamese),
            draw=draw_key,
            optimiser=lambda config, side, outer: image_optimiser(config.dc.lr_img, config.dc.momentum),
            step_size=lambda config: EVALUATION_RATE,
            rates=lambda config: {"dc.lr_img": config.dc.lr_img},
            networks=NetworkRules(length=lambda config: loops(config)[0], warms=True, ranks_classes=True),
            problems=_problems,
        )
    )
