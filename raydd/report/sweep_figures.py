"""The figures of a sweep's report: pure functions from numbers to a matplotlib figure. Accuracies are 0..1; a missing value is nan."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from raydd.report.theme import DPI, LIGHT, WIDTH, Theme, panels, style

MOST = 24
"""Arms that a figure shows at most, the best ones."""
TOGETHER = 5
"""Curves that one panel holds at most; more get a panel each."""


@dataclass(frozen=True)
class Line:
    """An arm's curve: its name, steps (n,), mean and std (n,) over seeds, and whether it is the baseline."""

    name: str
    step: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    baseline: bool = False


@dataclass(frozen=True)
class Cells:
    """One heat map: its title, mean and std (rows, columns), nan where there is no arm."""

    title: str
    mean: np.ndarray
    std: np.ndarray


def ranking(
    names: Sequence[str],
    mean: np.ndarray,
    std: np.ndarray,
    seeds: Sequence[np.ndarray],
    random: np.ndarray,
    base: float,
    theme: Theme = LIGHT,
) -> Figure:
    """Final accuracy of n arms, best on top: mean and std over seeds (n,), each seed, and random real images (n,), nan where unknown.

    `base` is the accuracy of the baseline, nan without one.
    """
    with style(theme):
        figure, (axes,) = panels(1, 0.9 + 0.3 * max(2, len(names)))
        axes.set_title("Test accuracy")
        places = np.arange(len(names))
        if np.isfinite(base):
            axes.axvline(base, color=theme.second, linestyle="--", linewidth=1.2, label="baseline")
        axes.errorbar(
            mean, places, xerr=std, color=theme.main, fmt="o", capsize=3, markersize=6, linewidth=1.6, label="mean and std over seeds"
        )
        rows = np.repeat(places, [len(values) for values in seeds])
        values = np.concatenate(list(seeds)) if len(seeds) else np.zeros(0)
        axes.plot(values, rows, linestyle="", marker="|", markersize=9, color=theme.faint, label="each seed")
        if near(mean, random):
            axes.plot(random, places, linestyle="", marker="x", markersize=6, color=theme.third, label="random real images")
        axes.set_yticks(places, [short(name) for name in names])
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.grid(axis="y", visible=False)
        _legend(axes)
    return figure


