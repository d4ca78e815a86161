"""What came of a sweep, read from its run folders: `sweep.json`, for people the table, and the best settings as a recipe.

SWEEP/sweep.json, format 2. Accuracies are fractions, times seconds, folders relative to SWEEP where they lie in it.

    format, sweep (name), question, recipe, metric ("accuracy"), created (UTC), complete (whether nothing is left to do)
    options      the command line; environment: versions and machine
    factors      {short name: [its values in order]}: what varies; two of them make a heat map
    drawn        whether a searcher drew the settings, so that each arm has values of its own
    target_accuracy   what `to_equal_accuracy` asks for: the baseline arm's peak, without a baseline the lowest peak of all arms
    arms         best first: rank, arm (name), factors, settings, recipe, baseline, against (the arm to compare with, "" for the baseline),
                 trials, finished, seeds (numbers; seeds are those with an accuracy), accuracy_mean, accuracy_std (over seeds),
                 gain {over, mean, std, better, seeds} (differences seed by seed, in how many seeds the arm is better) or null,
                 random_accuracy_mean, models {network: accuracy},
                 peak_accuracy, steps_to_95, device_seconds, passes, wall_seconds (means over seeds), curve (mean over seeds,
                 accuracy_std over seeds), to_equal_accuracy {step, device_seconds, passes} or null
    trials       arm, seed, factors, settings, recipe, status, reason, run (folder), steps, curve [{step, accuracy, accuracy_std,
                 device_seconds, passes}], accuracy_mean, accuracy_std (over networks), random_accuracy_mean, models, peak_accuracy,
                 steps_to_95, device_seconds, passes, wall_seconds, images_sha256, workers, resumed (times), faults (mended),
                 forks [{run, step, changed}]
    best         null, or {arm, recipe, accuracy_mean, config (all settings, nested), file ("best.toml")}

The status of a trial is `finished`; `stopped` (by the scheduler, being behind); `interrupted` (it can be resumed); `failed`; or
`never started`. All but `finished` have a reason. The accuracy of a trial that has not finished is that of its last evaluation.
"device_seconds" are seconds of steps times the workers of the trial; "passes" count matching losses, of scored candidates and updates.
"""

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from raydd.actors.fork import line
from raydd.actors.trial import ARCHITECTURES, TrialPlan, run_name
from raydd.actors.trial_reports import Cost
from raydd.config import Config, to_dict
from raydd.environment import environment
from raydd.errors import RayddError
from raydd.files import atomic_write_bytes, atomic_write_json, read_json, read_lines
from raydd.places import working_folder
from raydd.progressive import total_steps
from raydd.runfolder import RunFolder
from sweeping import measures
from sweeping.question import Arm, Question

FORMAT = 2
_OF_ARM = ("factors", "settings", "recipe", "baseline", "against")
STOPPED = "stopped.json"
"""In a run folder: why a scheduler ended the trial."""


@dataclass(frozen=True)
class Order:
    """A trial that was to be run: its arm and seed, what Tune was given, and its run folder as far as it is known.

    failure  what the trial or Tune said of it last; "" when nothing
    """

    arm: Arm
    seed: int
    settings: dict[str, Any]
    run: Path | None
    failure: str = ""
    factors: dict[str, Any] = field(default_factory=dict)


def order_for(plan: TrialPlan, arm: Arm, seed: int) -> tuple[dict[str, Any], Order]:
    """What Tune is given for an arm and a seed, and the same for the result."""
    given = {"arm": arm.name, "recipe": arm.recipe, "seed": seed, "settings": arm.settings}
    run = working_folder(plan.runs) / run_name(given, plan.config(given))
    return given, Order(arm, seed, arm.settings, run, factors=arm.factors)


def is_finished(order: Order, config: Config) -> bool:
    """Whether a run is complete with exactly these settings."""
    try:
        if order.run is None or not read_json(order.run / "result.json").get("complete"):
            return False
        return RunFolder.view(order.run).settings()[0] == config
    except RayddError:
        return False


def trial_record(order: Order, folder: Path, without: str) -> dict[str, Any]:
    """The entry of a trial in sweep.json; `without` is the reason of those that never started."""
    record = {
        "arm": order.arm.name, "seed": order.seed, "factors": order.factors, "settings": order.settings, "recipe": order.arm.recipe,
        "status": "never started", "reason": order.failure or without, "run": None, "steps": 0, "curve": [], "accuracy_mean": None,
        "accuracy_std": None, "random_accuracy_mean": None, "models": {}, "peak_accuracy": None, "steps_to_95": None,
        "device_seconds": 0.0, "passes": 0, "wall_seconds": 0.0, "images_sha256": None, "workers": 0, "resumed": 0, "faults": 0,
        "forks": [],
    }  # fmt: skip
    if order.run is None or not (order.run / "config.json").exists():
        return record | ({"status": "failed"} if order.failure else {})
    try:
        return record | {"reason": ""} | _of_run(order, folder)
    except RayddError as error:
        return record | {"status": "failed", "reason": str(error)}


