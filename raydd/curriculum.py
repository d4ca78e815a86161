"""Which real images each stage distils: from easy to hard, by how often a network in training forgets them. Pure; no files.

Stage i of PDD takes the images with scores in [width (i - 1), width i); those above the last stage's range are in no stage. Source: the
PDD paper, sections 4.2 and 5.4 (Table 6); specs/dc_dsa_dm_cafe_selection_cl.md section 9. The paper does not say what becomes of images
that are never right, nor of classes with few images in a range; here both are settings, and what was added is told.
"""

import bisect
import hashlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from raydd.config import Config, fingerprint
from raydd.coreset import Forgetting
from raydd.data import Dataset, ImageSet
from raydd.errors import ConfigError
from raydd.methods.base import DataFacts, method
from raydd.stage_config import curriculum_edges

_LISTED = 5


@dataclass(frozen=True)
class Widened:
    """A class whose range held `found` images, fewer than a stage needs, and easier ones made up for it: now `images`."""

    name: str
    found: int
    images: int


@dataclass(frozen=True)
class Part:
    """The images of one stage: rows of the training split, int64 ascending, and for which classes its range was widened."""

    rows: np.ndarray
    widened: tuple[Widened, ...] = ()


def stage_rows(config: Config, found: Forgetting, dataset: Dataset, stage: int) -> np.ndarray:
    """The rows of a stage, as `part` has them."""
    return part(config, found, dataset, stage).rows


def part(config: Config, found: Forgetting, dataset: Dataset, stage: int) -> Part:
    """What stage `stage` (from 1) uses of a training split with these scores.

    The ranges are half-open and disjoint. A class with fewer images in its range than `curriculum.least` gets those with the highest
    scores below it, all of equal score. Raises `ConfigError` naming every class that has none in the range (unless `least` is given, to
    fill it up), or too few from there down.
    """
    labels, scores, needed = dataset.train.labels, _scores(config, found), least(config, dataset)
    chosen, widened, problems = [], [], []
    for label, name in enumerate(dataset.classes):
        rows = np.flatnonzero((labels == label) & ~np.isnan(scores))
        keys = _ranks(scores[rows], found.loss.numpy()[rows]) if config.curriculum.quantiles else scores[rows]
        low, high = _range(config, stage, len(rows))
        inside = (keys >= low) & (keys < high)
        if stage == config.stages.count and not config.curriculum.quantiles:
            inside |= np.isinf(keys)
        easier = np.sort(keys[keys < low])[::-1]
        count, short = int(inside.sum()), needed - int(inside.sum())
        if short > len(easier) or (count == 0 and config.curriculum.least is None):
            problems.append(_lacking(config, stage, name, (low, high), count, len(easier), needed))
        elif short > 0:
            inside |= (keys >= easier[short - 1]) & (keys < low)
            widened.append(Widened(name, count, int(inside.sum())))
        chosen.append(rows[inside])
    if problems:
        raise ConfigError(_advised(config, problems))
    return Part(np.sort(np.concatenate(chosen)), tuple(widened))


def shares(config: Config, found: Forgetting, dataset: Dataset) -> list[tuple[float, float]]:
    """For every stage its share of all training images (0..1), and that of all images used up to it."""
    return _shares(_parts(config, found, dataset), len(dataset.train))


def summary(config: Config, found: Forgetting, dataset: Dataset) -> dict[str, Any]:
    """What a run tells of its curriculum, JSON-ready: `shares` as above, images never learnt, classes widened by stage, and `text`.

    Raises `ConfigError` for the first stage that is empty for a class.
    """
    parts = _parts(config, found, dataset)
    used = _shares(parts, len(dataset.train))
    return {
        "shares": [{"stage": stage, "share": own, "so_far": so_far} for stage, (own, so_far) in enumerate(used, start=1)],
        "never_learnt": found.never.double().mean().item(),
        "widened": [
            {"stage": stage, "class": one.name, "found": one.found, "images": one.images}
            for stage, own in enumerate(parts, start=1)
            for one in own.widened
        ],
        "text": "\n".join([_told(used), *(_told_widened(stage, own) for stage, own in enumerate(parts, start=1) if own.widened)]),
    }


def stage_dataset(dataset: Dataset, rows: np.ndarray) -> Dataset:
    """The data set with these rows (int64) of its training split alone; the test split, mean and standard deviation stay."""
    train = ImageSet(dataset.train.images[rows], dataset.train.labels[rows])
    mark = hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest()
    return replace(dataset, train=train, fingerprint=fingerprint({"data": dataset.fingerprint, "rows": mark}))


