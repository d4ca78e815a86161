"""The numbers of a sweep's report as rows of text: headline, ranking, costs, trials, settings."""
# ruff: noqa: RUF001 (dashes and minus signs are meant for the reader of the page)

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from raydd.report.sweepdata import SweepData
from raydd.report.tables import Card, duration

_NONE = "–"


@dataclass(frozen=True)
class TrialRow:
    """One trial as text; `link` leads to its run's own report, "" when there is none."""

    arm: str
    seed: str
    status: str
    reason: str
    link: str
    cells: list[str]


TRIAL_COLUMNS = ("accuracy", "steps", "steps to 95 %", "passes", "device s", "wall", "taken up again", "faults mended", "images")


def status(sweep: SweepData) -> str:
    """One phrase: how many trials came to an end, and whether anything is left."""
    trials = sweep.found["trials"]
    done = sum(trial["status"] in ("finished", "stopped") for trial in trials)
    return f"{done} of {len(trials)} trials done" + ("" if sweep.found["complete"] else ", not complete")


def headline(sweep: SweepData) -> list[Card]:
    """The best arm, its accuracy, the baseline and the gain over it; then size and time."""
    found, cards = sweep.found, []
    ranked = [arm for arm in found["arms"] if arm["accuracy_mean"] is not None]
    if not ranked:
        cards.append(Card("Best", _NONE, "no trial has an accuracy"))
    else:
        best = ranked[0]
        cards.append(Card("Best", accuracy(best), best["arm"]))
        if best["gain"]:
            cards.append(Card("Gain", gain(best), f"points over {best['gain']['over']}, seed by seed"))
        if sweep.baseline and sweep.baseline["accuracy_mean"] is not None:
            cards.append(Card("Baseline", accuracy(sweep.baseline), sweep.baseline["arm"]))
        if best["random_accuracy_mean"] is not None:
            cards.append(Card("Random real images", f"{100 * best['random_accuracy_mean']:.1f} %", "as many as in the best arm"))
    seeds = sorted({trial["seed"] for trial in found["trials"]})
    of = f"{len(found['arms'])} arms, {len(seeds)} seed{'' if len(seeds) == 1 else 's'}"
    seconds = sum(trial["wall_seconds"] for trial in found["trials"])
    cards.append(Card("Trials", str(len(found["trials"])), f"{of}; {duration(seconds)} one after another"))
    return cards


def accuracy(record: dict[str, Any]) -> str:
    """Mean and standard deviation in percent, of an arm with one seed without the latter; a dash when there is none."""
    if record["accuracy_mean"] is None:
        return _NONE
    if record.get("seeds") == 1:
        return _percent(record["accuracy_mean"])
    return f"{100 * record['accuracy_mean']:.1f} ± {100 * record['accuracy_std']:.1f} %"


def gain(arm: dict[str, Any]) -> str:
    """The gain over the arm that it is compared with, in percentage points with its spread over seeds."""
    told = arm["gain"]
    if not told:
        return _NONE
    return _points(told["mean"]) + (f" ± {100 * told['std']:.1f}" if told["seeds"] > 1 else "")


def ranking(sweep: SweepData) -> tuple[list[str], list[list[str]]]:
    """Columns and rows, best arm first. Columns that would be empty for all are left out."""
    arms = sweep.found["arms"]
    columns: dict[str, list[str]] = {
        "": [str(arm["rank"]) for arm in arms],
        "arm": [arm["arm"] + (" (baseline)" if arm["baseline"] else "") for arm in arms],
        "accuracy": [accuracy(arm) for arm in arms],
        "random images": [_percent(arm["random_accuracy_mean"]) for arm in arms],
        "gain over random images": [_over_random(arm) for arm in arms],
        **_gains(arms),
        "seeds better": [f"{arm['gain']['better']} of {arm['gain']['seeds']}" if arm["gain"] else _NONE for arm in arms],
    }
    for name in sorted({name for arm in arms for name in arm["models"]}):
        columns[f"on {name}"] = [_percent(arm["models"].get(name)) for arm in arms]
    columns["finished"] = [f"{arm['finished']} of {arm['trials']}" for arm in arms]
    kept = {name: cells for name, cells in columns.items() if any(cell != _NONE for cell in cells)}
    return list(kept), [list(row) for row in zip(*kept.values())]


