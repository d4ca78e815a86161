"""The numbers of a report as rows of text: headline, time, settings, environment, faults."""
# ruff: noqa: RUF001 (dashes, minus and multiplication signs are meant for the reader of the page)

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from raydd.config import Config, Execution, flatten, to_dict
from raydd.progressive import total_steps
from raydd.report.rundata import RunData


@dataclass(frozen=True)
class Card:
    """One number of the headline: what it is, the number, and a line below."""

    label: str
    value: str
    note: str


@dataclass(frozen=True)
class Setting:
    """One setting: its dotted name, its value, the default, and whether they differ."""

    name: str
    value: str
    default: str
    changed: bool


def status(run: RunData) -> str:
    """One phrase: finished, or how far the run is."""
    done = int(run.steps.step[-1]) + 1 if len(run.steps) else 0
    total, stages = total_steps(run.config), run.config.stages.count
    within = f" in {stages} stages" if stages > 1 else ""
    if run.result is not None and run.result["steps"] >= total:
        return f"finished after {run.result['steps']:,} steps{within}"
    return f"not finished: {done:,} of {total:,} steps{within} done"


def headline(run: RunData) -> list[Card]:
    """Accuracy of the synthetic images, that of random real images, and the gain; then size and time."""
    cards = []
    last = run.evaluations[-1] if run.evaluations else None
    if last is None:
        cards.append(Card("Test accuracy", "–", "not evaluated yet"))
    else:
        cards.append(Card("Test accuracy", spread(last), f"{last['nets']} networks from scratch, after {last['step']:,} steps"))
    if run.random is not None:
        cards.append(Card("Random real images", spread(run.random), f"the same number, {run.random['nets']} networks"))
    if last is not None and run.random is not None:
        gain = 100 * (last["accuracy_mean"] - run.random["accuracy_mean"])
        error = 100 * float(np.hypot(last["accuracy_std"], run.random["accuracy_std"]))
        cards.append(Card("Gain", f"{gain:+.1f}".replace("-", "−"), f"percentage points, ± {error:.1f}"))
    cards.append(_size(run))
    if run.result is not None:
        cards.append(Card("Time", duration(run.result["seconds"]), _pace(run)))
    elif len(run.steps):
        cards.append(Card("Time so far", duration(float(run.steps.seconds["total"].sum())), _pace(run)))
    return cards


def caution(run: RunData) -> str:
    """What to keep in mind about the accuracy: the best of many evaluations on test images flatters."""
    if len(run.evaluations) < 2:
        return ""
    best = max(run.evaluations, key=lambda record: record["accuracy_mean"])
    return (
        f"The headline is the last of {len(run.evaluations)} evaluations. The best of them, chosen on the test images and so "
        f"flattering, was {spread(best)} after {best['step']:,} steps."
    )


def time_rows(run: RunData) -> tuple[list[str], np.ndarray, list[list[str]]]:
    """Names and total seconds of the parts of the run, and table rows [part, total, share, median of a step, 90th percentile]."""
    parts = run.steps.seconds
    shown = {"score candidates": "score", "update": "update", "Ray and transfer": "transfer"}
    if run.steps.seconds["train"].any() or run.steps.seconds["prepare"].any():
        shown |= {"train networks": "train", "prepare networks": "prepare"}
    by_step = {name: parts[part] for name, part in shown.items()}
    by_step["other"] = np.maximum(parts["total"] - sum(by_step.values()), 0.0)
    records = [*run.evaluations, *([run.random] if run.random else [])]
    evaluation = float(sum(record.get("seconds") or 0.0 for record in records))
    names = [*by_step, "evaluation"]
    totals = np.array([*(values.sum() for values in by_step.values()), evaluation])
    whole = totals.sum() or 1.0
    rows = [
        [name, f"{total:,.1f} s", f"{total / whole:.1%}", *_typical(by_step.get(name))] for name, total in zip(names, totals, strict=True)
    ]
    rows.append(["all", f"{totals.sum():,.1f} s", "100.0%", *_typical(parts["total"])])
    return names, totals, rows


def settings(run: RunData) -> list[Setting]:
    """Every setting of the run in the order of its definition; those of execution, which do not decide the result, last."""
    rows = []
    for values, kind in ((run.config, Config), (run.execution, Execution)):
        defaults = flatten(to_dict(kind()))
        for name, value in flatten(to_dict(values)).items():
            rows.append(Setting(name, text(value), text(defaults[name]), value != defaults[name]))
    return rows


def environment(run: RunData) -> list[tuple[str, str]]:
    """What the run ran on, as (name, value); then one entry for each resumption."""
    rows = [(name, _value(value)) for name, value in run.environment.items() if name not in ("versions", "resumed")]
    rows += [(name, str(value)) for name, value in run.environment.get("versions", {}).items()]
    for entry in run.environment.get("resumed", []):
        changed = [f"{name} {value}" for name, value in entry.get("execution", {}).items() if value != _default_of(name)]
        where = f"{entry.get('started', '')} on {entry.get('host', '')}"
        rows.append((f"resumed after {entry['step']:,} steps", ", ".join([where, *changed])))
    if run.result is not None:
        rows.append(("sha-256 of the images", str(run.result["images_sha256"])))
    return rows


def faults(run: RunData) -> tuple[list[tuple[str, str]], list[list[str]]]:
    """Counts as (what, how often), and the log as rows [step, kind, text]."""
    steps = run.steps
    counts = [
        ("steps redrawn because nothing finite came out", int((steps.attempt > 0).sum())),
        ("steps skipped", int(steps.skipped.sum())),
        ("resumptions", len(run.environment.get("resumed", []))),
    ]
    kinds = [str(record.get("kind", "")) for record in run.faults]
    counts += [(kind, kinds.count(kind)) for kind in dict.fromkeys(kinds)]
    log = [[str(record.get("step", "")), str(record.get("kind", "")), str(record.get("text", ""))] for record in run.faults]
    return [(what, f"{count:,}") for what, count in counts], log


def spread(record: dict[str, Any]) -> str:
    """Accuracy as "45.1 ± 0.6 %" from an evaluation record, whose numbers are 0..1."""
    return f"{100 * record['accuracy_mean']:.1f} ± {100 * record['accuracy_std']:.1f} %"


def duration(seconds: float) -> str:
    """Seconds in the two largest units: "2 h 05 min", "3 min 20 s", "4.2 s"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60:,} h {minutes % 60:02} min"


def _size(run: RunData) -> Card:
    if run.artifact is None:
        return Card("Images per class", str(run.config.ipc), "no result file yet")
    images, classes = run.artifact.synthetic.images, len(run.artifact.classes)
    side = " × ".join(str(length) for length in images.shape[1:])
    return Card("Synthetic images", f"{len(images):,}", f"{classes} classes × {len(images) // max(classes, 1)}, each {side}")


def _pace(run: RunData) -> str:
    return f"{_milliseconds(float(np.median(run.steps.seconds['total'])))} a step (median)" if len(run.steps) else ""


def _typical(values: np.ndarray | None) -> list[str]:
    if values is None or not len(values):
        return ["–", "–"]
    return [_milliseconds(float(np.median(values))), _milliseconds(float(np.quantile(values, 0.9)))]


def _milliseconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"


def text(value: Any) -> str:
    """A setting's value as a page shows it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "–" if value is None or value == "" else f"{value:g}" if isinstance(value, float) else str(value)


def _value(value: Any) -> str:
    return ", ".join(map(str, value)) or "none" if isinstance(value, list) else text(value)


def _default_of(name: str) -> Any:
    known = {field.name: field.default for field in dataclasses.fields(Execution)}
    return known.get(name)