def curves(lines: Sequence[Line], theme: Theme = LIGHT) -> Figure:
    """Accuracy over steps: in one panel for few arms, else a panel for each, with all others in grey behind it and the baseline dashed."""
    with style(theme):
        if len(lines) <= TOGETHER:
            figure, (axes,) = panels(1, 3.5 + 0.2 * (len(lines) // 2))
            colours = (
                theme.main,
                theme.second,
                theme.third,
                *(colour for colour in theme.parts if colour not in (theme.main, theme.third)),
            )
            for line, colour in zip(lines, colours):
                _curve(axes, line, colour)
            axes.set_title("Test accuracy over steps")
            axes.set_xlabel("steps done")
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
            axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
            axes.legend(loc="upper left", bbox_to_anchor=(0, -0.16), ncols=2, fontsize=8.5, handlelength=2.4, borderaxespad=0)
            return figure
        figure, axes_of = _small(len(lines), 4)
        for axes, line in zip(axes_of, lines):
            _alone(axes, line, lines, theme)
    return figure


def heat_maps(columns: tuple[str, Sequence[str]], rows: tuple[str, Sequence[str]], cells: Sequence[Cells], theme: Theme = LIGHT) -> Figure:
    """Accuracy over two factors, (name, values) each; one map for each value of a third. Cells without an arm stay grey."""
    values = np.concatenate([one.mean.ravel() for one in cells])
    known = values[np.isfinite(values)]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    with style(theme):
        figure, axes_of = panels(len(cells), 1.5 + 0.52 * len(rows[1]))
        for axes, one in zip(axes_of, cells):
            axes.set_title(one.title)
            axes.grid(visible=False)
            axes.set_facecolor(theme.grid)
            axes.invert_yaxis()  # the first value on top, as in the table
            mesh = axes.pcolormesh(np.ma.masked_invalid(one.mean), cmap=theme.map, vmin=low, vmax=high if high > low else low + 1e-3)
            for (row, column), mean in np.ndenumerate(one.mean):
                if np.isfinite(mean):
                    ink = "#ffffff" if mean < (low + high) / 2 else "#16191d"
                    text = f"{100 * mean:.1f}" + (f"\n± {100 * one.std[row, column]:.1f}" if one.std[row, column] > 0 else "")
                    axes.text(column + 0.5, row + 0.5, text, color=ink, ha="center", va="center", fontsize=9)
            axes.set_xticks(np.arange(len(columns[1])) + 0.5, [short(str(value), 14) for value in columns[1]])
            axes.set_yticks(np.arange(len(rows[1])) + 0.5, [short(str(value), 22) for value in rows[1]])
            axes.set_xlabel(columns[0])
            axes.set_ylabel(rows[0])
        bar = figure.colorbar(mesh, ax=axes_of, pad=0.015, aspect=14, format=PercentFormatter(1.0))
        bar.outline.set_visible(False)
    return figure


def scatter(settings: dict[str, list[float] | list[str]], accuracy: np.ndarray, theme: Theme = LIGHT) -> Figure:
    """Accuracy (n,) of drawn settings over each of them, a panel each; numbers that span decades on a logarithmic axis."""
    with style(theme):
        figure, axes_of = _small(len(settings), 3)
        for axes, (name, values) in zip(axes_of, settings.items()):
            numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
            places = np.array(values, dtype=float) if numbers else [str(value) for value in values]
            axes.plot(places, accuracy, linestyle="", marker="o", markersize=5, color=theme.main, alpha=0.8)
            if numbers and min(values) > 0 and max(values) > 20 * min(values):
                axes.set_xscale("log")
            axes.set_title(name, fontsize=9.5)
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    return figure


def costs(names: Sequence[str], columns: dict[str, np.ndarray], theme: Theme = LIGHT) -> Figure:
    """Bars for n arms, best on top: a panel for each of `columns`, (n,) with nan for what was never reached."""
    with style(theme):
        figure, axes_of = panels(len(columns), 0.9 + 0.27 * max(2, len(names)))
        places = np.arange(len(names))
        for index, (axes, (title, values)) in enumerate(zip(axes_of, columns.items())):
            axes.set_title(title)
            axes.barh(places, np.nan_to_num(values), color=theme.main, height=0.62)
            for place in places[~np.isfinite(values)]:
                axes.text(0, place, " never", color=theme.faint, va="center", fontsize=8.5)
            axes.set_yticks(places, [short(name) for name in names] if index == 0 else [])
            axes.set_ylim(len(names) - 0.5, -0.5)
            axes.set_xlim(0, 1.06 * max(np.nanmax(values, initial=0.0), 1.0))
            axes.xaxis.set_major_locator(MaxNLocator(nbins=4))
            axes.grid(axis="y", visible=False)
    return figure


def near(mean: np.ndarray, random: np.ndarray) -> bool:
    """Whether accuracies of random images (n,) can be drawn beside those of the arms (n,) without pressing these together."""
    known = random[np.isfinite(random)]
    return bool(len(known)) and float(mean.min() - known.min()) <= 3 * max(float(np.ptp(mean)), 0.01)


def short(name: str, most: int = 44, lines: int = 1) -> str:
    """A name that fits into lines of `most` characters beside a figure."""
    return "\n".join(textwrap.wrap(name, most, max_lines=lines, placeholder=" …")) or name[:most]


def _curve(axes: Axes, line: Line, colour: str) -> None:
    dashed = "--" if line.baseline else "-"
    if len(line.step) > 1:
        axes.fill_between(line.step, line.mean - line.std, line.mean + line.std, color=colour, alpha=0.16, linewidth=0)
    name = short(line.name) + (" (baseline)" if line.baseline else "")
    axes.plot(line.step, line.mean, dashed, color=colour, marker="o", markersize=3, label=name)


def _alone(axes: Axes, line: Line, lines: Sequence[Line], theme: Theme) -> None:
    """One arm before all others."""
    for other in lines:
        axes.plot(other.step, other.mean, color=theme.grid, linewidth=1.0, zorder=1)
    for base in (other for other in lines if other.baseline):
        axes.plot(base.step, base.mean, "--", color=theme.second, linewidth=1.2, zorder=2)
    axes.fill_between(line.step, line.mean - line.std, line.mean + line.std, color=theme.main, alpha=0.25, linewidth=0, zorder=3)
    axes.plot(line.step, line.mean, color=theme.main, marker="o", markersize=2, linewidth=1.5, zorder=4)
    axes.set_title(short(line.name, 30, 2), fontsize=8, pad=4)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    axes.tick_params(labelsize=7.5)


def _small(count: int, columns: int) -> tuple[Figure, list[Axes]]:
    """`count` small axes of the same accuracies, in rows of so many."""
    columns = max(1, min(columns, count))
    rows = -(-count // columns)
    figure = Figure(figsize=(WIDTH, 1.9 * rows + 0.5), layout="constrained", dpi=DPI)
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for spare in axes[count:]:
        spare.set_visible(False)
    return figure, list(axes[:count])


def _legend(axes: Axes) -> None:
    entries = len(axes.get_legend_handles_labels()[0])
    axes.legend(
        loc="lower right", bbox_to_anchor=(1, 1), ncols=entries, fontsize=8.5, columnspacing=1.2, handlelength=1.6, borderaxespad=0.3
    )