def least(config: Config, dataset: Dataset) -> int:
    """Images of each class that a stage needs: `curriculum.least`, else as many as method and `init` do, whichever asks for more.

    Raises `ConfigError` for a `curriculum.least` below that.
    """
    given, needed = config.curriculum.least, _needed(config, dataset)
    if given is not None and given < needed:
        raise ConfigError(
            [
                f"--curriculum.least={given}: --method {config.method} and --init {config.init} need {needed} images of each class; "
                "give as many."
            ]
        )
    return needed if given is None else given


def _needed(config: Config, dataset: Dataset) -> int:
    entry = method(config.method)
    factor = entry.decoding(config).factor
    start = {"noise": 1, "real": config.ipc}.get(config.init, config.ipc * factor**2)

    def refused(count: int) -> int:
        return len(entry.problems(config, DataFacts(dataset.classes, (count,) * len(dataset.classes), dataset.shape)))

    # What a method refuses of few images, it refuses of fewer too.
    counts = range(1, len(dataset.train) + 1)
    enough = bisect.bisect_left(counts, True, key=lambda count: refused(count) == refused(len(dataset.train)))
    return max(start, counts[enough])


def _scores(config: Config, found: Forgetting) -> np.ndarray:
    """Float64 (n,): counts; for never learnt images 0, infinity, or nan where they take no part."""
    never = {"first": 0.0, "last": np.inf, "exclude": np.nan}[config.curriculum.never_learnt]
    return np.where(found.never.numpy(), never, found.counts.numpy().astype(np.float64))


def _ranks(scores: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """The place of each image from easy to hard: by score, equal ones by mean loss, then by row."""
    ranks = np.empty(len(scores))
    ranks[np.lexsort((loss, scores))] = np.arange(len(scores))
    return ranks


def _range(config: Config, stage: int, images: int) -> tuple[float, float]:
    """The range of a stage: of ranks among the class's images with quantiles, else of scores. The upper end is left out."""
    own, count = config.curriculum, config.stages.count
    if own.quantiles:
        return images * (stage - 1) // count, images * stage // count
    if own.edges:
        edges = curriculum_edges(own.edges)
        return edges[stage - 1], edges[stage]
    return own.width * (stage - 1), own.width * stage


def _parts(config: Config, found: Forgetting, dataset: Dataset) -> list[Part]:
    return [part(config, found, dataset, stage) for stage in range(1, config.stages.count + 1)]


def _shares(parts: list[Part], images: int) -> list[tuple[float, float]]:
    used, found = np.zeros(images, bool), []
    for own in parts:
        used[own.rows] = True
        found.append((len(own.rows) / images, used.sum().item() / images))
    return found


def _told(used: list[tuple[float, float]]) -> str:
    parts = [f"stage 1 uses {used[0][0]:.1%} of the images"]
    parts += [f"stage {stage} {own:.1%} ({so_far:.1%} so far)" for stage, (own, so_far) in enumerate(used[1:], start=2)]
    return f"curriculum by forgetting: {', '.join(parts)}; {1 - used[-1][1]:.1%} are in no stage."


def _told_widened(stage: int, own: Part) -> str:
    listed = ", ".join(f"{one.name} ({one.found} to {one.images})" for one in own.widened[:_LISTED])
    more = f" and {len(own.widened) - _LISTED} more" if len(own.widened) > _LISTED else ""
    return f"curriculum: stage {stage} has too few images of some classes and takes easier ones too: {listed}{more}."


def _lacking(config: Config, stage: int, name: str, ends: tuple[float, float], count: int, easier: int, needed: int) -> str:
    scores = "" if config.curriculum.quantiles else f" with scores from {ends[0]:g} to below {ends[1]:g}"
    setting = _setting(config)
    return f"{setting}: stage {stage} has {count} images of class {name}{scores}, and {easier} easier ones; it needs {needed}."


def _setting(config: Config) -> str:
    """What decides the ranges."""
    own = config.curriculum
    if own.quantiles:
        return "--curriculum.quantiles"
    return f"--curriculum.edges={own.edges}" if own.edges else f"--curriculum.width={own.width:g}"


def _advised(config: Config, problems: list[str]) -> list[str]:
    """A screen of problems, and what to do about them."""
    more = [f"The same holds for {len(problems) - _LISTED} more classes."] if len(problems) > _LISTED else []
    ranges = "" if config.curriculum.quantiles else "change the ranges (--curriculum.width or .edges), use --curriculum.quantiles, "
    advice = f"Train the scores longer (--curriculum.epochs above {config.curriculum.epochs}), {ranges}lower --stages.count, --ipc or the "
    return [
        *problems[:_LISTED],
        *more,
        f"{advice}method's real batch, or fill up with easier images by --curriculum.least.",
    ]
