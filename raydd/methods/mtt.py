"""MTT: match the end of the student's walk on the synthetic set to an expert's snapshot some epochs later.

Source: specs/mtt_pdd.md section 2.2 (reference program) and section 4 (as DynaDistill scores it).
"""

import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from raydd import metagrad
from raydd.augment import dsa
from raydd.config import Config
from raydd.methods.base import MethodEntry, Optimiser, Resources, register
from raydd.rng import stream
from raydd.types import Candidate, Score, SyntheticSet, Update


@dataclass(frozen=True)
class MTTDraws:
    """All randomness of one step: the batch and the augmentation of each of the N inner steps.

    `key` is (seed, step, attempt), by which a worker knows whether it has seen these draws.
    """

    key: tuple[int, int, int]
    batches: tuple[metagrad.InnerBatch, ...]


def draw(config: Config, synthetic: SyntheticSet, step: int, attempt: int) -> MTTDraws:
    """Draw the inner batches of a step as the reference does: permutations cut into chunks, taken from the end.

    The short remainder chunk therefore comes first (specs/mtt_pdd.md section 2.2).
    """
    count, side = len(synthetic.images), synthetic.images.shape[-1]
    order = stream(config.seed, step, "inner-batches", attempt)
    augmentation = stream(config.seed, step, "inner-augmentation", attempt)
    chunks: list[Tensor] = []
    batches = []
    for _ in range(config.mtt.syn_steps):
        if not chunks:
            chunks = list(torch.randperm(count, generator=order).split(config.mtt.batch_syn or count))
        indices = chunks.pop()
        drawn = dsa.draw(augmentation, config.augment.strategy, len(indices), side, config.augment.parameters)
        batches.append(metagrad.InnerBatch(indices, drawn))
    return MTTDraws((config.seed, step, attempt), tuple(batches))


class MTT:
    """Trajectory matching on one device. Keeps the walks of the last scored step, so that the winner is not walked twice."""

    def __init__(self, config: Config, resources: Resources):
        self._settings, self._resources = config.mtt, resources
        self._derivatives = metagrad.derivatives_of(resources.model)
        self._kept: dict[Candidate, list[Tensor]] = {}
        self._kept_for: tuple[SyntheticSet, MTTDraws] | None = None
        self._batches: tuple[metagrad.InnerBatch, ...] = ()

    def score(self, synthetic: SyntheticSet, candidate: Candidate, draws: MTTDraws) -> Score:
        """The matching loss: N first-order inner steps from the candidate's start epoch."""
        started = time.perf_counter()
        thetas, _ = self._walk(synthetic, candidate, draws)
        loss = metagrad.matching_loss(thetas[-1], thetas[0], self._target(candidate))
        return Score(loss.item(), time.perf_counter() - started)

    def update(self, synthetic: SyntheticSet, candidate: Candidate, draws: MTTDraws) -> Update:
        """The gradient of the same loss, on the CPU."""
        started = time.perf_counter()
        target = self._target(candidate)
        place = (target, synthetic.images, synthetic.labels, synthetic.step_size)
        if self._settings.grad_mode == "unroll":
            start = self._resources.experts.theta(candidate.expert, candidate.epoch)
            result = metagrad.unroll(self._resources.model, start, *place, self._on_device(draws))
        else:
            thetas, batches = self._walk(synthetic, candidate, draws)
            chain = self._settings.grad_mode == "adjoint"
            result = metagrad.adjoint(self._derivatives, thetas, *place, batches, chain)
        loss, grad_images, grad_step_size = result
        return Update(loss.item(), grad_images.cpu(), grad_step_size.cpu(), time.perf_counter() - started)

    def _walk(self, synthetic: SyntheticSet, candidate: Candidate, draws: MTTDraws) -> tuple[list[Tensor], tuple[metagrad.InnerBatch, ...]]:
        if not self._same(synthetic, draws):
            # Copies, because the caller may change its own in place.
            own = replace(synthetic, images=synthetic.images.clone(), step_size=synthetic.step_size.clone())
            self._kept, self._kept_for, self._batches = {}, (own, draws), self._on_device(draws)
        if candidate not in self._kept:
            start = self._resources.experts.theta(candidate.expert, candidate.epoch)
            self._kept[candidate] = metagrad.walk(
                self._derivatives, start, synthetic.images, synthetic.labels, synthetic.step_size, self._batches
            )
        return self._kept[candidate], self._batches

    def _same(self, synthetic: SyntheticSet, draws: MTTDraws) -> bool:
        # By content, because a set may have been copied on its way here; comparing costs far less than one inner step.
        if self._kept_for is None:
            return False
        kept, kept_draws = self._kept_for
        same_set = torch.equal(kept.images, synthetic.images) and torch.equal(kept.step_size, synthetic.step_size)
        return same_set and kept_draws.key == draws.key

    def _on_device(self, draws: MTTDraws) -> tuple[metagrad.InnerBatch, ...]:
        return tuple(batch.to(self._resources.device) for batch in draws.batches)

    def _target(self, candidate: Candidate) -> Tensor:
        return self._resources.experts.theta(candidate.expert, candidate.epoch + self._settings.expert_epochs)


def _optimiser(config: Config, side: int, outer: int) -> Optimiser:
    mtt = config.mtt
    return Optimiser(mtt.lr_img, mtt.momentum, mtt.lr_lr, mtt.min_step_size)


register(
    MethodEntry(
        name="mtt",
        build=MTT,
        draw=draw,
        optimiser=_optimiser,
        step_size=lambda config: config.mtt.lr_init,
        rates=lambda config: {"mtt.lr_img": config.mtt.lr_img, "mtt.lr_lr": config.mtt.lr_lr, "mtt.lr_init": config.mtt.lr_init},
        start_epochs=lambda config: config.mtt.max_start_epoch,
    )
)
