"""What a sweep is judged by, from the curves of its trials. Pure functions.

A curve is a list of points {"step", "accuracy", "accuracy_std", "device_seconds", "passes"} in order of steps; accuracies are
fractions, `accuracy_std` is over the networks of one evaluation.
"""

import statistics
from collections.abc import Sequence
from typing import Any

SHARE = 0.95
Point = dict[str, Any]


def peak(curve: Sequence[Point]) -> float | None:
    """The highest accuracy on a curve; None for an empty one."""
    return max((point["accuracy"] for point in curve), default=None)


def reached(curve: Sequence[Point], accuracy: float) -> Point | None:
    """The first point with at least this accuracy; None where there is none."""
    return next((point for point in curve if point["accuracy"] >= accuracy), None)


def steps_to_share(curve: Sequence[Point], share: float = SHARE) -> int | None:
    """Steps after which a run first had `share` of its own highest accuracy: the speed of the papers' figures."""
    highest = peak(curve)
    return None if highest is None else reached(curve, share * highest)["step"]


def common_accuracy(arms: Sequence[dict[str, Any]]) -> float | None:
    """The accuracy that arms are asked to reach: the peak of the baseline's mean curve, without one the lowest of all peaks.

    `arms` are as `by_arm` gives them. None when no arm has a curve.
    """
    peaks = {arm["arm"]: peak(arm["curve"]) for arm in arms if arm["curve"]}
    own = [peaks[arm["arm"]] for arm in arms if arm["baseline"] and arm["arm"] in peaks]
    return own[0] if own else min(peaks.values(), default=None)


def cost_of(curve: Sequence[Point], accuracy: float | None) -> dict[str, Any] | None:
    """{"step", "device_seconds", "passes"} at which a curve first had this accuracy; None when it never had."""
    point = None if accuracy is None else reached(curve, accuracy)
    return point and {name: point[name] for name in ("step", "device_seconds", "passes")}


def mean_curve(curves: Sequence[Sequence[Point]]) -> list[Point]:
    """The mean over seeds at the steps that all of them have; `accuracy_std` is then over seeds (population, 0 for one)."""
    if not curves:
        return []
    places = [{point["step"]: point for point in curve} for curve in curves]
    shared = sorted(set.intersection(*(set(place) for place in places)))
    return [_mean_point(step, [place[step] for place in places]) for step in shared]


def _mean_point(step: int, points: list[Point]) -> Point:
    accuracies = [point["accuracy"] for point in points]
    means = {name: statistics.fmean(point[name] for point in points) for name in ("device_seconds", "passes")}
    return {"step": step, "accuracy": statistics.fmean(accuracies), "accuracy_std": statistics.pstdev(accuracies), **means}


def by_arm(arms: Sequence[dict[str, Any]], trials: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every arm with what its trials came to, best first; arms without any accuracy come last.

    `arms` are {"arm", "factors", "settings", "recipe", "baseline", "against"}; trials are those of sweep.json. Added are: trials,
    finished, seeds (how many; seeds are those with an accuracy), accuracy_mean and accuracy_std (over seeds, of final accuracies),
    random_accuracy_mean, models (mean accuracy of each other network), curve (`mean_curve`), peak_accuracy, steps_to_95, device_seconds,
    passes, wall_seconds (means), gain (`gain` over the arm named by `against`, else over the baseline), rank.
    """
    known = {(trial["arm"], trial["seed"]): trial["accuracy_mean"] for trial in trials if trial["accuracy_mean"] is not None}
    base = next((arm["arm"] for arm in arms if arm["baseline"]), "")
    rows = [
        {**_judged(arm, [trial for trial in trials if trial["arm"] == arm["arm"]]), "gain": gain(arm["arm"], arm["against"] or base, known)}
        for arm in arms
    ]
    rows.sort(key=lambda row: -1.0 if row["accuracy_mean"] is None else row["accuracy_mean"], reverse=True)
    for rank, row in enumerate(rows, start=1):
        row["rank"] = rank
    accuracy = common_accuracy(rows)
    return [{**row, "to_equal_accuracy": cost_of(row["curve"], accuracy)} for row in rows]


def gain(arm: str, other: str, known: dict[tuple[str, int], float]) -> dict[str, Any] | None:
    """What an arm gains over another, seed by seed: {"over", "mean", "std", "better", "seeds"}; None without a seed that both have.

    `known` is the accuracy (0..1) of each (arm, seed). Both arms of a seed share its draws, so that their differences vary less than
    the accuracies. `std` is over the seeds (population), `better` counts those in which the arm is above the other.
    """
    if arm == other:
        return None
    differences = [accuracy - known[other, seed] for (name, seed), accuracy in known.items() if name == arm and (other, seed) in known]
    if not differences:
        return None
    better = sum(difference > 0 for difference in differences)
    mean, std = statistics.fmean(differences), statistics.pstdev(differences)
    return {"over": other, "mean": mean, "std": std, "better": better, "seeds": len(differences)}


def _judged(arm: dict[str, Any], trials: list[dict[str, Any]]) -> dict[str, Any]:
    known = [trial for trial in trials if trial["accuracy_mean"] is not None]
    accuracies = [trial["accuracy_mean"] for trial in known]
    curve = mean_curve([trial["curve"] for trial in known if trial["curve"]])
    names = sorted({name for trial in known for name in trial["models"]})
    return {
        **arm,
        "trials": len(trials),
        "seeds": len(known),
        "finished": sum(trial["status"] == "finished" for trial in trials),
        "accuracy_mean": _mean(accuracies),
        "accuracy_std": statistics.pstdev(accuracies) if accuracies else None,
        "random_accuracy_mean": _mean([trial["random_accuracy_mean"] for trial in known if trial["random_accuracy_mean"] is not None]),
        "models": {name: _mean([trial["models"][name] for trial in known if name in trial["models"]]) for name in names},
        "curve": curve,
        "peak_accuracy": peak(curve),
        "steps_to_95": _mean([trial["steps_to_95"] for trial in known if trial["steps_to_95"] is not None]),
        **{name: _mean([trial[name] for trial in known]) for name in ("device_seconds", "passes", "wall_seconds")},
    }


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None
