"""The loop: draw candidates, score them, sample one, update the images with its exact gradient. No Ray, no files.

Source: DynaDistill, Algorithm 1, over the distillation step of the base method (specs/mtt_pdd.md sections 2.2 and 4).
With one candidate nothing is scored, and the step is that of the base method bit for bit.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from raydd import selection
from raydd.config import Config
from raydd.errors import DivergenceError
from raydd.executor import Executor
from raydd.methods import method
from raydd.methods.base import MethodEntry, Optimiser
from raydd.types import SyntheticSet, Update


@dataclass(frozen=True)
class State:
    """Everything that the next step depends on besides the configuration: what a checkpoint holds.

    `step` is the next step to take; the velocities are the momentum of both optimisers; `skips` counts steps skipped in a row.
    """

    synthetic: SyntheticSet
    velocity_images: Tensor
    velocity_step_size: Tensor
    step: int = 0
    skips: int = 0

    @classmethod
    def start(cls, synthetic: SyntheticSet) -> "State":
        """The state before the first step."""
        return cls(synthetic, torch.zeros_like(synthetic.images), torch.zeros_like(synthetic.step_size))


Record = dict[str, Any]


def distill(
    config: Config,
    state: State,
    executor: Executor,
    on_step: Callable[[State, Record], None] = lambda state, record: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> State:
    """Run the remaining steps and return the last state.

    `on_step` sees every new state with the step's record (the line of `metrics.jsonl`). Raises `DivergenceError` after
    `guard.max_skips` skipped steps in a row, with the state unharmed.
    """
    entry = method(config.method)
    while state.step < config.steps and not should_stop():
        state, record = take_step(config, entry, state, executor)
        on_step(state, record)
        if state.skips >= config.guard.max_skips:
            raise DivergenceError(
                f"{state.skips} steps in a row gave no finite loss or no gradient, the last one step {state.step - 1}. "
                f"The images are those of the last good step. Lower {_rates(config, entry)}, or start from real images (--init real)."
            )
    return state


def _rates(config: Config, entry: MethodEntry) -> str:
    optimiser, start = entry.optimiser(config), entry.step_size(config)
    values = (("lr_img", optimiser.lr_images), ("lr_lr", optimiser.lr_step_size), ("lr_init", start))
    return " or ".join(f"--{config.method}.{name}={value:g}" for name, value in values)


def take_step(config: Config, entry: MethodEntry, state: State, executor: Executor) -> tuple[State, Record]:
    """One distillation step, redrawn while nothing finite comes out and skipped when redrawing does not help."""
    started = time.perf_counter()
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
        return replace(state, step=state.step + 1, skips=state.skips + 1), record
    return new, record


def _attempt(config: Config, entry: MethodEntry, state: State, executor: Executor, attempt: int) -> tuple[State | None, Record]:
    synthetic, step = state.synthetic, state.step
    candidates = selection.draw_candidates(config, entry.start_epochs(config), step, attempt)
    draws = entry.draw(config, len(synthetic.images), synthetic.images.shape[-1], step, attempt)
    clock, progress = _Clock(executor), step / max(config.steps - 1, 1)
    chances = [1.0]
    losses: list[float | None] = [None]
    if len(candidates) > 1:
        losses = [score.loss for score in clock.time("score", lambda: executor.score(synthetic, candidates, draws))]
        chances = selection.probabilities(config.selection, losses, progress)
    temperature, sign = selection.schedule(config.selection, progress)
    record = {
        "step": step,
        "attempt": attempt,
        "skipped": True,
        "step_size": synthetic.step_size.item(),
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
        "seconds": clock.seconds,
    }
    if not any(chances):
        return None, record
    chosen = selection.choose(chances, config.seed, step, attempt)
    update = clock.time("update", lambda: executor.update(synthetic, candidates[chosen], draws))
    new = apply_update(state, update, entry.optimiser(config))
    record |= {"chosen": chosen, "loss": _finite(update.loss), "grad_norm": _finite(update.grad_images.norm().item())}
    record["skipped"] = new is None
    return new, record


def apply_update(state: State, update: Update, optimiser: Optimiser) -> State | None:
    """SGD with momentum on images and step size (torch's rule, no dampening); None when anything is not finite.

    None too when no image has any gradient: pixels so large that the network no longer feels them have diverged as well.
    A step size that would fall below its floor stays there and loses its momentum, so that it can rise again.
    """
    velocity_images = optimiser.momentum * state.velocity_images + update.grad_images
    velocity_step_size = optimiser.momentum * state.velocity_step_size + update.grad_step_size
    images = state.synthetic.images - optimiser.lr_images * velocity_images
    step_size = state.synthetic.step_size - optimiser.lr_step_size * velocity_step_size
    if not (torch.isfinite(images).all() and torch.isfinite(step_size) and torch.isfinite(torch.tensor(update.loss))):
        return None
    if not update.grad_images.any():
        return None
    if step_size < optimiser.min_step_size:
        step_size, velocity_step_size = torch.full_like(step_size, optimiser.min_step_size), torch.zeros_like(velocity_step_size)
    synthetic = replace(state.synthetic, images=images, step_size=step_size)
    return State(synthetic, velocity_images, velocity_step_size, state.step + 1)


def _finite(value: float | None) -> float | None:
    """JSON has no NaN: what is not a number is null."""
    return value if value is not None and math.isfinite(value) else None


class _Clock:
    """Wall seconds of the parts of a step; `transfer` is the share that the executor spent outside the method."""

    def __init__(self, executor: Executor):
        self._executor = executor
        self.seconds = {"score": 0.0, "update": 0.0, "transfer": 0.0, "total": 0.0}

    def time(self, part: str, work: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        result = work()
        transfer = self._executor.transfer_seconds
        self.seconds[part] += time.perf_counter() - started - transfer
        self.seconds["transfer"] += transfer
        return result
