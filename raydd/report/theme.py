"""Colours and figure handling of the report: one light and one dark theme over the colour-blind safe palette of Okabe and Ito."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

WIDTH = 10.6
"""Inches of a figure that fills the page."""
DPI = 150


@dataclass(frozen=True)
class Theme:
    """Colours as #rrggbb. `main` draws what the figure is about, `second` what it is held against; `parts` colours shares of a whole."""

    name: str
    page: str
    text: str
    faint: str
    grid: str
    main: str
    second: str
    third: str
    parts: tuple[str, ...]
    map: str


LIGHT = Theme(
    "light", "#ffffff", "#24292f", "#6e7781", "#e3e6ea", "#0072b2", "#d55e00", "#009e73",
    ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#b4bac2"), "cividis",
)  # fmt: skip
DARK = Theme(
    "dark", "#171b21", "#dfe4ea", "#99a3ae", "#2f3741", "#56b4e9", "#f0883e", "#2fc49a",
    ("#56b4e9", "#e69f00", "#2fc49a", "#d992b8", "#5d6875"), "cividis",
)  # fmt: skip


@contextmanager
def style(theme: Theme) -> Iterator[None]:
    """Matplotlib's settings for figures made inside; nothing outside changes."""
    with matplotlib.rc_context(
        {
            "figure.facecolor": theme.page,
            "axes.facecolor": theme.page,
            "axes.edgecolor": theme.grid,
            "axes.labelcolor": theme.faint,
            "axes.titlecolor": theme.text,
            "axes.titlesize": 11,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.titlepad": 10,
            "axes.grid": True,
            "axes.axisbelow": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "grid.color": theme.grid,
            "grid.linewidth": 0.8,
            "text.color": theme.text,
            "xtick.color": theme.faint,
            "ytick.color": theme.faint,
            "font.size": 9.5,
            "legend.frameon": False,
            "legend.labelcolor": theme.text,
            "lines.linewidth": 1.8,
        }
    ):
        yield


def panels(columns: int, height: float, ratios: tuple[float, ...] | None = None) -> tuple[Figure, list[Axes]]:
    """A page-wide figure with `columns` axes side by side, `height` inches high. Drawn without pyplot, so without global state."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained", dpi=DPI)
    axes = figure.subplots(1, columns, squeeze=False, width_ratios=ratios)[0]
    return figure, list(axes)


def png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
