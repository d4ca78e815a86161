"""The table of a sweep, for the terminal and as Markdown, from the content of sweep.json."""

from collections.abc import Callable
from typing import Any

from rich.table import Table

_COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "arm": lambda arm: arm["arm"] + (" (baseline)" if arm["baseline"] else ""),
    "test accuracy": lambda arm: _percent(arm["accuracy_mean"], arm["accuracy_std"]),
    "random images": lambda arm: _percent(arm["random_accuracy_mean"]),
    "gain, points": lambda arm: _gain(arm["gain"]),
    "trials": lambda arm: f"{arm['finished']} of {arm['trials']}",
    "steps to 95 %": lambda arm: _number(arm["steps_to_95"]),
    "device s": lambda arm: _number(arm["device_seconds"]),
    "passes": lambda arm: _number(arm["passes"]),
    "device s to target": lambda arm: _number((arm["to_equal_accuracy"] or {}).get("device_seconds")),
    "passes to target": lambda arm: _number((arm["to_equal_accuracy"] or {}).get("passes")),
}


def columns(found: dict[str, Any]) -> dict[str, Callable[[dict[str, Any]], str]]:
    """The columns of a sweep's table: those of every sweep, and one for each other network."""
    names = sorted({name for arm in found["arms"] for name in arm["models"]})
    own = {f"on {name}": lambda arm, name=name: _percent(arm["models"].get(name)) for name in names}
    return {**_COLUMNS, **own}


def table(found: dict[str, Any]) -> Table:
    """For the terminal, best arm first."""
    cells = columns(found)
    shown = Table(*cells, title=found["question"], caption=_caption(found), box=None, header_style="bold", title_justify="left")
    for arm in found["arms"]:
        shown.add_row(*(cell(arm) for cell in cells.values()))
    return shown


def markdown(found: dict[str, Any]) -> str:
    """The same as Markdown."""
    cells = columns(found)
    rows = [list(cells), ["---"] * len(cells)] + [[cell(arm) for cell in cells.values()] for arm in found["arms"]]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return f"# {found['question']}\n\n" + "\n".join(lines) + f"\n\n{_caption(found)}\n"


def _caption(found: dict[str, Any]) -> str:
    target = found["target_accuracy"]
    reach = f" Target: {target:.2%}, reached first by the mean over seeds." if target is not None else ""
    gain = " Gain: seed by seed; in how many seeds it is above zero." if any(arm["gain"] for arm in found["arms"]) else ""
    return f"Accuracy: mean and standard deviation over seeds; recipe {found['recipe']}.{gain}{reach}"


def _percent(value: float | None, spread: float | None = None) -> str:
    if value is None:
        return "-"
    return f"{value:.2%}" + (f" ± {spread:.2%}" if spread is not None else "")


def _gain(found: dict[str, Any] | None) -> str:
    """Over the baseline, or over the arm that is named."""
    if not found:
        return "-"
    return f"{100 * found['mean']:+.1f} ± {100 * found['std']:.1f} over {found['over']}, {found['better']} of {found['seeds']}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
