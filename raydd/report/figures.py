"""The figures of a report: pure functions from arrays to a matplotlib figure. They accept empty arrays and single points.

A missing value is nan. Steps count from 0 in `loss` and `scores`, and are numbers of steps done in `accuracy`.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from raydd.report.theme import LIGHT, Theme, panels, style

_POINTS = 400


def running_median(x: np.ndarray, y: np.ndarray, window: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The median of `y` (n,) over a centred window of that many finite values, at no more than 400 places.

    The window is cut off at both ends; by default it holds a fortieth of the values, and at least 5. Returns (places, medians).
    """
    keep = np.isfinite(y)
    x, y = x[keep], y[keep]
    if not len(y):
        return x, y
    half = (window if window is not None else max(5, len(y) // 40)) // 2
    centres = np.unique(np.linspace(0, len(y) - 1, min(len(y), _POINTS)).astype(int))
    return x[centres], np.array([np.median(y[max(centre - half, 0) : centre + half + 1]) for centre in centres])


def loss(step: np.ndarray, value: np.ndarray, step_size: np.ndarray, theme: Theme = LIGHT, borders: Sequence[int] = ()) -> Figure:
    """Matching loss of the update and the learned step size over the steps, each (n,); `borders` are the first steps of later stages."""
    with style(theme):
        figure, (left, right) = panels(2, 3.3, (3, 2))
        left.set_title("Matching loss")
        marker = "o" if len(step) == 1 else ""
        left.plot(step, value, color=theme.main, alpha=0.28, linewidth=0.7, label="each step")
        left.plot(*running_median(step, value), color=theme.main, marker=marker, label="running median")
        right.set_title("Learned step size")
        right.plot(step, step_size, color=theme.third, marker=marker)
        right.ticklabel_format(axis="y", useOffset=False)
        for axes in (left, right):
            _borders(axes, borders, theme)
            _steps(axes)
        _legend(left)
    return figure


def accuracy(
    step: np.ndarray,
    mean: np.ndarray,
    std: np.ndarray,
    networks: list[np.ndarray],
    random: tuple[float, float] | None = None,
    theme: Theme = LIGHT,
    borders: Sequence[int] = (),
) -> Figure:
    """Test accuracy (0..1) of networks trained on the images, over the steps done.

    `mean`, `std` are (n,) over the networks, `networks[i]` holds the single accuracies, `random` is (mean, std) of random real images,
    `borders` are the steps done when later stages began.
    """
    with style(theme):
        figure, (axes,) = panels(1, 3.5)
        axes.set_title("Test accuracy of networks trained from scratch")
        if random is not None:
            axes.axhline(random[0], color=theme.second, linestyle="--", label="random real images, same number")
            axes.axhspan(random[0] - random[1], random[0] + random[1], color=theme.second, alpha=0.15, linewidth=0)
        if len(step) > 1:
            axes.fill_between(step, mean - std, mean + std, color=theme.main, alpha=0.18, linewidth=0)
            axes.plot(step, mean, color=theme.main, marker="o", markersize=4, label="synthetic images")
        else:
            axes.errorbar(step, mean, std, color=theme.main, fmt="o", capsize=4, label="synthetic images")
        places = np.repeat(step, [len(values) for values in networks]) if len(step) else step
        values = np.concatenate(networks) if networks else np.zeros(0)
        axes.plot(places, values, linestyle="", marker=".", markersize=4, color=theme.faint, alpha=0.7, label="each network")
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        _borders(axes, [border for border in borders if len(step) and step[0] <= border <= step[-1]], theme)
        _steps(axes, "steps done")
        _legend(axes)
    return figure


def stages(
    synthetic: tuple[np.ndarray, np.ndarray, np.ndarray],
    random: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None,
    full: tuple[float, str] | None = None,
    theme: Theme = LIGHT,
) -> Figure:
    """Test accuracy (0..1) after each stage against the images per class so far: (ipc, mean, std), each (P,), over the networks.

    `random` is the same for real images; `full` an accuracy with all real images, drawn as a line, and what it is of. As PDD's Figure 3.
    """
    with style(theme):
        figure, (axes,) = panels(1, 3.5)
        axes.set_title("Test accuracy after each stage")
        if full is not None:
            axes.axhline(full[0], color=theme.third, linestyle="--", label=full[1])
        if random is not None:
            axes.errorbar(*random, color=theme.second, fmt="o-", capsize=4, markersize=5, label="random real images")
        axes.errorbar(*synthetic, color=theme.main, fmt="o-", capsize=4, markersize=5, label="synthetic images")
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_xlabel("images per class so far")
        axes.set_xticks(synthetic[0])
        _legend(axes)
    return figure


def choices(
    expert: np.ndarray, epoch: np.ndarray, chosen: np.ndarray, experts: int, epochs: int, compared: bool, theme: Theme = LIGHT
) -> Figure:
    """How often each expert and each start epoch was a candidate, and how often it was chosen.

    `expert`, `epoch` are integers (n,), one for each candidate of each step; `chosen` bool (n,); `compared` is False when every
    step had one candidate, so that both counts would be the same.
    """
    with style(theme):
        figure, (left, right) = panels(2, 3.1, (3, 2))
        for axes, values, size, name in ((left, expert, experts, "Expert"), (right, epoch, epochs, "Start epoch")):
            axes.set_title(f"{name}: how often {'chosen' if compared else 'used'}")
            places = np.arange(size)
            if compared:
                axes.bar(places, np.bincount(values, minlength=size)[:size], color=theme.grid, width=0.86, label="candidate")
            counts = np.bincount(values[chosen], minlength=size)[:size]
            axes.bar(places, counts, color=theme.main, width=0.86 if not compared else 0.6, label="chosen" if compared else "used")
            axes.set_xlabel(name.lower())
            axes.set_ylabel("steps")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
            axes.grid(axis="x", visible=False)
            axes.margins(x=0.01)
        if compared:
            _legend(left)
    return figure


def map_columns(entries: int, experts: int, epochs: int) -> int:
    """Into how many groups of experts `choice_map` divides, so that a cell has about eight entries; 1 makes the map pointless."""
    return int(np.clip(entries / (8 * epochs), 1, experts))


def choice_map(
    expert: np.ndarray, epoch: np.ndarray, chosen: np.ndarray, experts: int, epochs: int, compared: bool, theme: Theme = LIGHT
) -> Figure:
    """Heat map over (expert, start epoch): the share of its candidacies that each pair won, or how often it was used with one candidate.

    Arguments as in `choices`. Experts are put together in groups (see `map_columns`). Pairs that were never candidates stay grey.
    """
    group = -(-experts // map_columns(len(expert), experts, epochs))
    columns = -(-experts // group)
    seen, won = np.zeros((epochs, columns)), np.zeros((epochs, columns))
    np.add.at(seen, (epoch, expert // group), 1)
    np.add.at(won, (epoch[chosen], expert[chosen] // group), 1)
    shown = np.divide(won, seen, out=np.full_like(won, np.nan), where=seen > 0) if compared else np.where(seen > 0, won, np.nan)
    with style(theme):
        figure, (axes,) = panels(1, min(4.2, 1.9 + 0.09 * epochs))
        axes.set_title("Share of its candidacies that each pair won" if compared else "How often each pair was used")
        axes.grid(visible=False)
        axes.set_facecolor(theme.grid)
        edges = np.minimum(np.arange(columns + 1) * group, experts) - 0.5, np.arange(epochs + 1) - 0.5
        top = 1.0 if compared else max(1.0, float(won.max(initial=0)))
        mesh = axes.pcolormesh(*edges, np.ma.masked_invalid(shown), cmap=theme.map, vmin=0, vmax=top)
        bar = figure.colorbar(mesh, ax=axes, pad=0.015, aspect=14, format=PercentFormatter(1.0) if compared else None)
        bar.outline.set_visible(False)
        bar.locator = MaxNLocator(nbins=4, integer=not compared)
        bar.update_ticks()
        axes.set_xlabel("expert" if group == 1 else f"expert, in groups of {group}")
        axes.set_ylabel("start epoch")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True))
    return figure


def scores(step: np.ndarray, score: np.ndarray, chosen: np.ndarray, entropy: np.ndarray, theme: Theme = LIGHT) -> Figure:
    """Spread of the candidates' scores and entropy of the choice over the steps.

    `score` (n, M), nan where there is none; `chosen` (n,) the score of the winner; `entropy` (n,) in nats, at most ln M.
    """
    most = score.shape[1] if score.ndim == 2 else 1
    rows = np.isfinite(score).any(axis=1) if most else np.zeros(0, bool)
    with style(theme):
        figure, (left, right) = panels(2, 3.3, (3, 2))
        left.set_title("Scores of the candidates")
        low, high = (running_median(step[rows], edge(score[rows], axis=1)) for edge in (np.nanmin, np.nanmax))
        left.fill_between(low[0], low[1], high[1], color=theme.main, alpha=0.2, linewidth=0, label="lowest to highest")
        left.plot(*running_median(step, chosen), color=theme.second, label="chosen")
        right.set_title("Entropy")
        right.plot(step, entropy, color=theme.third, alpha=0.28, linewidth=0.7)
        right.plot(*running_median(step, entropy), color=theme.third, label="running median")
        right.axhline(np.log(max(most, 1)), color=theme.faint, linestyle="--", linewidth=1.2, label=f"uniform (ln {most})")
        right.set_ylim(0, np.log(max(most, 2)) * 1.12)
        right.set_ylabel("nats")
        for axes in (left, right):
            _steps(axes)
            _legend(axes)
    return figure


def seconds(names: list[str], totals: np.ndarray, theme: Theme = LIGHT) -> Figure:
    """Where the time of the run went: one stacked bar of seconds (n,), in the order of `names` (no more than five)."""
    whole = float(totals.sum()) or 1.0
    with style(theme):
        figure, (axes,) = panels(1, 1.5)
        left = 0.0
        for name, total, colour in zip(names, totals, theme.parts):
            axes.barh([0], [total], left=left, color=colour, height=0.7, edgecolor=theme.page, label=f"{name} {total / whole:.0%}")
            left += float(total)
        axes.set_xlim(0, whole)
        axes.set_yticks([])
        axes.set_xlabel("seconds")
        axes.grid(visible=False)
        axes.spines["left"].set_visible(False)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(names), borderaxespad=0.2, handlelength=1, handleheight=1)
    return figure


def _steps(axes: Axes, label: str = "step") -> None:
    axes.set_xlabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.margins(x=0.02)


def _borders(axes: Axes, borders: Sequence[int], theme: Theme) -> None:
    """A dotted line where each later stage begins."""
    for border in borders:
        axes.axvline(border, color=theme.faint, linestyle=":", linewidth=1.2)


def _legend(axes: Axes) -> None:
    """To the right of the title, where it hides no data."""
    entries = len(axes.get_legend_handles_labels()[0])
    axes.legend(
        loc="lower right", bbox_to_anchor=(1, 1), ncols=entries, fontsize=8.5, columnspacing=1.2, handlelength=1.6, borderaxespad=0.3
    )
