"""MTT: match the end of the student's walk on the synthetic set to an expert's snapshot some epochs later.

Source: specs/mtt_pdd.md section 2.2 (reference program) and section 4 (as DynaDistill scores it).
"""

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from raydd import metagrad
from raydd.augment import dsa
from raydd.config import Config
from raydd.methods.base import MethodEntry, Optimiser, Resources, register
from raydd.methods.networks import by_class
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

    The short remainder chunk therefore comes first (specs/mtt_pdd.md section 2.2). A batch has b images: `mtt.batch_syn`, else as many
    as the stage has of its own (section 3.1).

    Where images are frozen, `stages.batch_mode` says what is cut. union_chunks: all images, as in the reference. new_first: the free
    ones alone, and every chunk is filled up to b with frozen ones, all equally likely and none twice in a batch; b is by default twice
    the stage's own images. In each batch the frozen ones stand first. Without frozen images both modes draw the same.
    """
    side, augmentation = synthetic.images.shape[-1], stream(config.seed, step, "inner-augmentation", attempt)
    rows = _batch_rows(config, synthetic, stream(config.seed, step, "inner-batches", attempt))
    batches = []
    for indices, frozen in itertools.islice(rows, config.mtt.syn_steps):
        drawn = dsa.draw(augmentation, config.augment.strategy, len(indices), side, config.augment.parameters)
        batches.append(metagrad.InnerBatch(indices, drawn, frozen))
    return MTTDraws((config.seed, step, attempt), tuple(batches))


def _batch_rows(config: Config, synthetic: SyntheticSet, order: torch.Generator) -> Iterator[tuple[Tensor, int]]:
    """The rows of batch after batch, int64 (b,), and how many of them, the first ones, are frozen."""
    count, own = len(synthetic.labels), int((synthetic.stages == synthetic.stages.max()).sum())
    per_class = count // (int(synthetic.labels.max()) + 1)
    fixed = torch.arange(count) % per_class < synthetic.frozen
    new_first = synthetic.frozen > 0 and config.stages.batch_mode == "new_first"
    earlier = torch.nonzero(fixed).squeeze(1)
    cut = torch.nonzero(~fixed).squeeze(1) if new_first else torch.arange(count)
    size = config.mtt.batch_syn or own * (2 if new_first else 1)
    while True:
        for chunk in reversed(torch.randperm(len(cut), generator=order).split(size)):
            rows = cut[chunk]
            if new_first:
                rows = torch.cat([earlier[torch.randperm(len(earlier), generator=order)[: size - len(rows)]], rows])
            held = fixed[rows]
            yield torch.cat([rows[held], rows[~held]]), int(held.sum())


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
        free = by_class(grad_images, self._resources.model.classes)[:, synthetic.frozen :].flatten(0, 1)
        return Update(loss.item(), free.cpu(), grad_step_size.cpu(), time.perf_counter() - started)

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
        return same_set and (kept.frozen, kept_draws.key) == (synthetic.frozen, draws.key)

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
