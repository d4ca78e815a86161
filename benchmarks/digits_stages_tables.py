"""How `digits_stages.py` shows its rows: Markdown beside the numbers of PDD's paper, and a figure.

A row has words, `mean` and `std` of accuracies (0..1) over `n` networks, and what the paper has in its place.
"""

import math
import statistics
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from raydd.continual_result import summary

PAPER = {
    "stages": {
        ("mtt", 1, "progressive"): "65.3", ("mtt", 2, "union"): "60.4", ("mtt", 2, "sequential"): "64.1", ("mtt", 2, "progressive"): "68.7",
        ("mtt", 3, "union"): "65.4", ("mtt", 3, "sequential"): "67.4", ("mtt", 3, "progressive"): "71.5",
        ("idc", 1, "progressive"): "67.5", ("idc", 2, "union"): "71.1", ("idc", 2, "sequential"): "68.5", ("idc", 2, "progressive"): "71.4",
        ("idc", 3, "union"): "74.2", ("idc", 3, "sequential"): "68.2", ("idc", 3, "progressive"): "74.0",
    },
    "ablation": {
        ("pdd", 1): "65.3", ("pdd", 2): "68.7", ("pdd", 3): "71.5", ("no_transition", 2): "66.0", ("no_transition", 3): "66.3",
        ("no_conditioning", 2): "67.9", ("no_conditioning", 3): "69.8",
    },
    "split": {1: "1 x 10: 65.3", 2: "2 x 5: 65.5", 3: "5 x 2: 66.9", 6: "10 x 1: 64.4"},
    "curriculum": {"pdd": "71.5", "bins": "71.6 (55.8 % of the images)"},
    "continual": {"PDD+MTT": "61.2, .., 45.1", "MTT": "55.7, .., 41.2", "herding": "48.4, .., 33.1"},
}  # fmt: skip
WORDS = {"pdd": "transition and conditioning", "no_transition": "no transition", "no_conditioning": "no conditioning"}
TITLES = {
    "stages": "Stages and training on them, two images per class each (Table 3)",
    "long": "Three stages, networks trained four times as long",
    "narrow": "MTT over the first two epochs of its experts alone, six images per class in all",
    "ablation": "Transition and conditioning, two images per class and stage (Table 4)",
    "split": "Six images per class in all (Table 5)",
    "curriculum": "Forgetting curriculum, 3 x 2 (Table 6)",
    "continual": "Continual learning, six images per class in all (Table 7)",
}
HEADS = {"mean": "accuracy, %", "std_over_seeds": "std over seeds", "paper": "paper, %"}
COLOURS = {"MTT": "#0072b2", "IDC": "#009e73", "random": "#888888"}


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean and population standard deviation."""
    if not values:
        return {"mean": math.nan, "std": math.nan, "n": 0}
    return {"mean": statistics.fmean(values), "std": statistics.pstdev(values), "n": len(values)}


def of_paper(base: str, number: str) -> str:
    """What the paper has in these tables is MTT's."""
    return number if base == "mtt" or not number else f"MTT {number}"


def learned(found: list[dict[str, Any]], source: str) -> dict[str, Any]:
    """The numbers of a row over all networks of all seeds."""
    singles = [(own["orders"][0]["test_images"], single["matrix"]) for own in found for single in own["sources"][source]["single"]]
    return phased(summary([matrix for _, matrix in singles], [images for images, _ in singles]))


def phased(found: dict[str, Any]) -> dict[str, Any]:
    """A row of the summary of continual learning."""
    after = {f"after phase {phase}": {"mean": mean, "std": std} for phase, (mean, std) in enumerate(_pairs(found, "seen"), start=1)}
    mean, std = _pairs(found, "forgetting")[-1]
    return {**after, "forgetting": {"mean": mean, "std": std}, "n": found["networks"]}


def _pairs(found: dict[str, Any], name: str) -> list[tuple[float, float]]:
    return list(zip(found[f"{name}_mean"], found[f"{name}_std"], strict=True))


def markdown(name: str, rows: list[dict[str, Any]]) -> str:
    """A table in Markdown: accuracies in percent with the deviation over all networks."""
    columns = [column for column in rows[0] if column != "std"]
    lines = [f"### {TITLES[name]}", "", f"| {' | '.join(HEADS.get(column, column) for column in columns)} |"]
    lines.append("|---" * len(columns) + "|")
    for row in rows:
        lines.append(f"| {' | '.join(_cell(row, column) for column in columns)} |")
    return "\n".join(lines) + "\n"


def _cell(row: dict[str, Any], column: str) -> str:
    value = row[column]
    if column == "mean":
        value = row
    if isinstance(value, dict):
        return f"{100 * value['mean']:.1f} ± {100 * value['std']:.1f}"
    return f"{100 * value:.1f}" if column == "std_over_seeds" else str(value)


def draw(tables: dict[str, list[dict[str, Any]]], full: float) -> Figure:
    """A panel for each table: means, and the deviation over all networks. Continual learning: the end of the protocol scratch."""
    columns = min(3, len(tables))
    figure = Figure(figsize=(5.5 * columns, 4 * -(-len(tables) // columns)), layout="constrained")
    panels = figure.subplots(-(-len(tables) // columns), columns, squeeze=False).flatten()
    for axes, (name, rows) in zip(panels, tables.items(), strict=False):
        shown = [row for row in reversed(rows) if row.get("protocol", "scratch") == "scratch"]
        for height, row in enumerate(shown):
            value = row if "mean" in row else [row[column] for column in row if column.startswith("after")][-1]
            real = row.get("training", "").startswith("random") or row.get("kept") in ("random", "herding")
            colour = COLOURS["random" if real else row["base"]]
            axes.errorbar(100 * value["mean"], height, xerr=100 * value["std"], color=colour, marker="o", markersize=4, capsize=2)
        axes.set_yticks(range(len(shown)), [_label(row) for row in shown], fontsize=7)
        axes.axvline(100 * full, color="black", linestyle=":", linewidth=1)
        axes.set(xlabel="test accuracy, %", title=TITLES[name].split(",")[0])
        axes.grid(axis="x", alpha=0.3)
    for axes in panels[len(tables) :]:
        axes.set_axis_off()
    figure.suptitle("digits; dotted: networks trained on all real images", fontsize=9)
    return figure


def _label(row: dict[str, Any]) -> str:
    """The words of a row before its numbers."""
    words = [str(row[name]) for name in ("base", "stages", "training", "variant", "stages x images", "real images", "kept") if name in row]
    return ", ".join(words)