def _of_run(order: Order, folder: Path) -> dict[str, Any]:
    """What the run folder says of a trial."""
    run = RunFolder.view(order.run)
    execution = run.settings()[1]
    result = read_json(run.result) if run.result.exists() else {}
    workers = execution.workers or 0
    curve, cost = curve_of(run, workers)
    final = result.get("evaluation") or {}
    last = curve[-1] if curve else {}
    models = read_json(run.path / ARCHITECTURES)["models"] if (run.path / ARCHITECTURES).exists() else {}
    faults = read_lines(run.faults)
    past = read_json(run.path / "environment.json").get("resumed", [])
    return {
        **_status(order, run, result),
        "run": str(run.path.relative_to(folder)) if run.path.is_relative_to(folder) else str(run.path),
        "steps": max(result.get("steps", 0), cost.steps),
        "curve": curve,
        "accuracy_mean": final.get("accuracy_mean", last.get("accuracy")),
        "accuracy_std": final.get("accuracy_std", last.get("accuracy_std")),
        "random_accuracy_mean": final.get("random_accuracy_mean"),
        "models": {name: found["accuracy_mean"] for name, found in models.items()},
        "peak_accuracy": measures.peak(curve),
        "steps_to_95": measures.steps_to_share(curve),
        "device_seconds": cost.seconds * max(1, workers),
        "passes": cost.passes,
        "wall_seconds": result.get("seconds", cost.seconds),
        "images_sha256": result.get("images_sha256"),
        "workers": workers,
        "resumed": len(past),
        "faults": len(faults),
        "forks": line(run.path),
    }


def _status(order: Order, run: RunFolder, result: dict[str, Any]) -> dict[str, str]:
    config = run.settings()[0]
    if order.failure:
        return {"status": "failed", "reason": order.failure}
    if result.get("complete") and result["steps"] >= total_steps(config):
        return {"status": "finished", "reason": ""}
    if (run.path / STOPPED).exists():
        return {"status": "stopped", "reason": read_json(run.path / STOPPED)["reason"]}
    return {"status": "interrupted", "reason": "the sweep ended before the run did; the same command with --resume carries on"}


def curve_of(run: RunFolder, workers: int) -> tuple[list[dict[str, Any]], Cost]:
    """The accuracy over steps with what the steps up to there had cost, and the cost of all steps."""
    cost, after = Cost(), {0: Cost()}
    for record in read_lines(run.metrics):
        cost.add(record)
        done = record["step"] + (not record["skipped"])
        after[done] = Cost(cost.seconds, cost.passes, cost.steps)
    points = {}
    for record in run.read_evaluations():
        if record["kind"] == "synthetic" and record["step"] in after:
            at = after[record["step"]]
            points[record["step"]] = {
                "step": record["step"],
                "accuracy": record["accuracy_mean"],
                "accuracy_std": record["accuracy_std"],
                "device_seconds": at.seconds * max(1, workers),
                "passes": at.passes,
            }
    return [points[step] for step in sorted(points)], cost


def summary(question: Question, recipe: str, options: dict[str, Any], arms: list[Arm], trials: list[dict[str, Any]]) -> dict[str, Any]:
    """The content of sweep.json but for `best`."""
    plain = [{"arm": arm.name, **{name: getattr(arm, name) for name in _OF_ARM}} for arm in arms]
    rows = measures.by_arm(plain, trials)
    return {
        "format": FORMAT,
        "sweep": question.name,
        "question": question.asks,
        "recipe": recipe,
        "metric": "accuracy",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "complete": all(trial["status"] in ("finished", "stopped", "failed") for trial in trials),
        "options": options,
        "environment": environment(),
        "factors": _factors(arms),
        "drawn": question.space,
        "target_accuracy": measures.common_accuracy(rows),
        "arms": rows,
        "trials": trials,
    }


def _factors(arms: list[Arm]) -> dict[str, list[Any]]:
    """The values of everything that varies, in the order of the arms."""
    values: dict[str, list[Any]] = {}
    for arm in arms:
        for name, value in arm.factors.items():
            if value not in values.setdefault(name, []):
                values[name].append(value)
    return values


def write(folder: Path, found: dict[str, Any], plan: TrialPlan) -> dict[str, Any]:
    """Write best.toml and sweep.json; returns the content of the latter."""
    first = next((arm for arm in found["arms"] if arm["accuracy_mean"] is not None), None)
    best = None
    if first is not None:
        given = {"recipe": first["recipe"], "seed": 0, "settings": first["settings"]}
        config = plan.config(given)
        accuracy = f"{first['accuracy_mean']:.2%} ± {first['accuracy_std']:.2%}"
        texts = {
            "title": f"{first['recipe']}: best of the sweep {found['sweep']}, {first['arm']}",
            "source": f"raydd's sweep {found['sweep']} of {found['created'][:10]}",
            "expected": f"{accuracy} (measured: mean over {first['trials']} seeds; the best of {len(found['arms'])} arms, so rather high)",
            "hardware": "as raydd plan predicts",
        }
        atomic_write_bytes(folder / "best.toml", toml(texts, to_dict(config)).encode())
        best = {"arm": first["arm"], "recipe": first["recipe"], "accuracy_mean": first["accuracy_mean"], "config": to_dict(config)}
        best["file"] = "best.toml"
    found = {**found, "best": best}
    atomic_write_json(folder / "sweep.json", found)
    return found


def toml(texts: dict[str, str], settings: dict[str, Any]) -> str:
    """A recipe file with all settings of a run but its seed; what is left open stays out."""
    lines = [f"{name} = {_toml(value)}" for name, value in texts.items()] + ["", "[settings]"]
    plain = {name: value for name, value in settings.items() if name not in ("recipe", "seed") and not isinstance(value, dict)}
    lines += [f"{name} = {_toml(value)}" for name, value in plain.items() if value is not None]
    for table, values in settings.items():
        if isinstance(values, dict):
            lines += ["", f"[settings.{table}]"] + [f"{name} = {_toml(value)}" for name, value in values.items() if value is not None]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    """A number, truth value or string as TOML writes it; JSON's forms of them are TOML's too."""
    return json.dumps(value, ensure_ascii=False)
