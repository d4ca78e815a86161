"""`write_sweep_report`: read the sweep folder, draw, fill the template, write `report.html` into it."""

import io
import itertools
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from raydd.files import atomic_write_bytes
from raydd.report import sweep_figures as figures
from raydd.report import sweep_tables as tables
from raydd.report.gallery import gallery
from raydd.report.rendering import Draw, Picture, render
from raydd.report.sweep_figures import MOST, Cells, Line
from raydd.report.sweepdata import SweepData, read_sweep
from raydd.report.theme import png

_ALT = {
    "ranking": "Final test accuracy of every arm with its spread over seeds",
    "curves": "Test accuracy over steps for every arm, with the spread over seeds",
    "maps": "Accuracy over two factors",
    "scatter": "Accuracy over each setting that was drawn",
    "costs": "Steps to 95 percent of the peak, and what the target accuracy took",
}


def write_sweep_report(sweep_path: Path | str) -> Path:
    """Write `report.html` into a sweep folder and return the path of the page. It needs nothing from outside; only links to the reports
    of single runs lead to files beside it.

    Raises `ConfigError` when it is no sweep folder or the sweep has not ended, `CheckpointError` when sweep.json is damaged or of another
    format, `ResourceError` when the page cannot be written.
    """
    sweep = read_sweep(sweep_path)
    drawn = {name: Picture.of(draw, _ALT[name], _small) for name, draw in drawings(sweep).items()}
    page = sweep.path / "report.html"
    atomic_write_bytes(page, _page(sweep, drawn).encode())
    return page


def _small(figure: Figure) -> bytes:
    """A figure as a PNG file of 128 colours: a third of the bytes, of which a sweep's figures have many."""
    buffer = io.BytesIO()
    Image.open(io.BytesIO(png(figure))).convert("RGB").quantize(128).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def drawings(sweep: SweepData) -> dict[str, Draw]:
    """How to draw, in a theme, each figure that this sweep has data for."""
    found: dict[str, Draw] = {}
    arms = [arm for arm in sweep.found["arms"] if arm["accuracy_mean"] is not None][:MOST]
    names = [arm["arm"] for arm in arms]
    if arms:
        found["ranking"] = lambda theme: figures.ranking(names, *_ranked(sweep, arms), theme)
    lines = [_line(arm) for arm in arms if arm["curve"]]
    if any(len(line.step) > 1 for line in lines):
        found["curves"] = lambda theme: figures.curves(lines, theme)
    if (grid := maps(sweep.found)) is not None:
        found["maps"] = lambda theme: figures.heat_maps(*grid, theme)
    if sweep.found["drawn"] and len(arms) > 1:
        ranked = np.array([arm["accuracy_mean"] for arm in arms])
        drawn = {name: [arm["factors"][name] for arm in arms] for name in sweep.found["factors"]}
        found["scatter"] = lambda theme: figures.scatter(drawn, ranked, theme)
    if lines:
        found["costs"] = lambda theme: figures.costs(names, _costs(arms), theme)
    return found


def maps(found: dict[str, Any]) -> tuple[tuple[str, list[str]], tuple[str, list[str]], list[Cells]] | None:
    """Columns, rows and cells of the heat maps of a sweep with two or three factors; a map for each value of the third.

    None for other sweeps, and for drawn settings, which fill no grid. Arms that lack one of the factors (the baseline) are left out.
    """
    varied = [name for name, values in found["factors"].items() if len(values) > 1]
    if found["drawn"] or len(varied) not in (2, 3):
        return None
    arms = [arm for arm in found["arms"] if all(name in arm["factors"] for name in varied) and arm["accuracy_mean"] is not None]
    values = {name: [value for value in found["factors"][name] if any(arm["factors"][name] == value for arm in arms)] for name in varied}
    if any(len(values[name]) < 2 for name in varied[:2]):
        return None
    (columns, rows), panels = varied[:2], varied[2:]
    known = {tuple(arm["factors"][name] for name in varied): arm for arm in arms}
    cells = []
    for third in itertools.product(*(values[name] for name in panels)):
        found_here = [[known.get((column, row, *third)) for column in values[columns]] for row in values[rows]]
        mean, std = (np.array([[np.nan if arm is None else arm[name] for arm in row] for row in found_here]) for name in _SPREAD)
        cells.append(Cells(" ".join(f"{name} {_short(value)}" for name, value in zip(panels, third)), mean, std))
    axes = [(name, [_short(value) for value in values[name]]) for name in (columns, rows)]
    return axes[0], axes[1], cells


_SPREAD = ("accuracy_mean", "accuracy_std")


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _ranked(sweep: SweepData, arms: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray, list[np.ndarray], np.ndarray, float]:
    mean, std = (np.array([arm[name] for arm in arms]) for name in _SPREAD)
    own = [[t["accuracy_mean"] for t in sweep.found["trials"] if t["arm"] == arm["arm"] and t["accuracy_mean"] is not None] for arm in arms]
    random = np.array([_nan(arm["random_accuracy_mean"]) for arm in arms])
    base = _nan(sweep.baseline["accuracy_mean"]) if sweep.baseline else np.nan
    return mean, std, [np.array(values) for values in own], random, base


def _line(arm: dict[str, Any]) -> Line:
    step, mean, std = (np.array([point[name] for point in arm["curve"]]) for name in ("step", "accuracy", "accuracy_std"))
    return Line(arm["arm"], step, mean, std, arm["baseline"])


def _costs(arms: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    def to_target(name: str) -> np.ndarray:
        return np.array([_nan((arm["to_equal_accuracy"] or {}).get(name)) for arm in arms])

    return {
        "Steps to 95 % of peak": np.array([_nan(arm["steps_to_95"]) for arm in arms]),
        "Passes to target": to_target("passes"),
        "Device seconds to target": to_target("device_seconds"),
    }


def _nan(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _page(sweep: SweepData, drawn: dict[str, Picture]) -> str:
    rows = tables.trials(sweep)
    ranked = sum(arm["accuracy_mean"] is not None for arm in sweep.found["arms"])
    return render(
        "sweep.html",
        sweep=sweep,
        found=sweep.found,
        status=tables.status(sweep),
        cards=tables.headline(sweep),
        pictures=drawn,
        left_out=max(0, ranked - MOST),
        several=len(sweep.found["options"].get("seeds", [])) > 1,
        baseline=sweep.baseline,
        ranking=tables.ranking(sweep),
        costs=tables.costs(sweep),
        trial_rows=rows,
        trial_columns=tables.TRIAL_COLUMNS,
        failed=tables.failed(rows),
        best_link=_best_link(sweep),
        gallery=gallery(sweep.artifact) if sweep.artifact is not None else None,
        settings=tables.settings(sweep),
    )


def _best_link(sweep: SweepData) -> str:
    place = sweep.place(sweep.best) if sweep.best else None
    return tables.link(sweep.path, place) if place is not None and (place / "report.html").exists() else ""
