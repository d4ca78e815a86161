"""Runs side by side: a row for those that differ in nothing but the seed. The ablation tables of both papers are such tables.

Source: the PDD paper, Tables 3 to 6; DynaDistill's Table 1.
"""
# ruff: noqa: RUF001 (dashes, minus and multiplication signs are meant for the reader of the page)

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from raydd.config import flatten, to_dict
from raydd.errors import ConfigError
from raydd.files import atomic_write_bytes
from raydd.report import tables
from raydd.report.rendering import Picture, render
from raydd.report.rundata import RunData, read_run
from raydd.report.stages import by_stage
from raydd.report.theme import Theme, panels, style

# What names a run, how often it looks, and where it stops to save, but not what it is.
_ASIDE = ("seed", "recipe", "checkpoint_every", "evaluation.every", "evaluation.at_end", "evaluation.nets")
_FEW = 4


@dataclass(frozen=True)
class Spread:
    """Accuracies (0..1) of n networks: mean, population standard deviation, and that of the means of the seeds."""

    mean: float
    std: float
    over_seeds: float
    n: int

    @property
    def text(self) -> str:
        """Such as "45.1 ± 0.6"; a dash for none."""
        return f"{100 * self.mean:.1f} ± {100 * self.std:.1f}" if self.n else "–"


@dataclass(frozen=True)
class Arm:
    """Runs that differ in nothing but the seed.

    settings   the settings in which the arms differ, as text, by their names
    seeds      of its runs; `runs` are their folders
    ipc        images per class, of all stages
    synthetic  networks trained on the images; `random` on as many random real ones, without any where n is 0
    stages     after each stage: (images per class so far, Spread); empty for one stage
    """

    settings: dict[str, str]
    seeds: list[int]
    runs: list[str]
    ipc: int
    synthetic: Spread
    random: Spread
    stages: list[tuple[int, Spread]]


def compare(paths: Sequence[Path | str]) -> list[Arm]:
    """The arms of these run folders, in the order in which they come first.

    Raises `ConfigError` for a folder that is no run or has no evaluation yet, for a run that is named twice, and for two runs of equal
    settings and seed; `CheckpointError` where records are damaged.
    """
    runs = [read_run(path) for path in paths]
    silent = [str(run.path) for run in runs if not run.evaluations]
    if silent:
        raise ConfigError([f"{path} has no evaluation yet, so there is nothing to compare. Finish it, or leave it out." for path in silent])
    settings = [_settings(run) for run in runs]
    names = [name for name in settings[0] if len({values[name] for values in settings}) > 1]
    groups: dict[tuple[str, ...], list[RunData]] = {}
    for run, values in zip(runs, settings, strict=True):
        groups.setdefault(tuple(values[name] for name in names), []).append(run)
    return [_arm(dict(zip(names, values, strict=True)), own) for values, own in groups.items()]


def gain(arm: Arm, first: Arm) -> str:
    """How far an arm is above the first one in percentage points, with the standard error of the difference of the two means.

    A single network has no deviation, so no error is given then.
    """
    if arm is first:
        return ""
    ours, theirs = arm.synthetic, first.synthetic
    points = f"{100 * (ours.mean - theirs.mean):+.1f}".replace("-", "−")
    if min(ours.n, theirs.n) < 2:
        return points
    return f"{points} ± {100 * np.hypot(ours.std / np.sqrt(ours.n), theirs.std / np.sqrt(theirs.n)):.1f}"


def rows(arms: Sequence[Arm]) -> tuple[list[str], list[list[str]]]:
    """The table as text: the names of its columns, and a row for each arm."""
    names = list(arms[0].settings)
    counts = max(len(arm.stages) for arm in arms)
    after = [f"after stage {stage}" for stage in range(1, counts)]
    found = []
    for arm in arms:
        earlier = [spread.text for _, spread in arm.stages[:-1]]
        cells = [
            *arm.settings.values(),
            str(len(arm.seeds)),
            str(arm.synthetic.n),
            str(arm.ipc),
            *earlier,
            *[""] * (len(after) - len(earlier)),
        ]
        over = f"{100 * arm.synthetic.over_seeds:.1f}" if len(arm.seeds) > 1 else "–"
        found.append([*cells, arm.synthetic.text, over, arm.random.text, gain(arm, arms[0])])
    columns = [*names, "seeds", "networks", "ipc in all", *after, "accuracy, %", "std over seeds", "random real, %", "above the first row"]
    return columns, found