def _gains(arms: list[dict[str, Any]]) -> dict[str, list[str]]:
    """The column of gains; with another that names what they are over, where that is not the same for all."""
    over = list(dict.fromkeys(arm["gain"]["over"] for arm in arms if arm["gain"]))
    gains = [gain(arm) for arm in arms]
    if len(over) == 1:
        return {f"gain over {over[0]}": gains}
    return {"gain": gains, "over": [arm["gain"]["over"] if arm["gain"] else _NONE for arm in arms]}


def costs(sweep: SweepData) -> tuple[list[str], list[list[str]]]:
    """What each arm's runs took, to 95 % of their own peak and to the accuracy that all are asked for; means over seeds."""
    columns = ["arm", "steps to 95 % of peak", "steps to target", "passes to target", "device s to target", "passes", "device s", "wall"]
    rows = []
    for arm in sweep.found["arms"]:
        target = arm["to_equal_accuracy"]
        reached = [_number(target[name]) for name in ("step", "passes", "device_seconds")] if target else ["never"] * 3
        if not arm["curve"]:
            reached = [_NONE] * 3
        wall = _NONE if arm["wall_seconds"] is None else duration(arm["wall_seconds"])
        own = [_number(arm[name]) for name in ("passes", "device_seconds")]
        rows.append([arm["arm"], _number(arm["steps_to_95"]), *reached, *own, wall])
    return columns, rows


def trials(sweep: SweepData) -> list[TrialRow]:
    """Every trial."""
    return [_trial(sweep, trial) for trial in sweep.found["trials"]]


def failed(rows: list[TrialRow]) -> list[TrialRow]:
    """The trials that did not finish: failed, interrupted, never started, or ended by the scheduler."""
    return [row for row in rows if row.status != "finished"]


def _trial(sweep: SweepData, trial: dict[str, Any]) -> TrialRow:
    sha = trial["images_sha256"]
    cells = [
        accuracy(trial), f"{trial['steps']:,}", _number(trial["steps_to_95"]), _number(trial["passes"]), _number(trial["device_seconds"]),
        duration(trial["wall_seconds"]), str(trial["resumed"]), str(trial["faults"]), sha[:8] if sha else _NONE,
    ]  # fmt: skip
    place = sweep.place(trial)
    has = place is not None and (place / "report.html").exists()
    return TrialRow(trial["arm"], str(trial["seed"]), trial["status"], trial["reason"], link(sweep.path, place) if has else "", cells)


def link(folder: Path, place: Path) -> str:
    """The address of a run's report as seen from the page."""
    return quote(str(place.relative_to(folder) / "report.html")) if place.is_relative_to(folder) else (place / "report.html").as_uri()


def settings(sweep: SweepData) -> list[tuple[str, str]]:
    """What was asked for: recipe, what differs from it in all arms, seeds, and who ran it."""
    found = sweep.found
    options, environment = found["options"], found["environment"]
    rows = [("recipe", found["recipe"])]
    rows += [(name, _text(value)) for name, value in options.get("settings", {}).items()]
    rows += [(f"varied: {name}", ", ".join(_text(value) for value in values[:12])) for name, values in found["factors"].items()]
    rows.append(("seeds", ", ".join(map(str, options.get("seeds", [])))))
    execution = options.get("execution", {})
    for name, value in (("scheduler", options.get("scheduler")), ("workers of a trial", execution.get("workers"))):
        rows.append((name, "by candidates and devices" if value is None else str(value)))
    rows += [("threads of a worker", str(execution.get("threads", _NONE))), ("device", str(execution.get("device", _NONE)))]
    rows.append(("command", str(environment.get("command", _NONE))))
    rows += [(name, _text(environment[name])) for name in ("platform", "cpus", "gpus", "commit") if name in environment]
    rows += list(environment.get("versions", {}).items())
    return [(name, value) for name, value in rows if value != ""]


def _over_random(arm: dict[str, Any]) -> str:
    if arm["accuracy_mean"] is None or arm["random_accuracy_mean"] is None:
        return _NONE
    return _points(arm["accuracy_mean"] - arm["random_accuracy_mean"])


def _points(difference: float) -> str:
    return f"{100 * difference:+.1f}".replace("-", "−")


def _percent(value: float | None) -> str:
    return _NONE if value is None else f"{100 * value:.1f} %"


def _number(value: float | None) -> str:
    return _NONE if value is None else f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_text, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else _NONE if value is None else str(value)
