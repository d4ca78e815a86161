"""The loop: draw candidates, score them, sample one, update the images with its exact gradient. No Ray, no files.

A step is one update of the images. Methods over expert trajectories choose at every step; methods whose networks train between
updates choose when a network lifetime begins (`raydd.slots`).

With several stages (`raydd.progressive`) the loop runs once for each, over the images of the stage beside the frozen ones.

Source: DynaDistill, Algorithm 1, over the distillation step of the base method (specs/mtt_pdd.md sections 2.2 and 4,
specs/idc_dream_pdd.md section 5). With one candidate nothing is scored, and the step is that of the base method bit for bit.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from raydd import optimise, progressive, selection, slots
from raydd.config import Config
from raydd.errors import DivergenceError
from raydd.executor import Executor
from raydd.methods import method
from raydd.methods.base import MethodEntry, Optimiser
from raydd.slots import Pool
from raydd.types import Candidate, SyntheticSet, Update


@dataclass(frozen=True)
class State:
    """Everything that the next step depends on besides the configuration: what a checkpoint holds.

    `step` is the next step to take; the velocities are the momentum of both optimisers; `skips` counts steps skipped in a row;
    `pending` is movement of the images that their next step begins with (`raydd.optimise`); `pool` the networks, where there are any.
    `synthetic` is what the stage moves, `earlier` the frozen images of the stages before it and `step_sizes` what these learned.
    """

    synthetic: SyntheticSet
    velocity_images: Tensor
    velocity_step_size: Tensor
    step: int = 0
    skips: int = 0
    pending: Tensor | None = None
    pool: Pool | None = None
    stage: int = 1
    earlier: SyntheticSet | None = None
    step_sizes: tuple[float, ...] = ()

    @classmethod
    def start(cls, synthetic: SyntheticSet) -> "State":
        """The state before the first step."""
        return cls(synthetic, torch.zeros_like(synthetic.images), torch.zeros_like(synthetic.step_size))

    @property
    def whole(self) -> SyntheticSet:
        """The images of all stages so far."""
        return progressive.joined(self.earlier, self.synthetic)

    @property
    def stage_step_sizes(self) -> tuple[float, ...]:
        """The learned step size of every stage so far, the present one included."""
        return (*self.step_sizes, self.synthetic.step_size.item())


Record = dict[str, Any]


def distill(
    config: Config,
    state: State,
    executor: Executor,
    on_step: Callable[[State, Record], None] = lambda state, record: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> State:
    """Run the remaining steps of the state's stage and return the last state.

    `on_step` sees every new state with the step's record (the line of `metrics.jsonl`). Raises `DivergenceError` after
    `guard.max_skips` skipped steps in a row, with the state unharmed.
    """
    entry = method(config.method)
    while not is_stage_done(config, state) and not should_stop():
        state, record = take_step(config, entry, state, executor)
        on_step(state, record)
        if state.skips >= config.guard.max_skips:
            rates = " or ".join(f"--{name}={value:g}" for name, value in entry.rates(config).items())
            raise DivergenceError(
                f"{state.skips} steps in a row gave no finite loss or no gradient, the last one step {state.step - 1}. "
                f"The images are those of the last good step. Lower {rates}, or start from real images (--init real)."
            )
    return state


def is_stage_done(config: Config, state: State) -> bool:
    """Whether all steps of the stage are taken, or all network lifetimes are over where the method counts these."""
    rules = method(config.method).networks
    iterations = rules.iterations(config) if rules else None
    lived = iterations is not None and state.pool is not None and state.pool.outer >= iterations
    return lived or state.step >= progressive.first_step(config, state.stage + 1)


def is_done(config: Config, state: State) -> bool:
    """Whether the last stage is done."""
    return state.stage >= config.stages.count and is_stage_done(config, state)


def next_stage(config: Config, state: State, block: SyntheticSet) -> State:
    """The state in which the stage after a finished one begins, with its `block` of new images; everything learned starts anew.

    Networks go on being numbered, so that no stage sees the fresh ones of another.
    """
    stage, step_sizes = state.stage + 1, (*state.step_sizes, state.synthetic.step_size.item())
    own, earlier = block, replace(state.whole, frozen=0)
    if config.stages.frozen_lr_scale:
        own, earlier = replace(progressive.joined(earlier, block), frozen=0), None
    pool = None
    if state.pool is not None:
        pool = replace(Pool.start(config, method(config.method).networks), births=state.pool.births)
    step = progressive.first_step(config, stage)
    return replace(State.start(own), step=step, pool=pool, stage=stage, earlier=earlier, step_sizes=step_sizes)


def take_step(config: Config, entry: MethodEntry, state: State, executor: Executor) -> tuple[State, Record]:
    """One distillation step, redrawn while nothing finite comes out and skipped when redrawing does not help."""
    started = time.perf_counter()
    state = _entered(config, entry, state, executor)
    failed = []
    for attempt in range(config.guard.redraws + 1):
        new, record = _attempt(config, entry, state, executor, attempt)
        if new is not None:
            break
        failed.append(record["candidates"])
    if failed:
        record["failed"] = failed
    record["seconds"]["total"] = time.perf_counter() - started
    if new is None:
        pool = state.pool and slots.dropped(config, entry.networks, state.pool, _tried(record))
        return replace(state, step=state.step + 1, skips=state.skips + 1, pool=pool), record
    return new, record


def _tried(record: Record) -> list[int]:
    """The slots of a failed attempt: the chosen one, or all where none could be chosen."""
    candidates, chosen = record["candidates"], record["chosen"]
    return [candidate["expert"] for candidate in (candidates if chosen is None else [candidates[chosen]])]


def _entered(config: Config, entry: MethodEntry, state: State, executor: Executor) -> State:
    """The state with every network that the step may need, and with the images as a lifetime begins with them."""
    if entry.networks is None:
        return state
    pool = slots.filled(state.pool or Pool.start(config, entry.networks), executor.begin)
    synthetic = state.synthetic if pool.inner else optimise.begun(state.synthetic, _optimiser(config, entry, state))
    return replace(state, synthetic=synthetic, pool=pool)


def _optimiser(config: Config, entry: MethodEntry, state: State) -> Optimiser:
    own = entry.optimiser(config, state.synthetic.images.shape[-1], state.pool.outer if state.pool else 0)
    return progressive.staged_optimiser(config, own, state.synthetic, state.stage)


def _attempt(config: Config, entry: MethodEntry, state: State, executor: Executor, attempt: int) -> tuple[State | None, Record]:
    own, step = optimise.seen(state.synthetic, state.pending), state.step
    synthetic = progressive.matched(config, state.earlier, own)
    draws = entry.draw(config, synthetic, step, attempt)
    clock = _Clock(executor)
    candidates = _candidates(config, entry, state, attempt, draws, clock)
    chances = [1.0]
    losses: list[float | None] = [None]
    if len(candidates) > 1:
        ranked = [_ranked(config, candidate) for candidate in candidates]
        # Attempts count from 0, so these are draws of their own.
        on = draws if config.selection.reuse_ranking_batch else entry.draw(config, synthetic, step, -1 - attempt)
        scores = clock.time("score", lambda: executor.score(synthetic, ranked, on))
        losses = [score.loss for score in scores]
        chances = selection.probabilities(config.selection, losses, progressive.progress(config, step), [score.size for score in scores])
    record = _record(config, state, candidates, losses, chances, attempt) | {"seconds": clock.seconds}
    if not any(chances):
        return None, record
    chosen = selection.choose(chances, config.seed, step, attempt)
    candidate = candidates[chosen]
    if entry.networks is not None:
        if entry.networks.prepares and slots.selects(config, state.pool):
            candidate = clock.time("prepare", lambda: executor.prepare([candidate], draws))[0]
        state = replace(state, pool=slots.taken(config, entry.networks, state.pool, candidate))
    update = clock.time("update", lambda: executor.update(synthetic, candidate, draws))
    new = apply_update(state, update, _optimiser(config, entry, state))
    record |= {"chosen": chosen, "loss": _finite(update.loss), "grad_norm": _finite(update.grad_images.contiguous().norm().item())}
    record["skipped"] = new is None
    if new is not None and entry.networks is not None:
        new = replace(new, pool=clock.time("train", lambda: _trained(config, entry, new, executor, draws)))
    return new, record


def _candidates(config: Config, entry: MethodEntry, state: State, attempt: int, draws: Any, clock: "_Clock") -> list[Candidate]:
    if entry.networks is None:
        offset = progressive.start_epoch_offset(config, state.stage)
        drawn = selection.draw_candidates(config, entry.start_epochs(config), state.step, attempt)
        return [replace(candidate, epoch=candidate.epoch + offset) for candidate in drawn]
    found = slots.candidates(config, state.pool, state.step, attempt)
    if len(found) > 1 and config.selection.rank_batch == "own":
        found = clock.time("prepare", lambda: clock.executor.prepare(found, draws))
    return found


def _ranked(config: Config, candidate: Candidate) -> Candidate:
    """A candidate as it is scored: what a network remembers of its own batch has no part in a comparison on a shared one."""
    if candidate.network is None or config.selection.rank_batch == "own":
        return candidate
    return replace(candidate, network=replace(candidate.network, memory={}))


def _trained(config: Config, entry: MethodEntry, state: State, executor: Executor, draws: Any) -> Pool:
    """The pool after the training that follows an update of the images."""
    pool = state.pool
    places = slots.trained(config, entry.networks, pool)
    work = [Candidate(index, slot, pool.networks[slot].age, pool.networks[slot]) for index, slot in enumerate(places)]
    synthetic = progressive.matched(config, state.earlier, state.synthetic)
    networks = executor.advance(synthetic, work, draws) if work else []
    return slots.advanced(config, entry.networks, pool, places, networks)


def _record(
    config: Config, state: State, candidates: list[Candidate], losses: list[float | None], chances: list[float], attempt: int
) -> Record:
    """What is known of a step before its update."""
    temperature, sign = selection.schedule(config.selection, progressive.progress(config, state.step))
    where = {"outer": state.pool.outer, "inner": state.pool.inner} if state.pool else {}
    return {
        "step": state.step,
        "stage": state.stage,
        **where,
        "attempt": attempt,
        "skipped": True,
        "step_size": state.synthetic.step_size.item(),
        "candidates": [
            {"expert": candidate.expert, "epoch": candidate.epoch, "score": _finite(loss), "probability": chance}
            for candidate, loss, chance in zip(candidates, losses, chances, strict=True)
        ],
        "entropy": selection.entropy(chances) if len(candidates) > 1 else None,
        "temperature": temperature,
        "sign": sign,
        "chosen": None,
        "loss": None,
        "grad_norm": None,
    }


def apply_update(state: State, update: Update, optimiser: Optimiser) -> State | None:
    """The state after a step of `raydd.optimise` on images and step size; None when anything is not finite.

    None too when no image has any gradient: pixels so large that the network no longer feels them have diverged as well.
    """
    synthetic = optimise.seen(state.synthetic, state.pending)
    classes = int(synthetic.labels.max()) + 1
    images, velocity, pending = optimise.moved(
        synthetic.images, state.velocity_images, update.grad_images, synthetic.labels, classes, optimiser
    )
    step_size, velocity_step_size = optimise.step_size_moved(synthetic, state.velocity_step_size, update, optimiser)
    if not (torch.isfinite(images).all() and torch.isfinite(step_size) and torch.isfinite(torch.tensor(update.loss))):
        return None
    if not update.grad_images.any():
        return None
    synthetic = replace(synthetic, images=images, step_size=step_size)
    return replace(
        state,
        synthetic=synthetic,
        velocity_images=velocity,
        velocity_step_size=velocity_step_size,
        step=state.step + 1,
        skips=0,
        pending=pending,
    )


def _finite(value: float | None) -> float | None:
    """JSON has no NaN: what is not a number is null."""
    return value if value is not None and math.isfinite(value) else None


class _Clock:
    """Wall seconds of the parts of a step; `transfer` is the share that the executor spent outside the method."""

    def __init__(self, executor: Executor):
        self.executor = executor
        self.seconds = {"score": 0.0, "prepare": 0.0, "update": 0.0, "train": 0.0, "transfer": 0.0, "total": 0.0}

    def time(self, part: str, work: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        result = work()
        transfer = self.executor.transfer_seconds
        self.seconds[part] += time.perf_counter() - started - transfer
        self.seconds["transfer"] += transfer
        return result