def write_comparison(paths: Sequence[Path | str], out: Path | str) -> list[Arm]:
    """Write the table and a figure of these runs as one HTML page that opens without a network; returns the arms.

    Raises what `compare` raises, and `ResourceError` when the page cannot be written.
    """
    arms = compare(paths)
    columns, body = rows(arms)
    drawn = {"arms": Picture.of(lambda theme: draw(arms, theme), "Test accuracy of each row, with random real images beside it")}
    page = render("comparison.html", arms=arms, columns=columns, rows=body, pictures=drawn)
    atomic_write_bytes(Path(out), page.encode())
    return arms


def plain(arms: Sequence[Arm]) -> list[dict[str, Any]]:
    """The arms as values for JSON; accuracies are fractions."""
    return [asdict(arm) | {"stages": [{"ipc": ipc, **asdict(spread)} for ipc, spread in arm.stages]} for arm in arms]


def draw(arms: Sequence[Arm], theme: Theme) -> Figure:
    """Mean and standard deviation of each arm, with random real images of the same number beside it."""
    with style(theme):
        figure, (axes,) = panels(1, 1.2 + 0.42 * len(arms))
        axes.set_title("Test accuracy of networks trained from scratch")
        places = np.arange(len(arms))[::-1]
        for name, colour, shift in (("synthetic", theme.main, 0.0), ("random", theme.second, -0.22)):
            found = [(place, spread) for place, arm in zip(places, arms, strict=True) if (spread := getattr(arm, name)).n]
            if found:
                at, spreads = np.array([place for place, _ in found]) + shift, [spread for _, spread in found]
                words = {"synthetic": "synthetic images", "random": "random real images"}[name]
                errors = [spread.std for spread in spreads]
                axes.errorbar([s.mean for s in spreads], at, xerr=errors, color=colour, fmt="o", capsize=3, markersize=5, label=words)
        axes.set_yticks(places, [label(arm) for arm in arms])
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.legend()
    return figure


def label(arm: Arm) -> str:
    """A few words for an arm: the settings in which it differs, or its first run's folder where these are many."""
    words = [f"{name.split('.')[-1]} {value}" for name, value in arm.settings.items()]
    return ", ".join(words) if 0 < len(words) <= _FEW else Path(arm.runs[0]).name


def _settings(run: RunData) -> dict[str, str]:
    """Every setting that may tell arms apart, as text; a selection of real images counts as a method of its own."""
    values = {name: tables.text(value) for name, value in flatten(to_dict(run.config)).items() if name not in _ASIDE}
    return {"method": run.objective, **{name: value for name, value in values.items() if name != "method"}}


def _arm(settings: dict[str, str], runs: Sequence[RunData]) -> Arm:
    seeds = [run.config.seed for run in runs]
    for place, seed in enumerate(seeds):
        if seed in seeds[:place]:
            twice = f"{runs[seeds.index(seed)].path} and {runs[place].path}"
            raise ConfigError([f"{twice} have the same settings and --seed={seed}: a run counts once. Leave one of them out."])
    last = [run.evaluations[-1] for run in runs]
    random = [run.random for run in runs if run.random is not None]
    staged = [list(by_stage(record).values()) for record in last]
    deep = min(map(len, staged))
    return Arm(
        settings=settings,
        seeds=seeds,
        runs=[str(run.path) for run in runs],
        ipc=runs[0].config.ipc * runs[0].config.stages.count,
        synthetic=pooled(last),
        random=pooled(random),
        stages=[(own[0]["ipc"], pooled([{"nets": record["nets"], **row} for record, row in zip(last, own, strict=True)]))
                for own in zip(*(rows_[:deep] for rows_ in staged), strict=True)],
    )  # fmt: skip


def pooled(records: Sequence[dict[str, Any]]) -> Spread:
    """All networks of several evaluations together, each with `accuracy_mean`, `accuracy_std` (population) and `nets`."""
    if not records:
        return Spread(0.0, 0.0, 0.0, 0)
    mean, std, nets = (np.array([record[name] for record in records], dtype=float) for name in ("accuracy_mean", "accuracy_std", "nets"))
    whole = float((nets * mean).sum() / nets.sum())
    square = float((nets * (std**2 + (mean - whole) ** 2)).sum() / nets.sum())
    return Spread(whole, float(np.sqrt(square)), float(mean.std()), int(nets.sum()))
