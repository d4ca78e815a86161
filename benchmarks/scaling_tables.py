"""The tables of `scaling.py` for people, as Markdown."""

import statistics
from typing import Any


def print_tables(found: dict[str, Any]) -> None:
    """Steps and where they go, by case."""
    for name in ("idle", "calibration"):
        cost = found[name]["transport"]
        print(
            f"{name}: a round {1e3 * cost['round']:.2f} ms, a call {1e3 * cost['call']:.2f} ms, a MB {1e9 * cost['byte']:.2f} ms;", end=" "
        )
        print(f"median error {found[name]['median_error']:.0%}, largest {found[name]['largest_error']:.0%}")
    for case in dict.fromkeys(row["case"] for row in found["rows"]):
        rows = [row for row in found["rows"] if row["case"] == case]
        print(f"\n{case}\n")
        print("| M | K | n | path, ms | quartiles | predicted | gain | ideal | begin | score | update | driver | clock, ms | load |")
        print("|" + "---|" * 14)
        for row in rows:
            print(_line(row, rows))
    print_cells(found["rows"])
    errors = [abs(row["predicted_ms"] / row["path_ms"]["median"] - 1) for row in found["rows"] if row["workers"]]
    print(f"\npredicted against the path on Ray: median error {statistics.median(errors):.0%}, largest {max(errors):.0%} of {len(errors)}")


def print_cells(rows: list[dict[str, Any]]) -> None:
    """Measured and predicted path of every cell, in milliseconds."""
    print("\n| | M | one process | K = 1 | K = 2 | K = 3 |\n|---|---|---|---|---|---|")
    for case, candidates in dict.fromkeys((row["case"], row["candidates"]) for row in rows):
        own = [row for row in rows if (row["case"], row["candidates"]) == (case, candidates)]
        cells = [f"{row['path_ms']['median']:.0f} / {row['predicted_ms']:.0f}" for row in own]
        print("| " + " | ".join([case, str(candidates), *cells]) + " |")


def _line(row: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    (inline,) = (other for other in rows if other["candidates"] == row["candidates"] and other["workers"] == 0)
    path, parts, own = row["path_ms"], row["parts_ms"], row["predicted_parts_ms"]
    gain, best = inline["path_ms"]["median"] / path["median"], inline["path_ms"]["median"] / (own["score"] + own["update"])
    cells = [row["candidates"], row["workers"] or "-", row["n"], f"{path['median']:.0f}", f"{path['q25']:.0f} to {path['q75']:.0f}"]
    cells += [f"{row['predicted_ms']:.0f}", f"{gain:.2f}", f"{best:.2f}"]
    cells += [f"{parts[name]:.1f}" for name in ("begin", "score", "update", "driver")]
    return "| " + " | ".join(map(str, [*cells, f"{row['step_ms']['median']:.0f}", row["load"]])) + " |"
