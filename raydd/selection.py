"""Which candidate updates the images: drawing M candidates, and choosing one of them by its score.

Source: DynaDistill, Algorithm 1; the readings of its ambiguous points are in specs/mtt_pdd.md section 4.2.
The paper prints exp(+loss) where its text says that better candidates are likelier; `sign` holds both, and 0 is the control.
"""

import math
from collections.abc import Sequence

import torch

from raydd.config import Config, SelectionConfig
from raydd.rng import stream
from raydd.types import Candidate


def draw_candidates(config: Config, start_epochs: int, step: int, attempt: int) -> list[Candidate]:
    """M different experts of the pool, each with its own start epoch in 0..start_epochs-1 (one for all with `share_start`).

    Without replacement, each expert comes once before any comes again; when M does not divide the pool, the rest of a pass
    sits it out. A redraw (attempt > 0) always draws with replacement.
    """
    selection, seed = config.selection, config.seed
    pool, count = selection.pool or config.experts.count, selection.candidates
    if selection.replacement or attempt:
        experts = torch.randperm(pool, generator=stream(seed, step, "experts", attempt))[:count]
    else:
        passes, place = divmod(step, pool // count)
        experts = torch.randperm(pool, generator=stream(seed, passes, "experts-pass"))[place * count : (place + 1) * count]
    epochs = torch.randint(start_epochs, (count,), generator=stream(seed, step, "start-epochs", attempt))
    if selection.share_start:
        epochs = epochs[:1].expand(count)
    return [Candidate(index, int(expert), int(epoch)) for index, (expert, epoch) in enumerate(zip(experts, epochs, strict=True))]


def probabilities(
    selection: SelectionConfig, losses: Sequence[float], progress: float, sizes: Sequence[float] | None = None
) -> list[float]:
    """Probability of each candidate, in float64; a non-finite loss has probability 0.

    `progress` runs from 0 (first step) to 1 (last step) and moves the schedules of `annealed`. `sizes` of what was matched divide the
    losses where `normalise` is relative. Returns zeros when no loss is finite.
    """
    if selection.normalise == "relative" and sizes is not None:
        losses = [loss / size if size > 0 else math.nan for loss, size in zip(losses, sizes, strict=True)]
    finite = [index for index, loss in enumerate(losses) if math.isfinite(loss)]
    result = [0.0] * len(losses)
    if not finite:
        return result
    weights = _weights(selection, [losses[index] for index in finite], progress)
    total = math.fsum(weights)
    for index, weight in zip(finite, weights, strict=True):
        result[index] = weight / total
    return result


def _weights(selection: SelectionConfig, losses: list[float], progress: float) -> list[float]:
    temperature, sign = schedule(selection, progress)
    if selection.policy == "uniform":
        return [1.0] * len(losses)
    if selection.policy == "greedy":
        best = max(range(len(losses)), key=lambda index: (sign * losses[index], -index))
        return [float(index == best) for index in range(len(losses))]
    signed = [sign * loss for loss in normalised(selection.normalise, losses)]
    # Differences first: a tiny temperature then ends in exp(-inf) = 0, never in infinity minus infinity.
    gaps = [value - max(signed) for value in signed]
    return [math.exp(gap * temperature if selection.temperature_place == "multiply" else gap / temperature) for gap in gaps]


def schedule(selection: SelectionConfig, progress: float) -> tuple[float, float]:
    """(temperature, sign) at `progress` in 0..1: constant, or for `annealed` geometric and linear towards their final values."""
    if selection.policy != "annealed":
        return selection.temperature, selection.sign
    final_sign = selection.sign if selection.final_sign is None else selection.final_sign
    temperature = selection.temperature * (selection.final_temperature / selection.temperature) ** progress
    return temperature, selection.sign + (final_sign - selection.sign) * progress


def normalised(rule: str, losses: list[float]) -> list[float]:
    """Losses divided by their mean (`mean`), with mean 0 and deviation 1 (`zscore`), or as they are (`none`, and `relative`, see above)."""
    mean = math.fsum(losses) / len(losses)
    if rule == "mean":
        return [loss / mean if mean > 0 else 0.0 for loss in losses]
    if rule == "zscore":
        deviation = math.sqrt(math.fsum((loss - mean) ** 2 for loss in losses) / len(losses))
        return [(loss - mean) / deviation if deviation > 0 else 0.0 for loss in losses]
    return list(losses)


def choose(chances: Sequence[float], seed: int, step: int, attempt: int) -> int:
    """Draw an index with these probabilities, in candidate order, from the step's own stream."""
    drawn = torch.rand((), dtype=torch.float64, generator=stream(seed, step, "choice", attempt)).item()
    cumulative = 0.0
    for index, chance in enumerate(chances):
        cumulative += chance
        if drawn < cumulative:
            return index
    return max(index for index, chance in enumerate(chances) if chance > 0)


def entropy(chances: Sequence[float]) -> float:
    """Entropy of the choice in nats: 0 when it is certain, log M when it is by lot."""
    return -math.fsum(chance * math.log(chance) for chance in chances if chance > 0) + 0.0
