"""What sweeps are judged by, on curves whose answers are known."""

from typing import Any

from sweeping import measures


def curve(*accuracies: float, seconds: float = 2.0) -> list[dict[str, Any]]:
    """A point every 10 steps; each step costs `seconds` and 4 passes."""
    return [
        {"step": 10 * i, "accuracy": a, "accuracy_std": 0.01, "device_seconds": 10 * i * seconds, "passes": 40 * i}
        for i, a in enumerate(accuracies)
    ]


def trial(arm: str, points: list[dict[str, Any]], seed: int = 0, status: str = "finished", **more: Any) -> dict[str, Any]:
    """As in sweep.json."""
    known = {
        "arm": arm, "seed": seed, "status": status, "curve": points, "accuracy_mean": points[-1]["accuracy"] if points else None,
        "random_accuracy_mean": 0.4, "models": {}, "steps_to_95": measures.steps_to_share(points), "device_seconds": 100.0,
        "passes": 200, "wall_seconds": 120.0,
    }  # fmt: skip
    return known | more


def arm(name: str, baseline: bool = False, against: str = "") -> dict[str, Any]:
    return {"arm": name, "factors": {}, "settings": {}, "recipe": "digits-mtt-ipc1", "baseline": baseline, "against": against}


def test_steps_to_95_percent_of_the_peak() -> None:
    # 0.95 x 0.8 = 0.76, first reached at the third point, before the peak.
    assert measures.steps_to_share(curve(0.1, 0.7, 0.77, 0.8, 0.75)) == 20
    assert measures.steps_to_share(curve(0.8)) == 0
    assert measures.steps_to_share([]) is None


def test_cost_of_an_accuracy_is_that_of_the_first_point_that_has_it() -> None:
    points = curve(0.1, 0.5, 0.6, 0.9)
    assert measures.cost_of(points, 0.55) == {"step": 20, "device_seconds": 40.0, "passes": 80}
    assert measures.cost_of(points, 0.95) is None
    assert measures.cost_of(points, None) is None


def test_equal_accuracy_is_the_baselines_peak() -> None:
    arms = [arm("a", baseline=True), arm("b")]
    rows = measures.by_arm(arms, [trial("a", curve(0.1, 0.5, 0.4)), trial("b", curve(0.1, 0.45, 0.6, 0.7))])
    assert [row["arm"] for row in rows] == ["b", "a"] and [row["rank"] for row in rows] == [1, 2]
    assert measures.common_accuracy(rows) == 0.5
    assert rows[0]["to_equal_accuracy"]["step"] == 20 and rows[1]["to_equal_accuracy"]["step"] == 10


def test_without_baseline_it_is_what_all_arms_reach() -> None:
    rows = measures.by_arm([arm("a"), arm("b")], [trial("a", curve(0.2, 0.9)), trial("b", curve(0.1, 0.6))])
    assert measures.common_accuracy(rows) == 0.6
    assert all(row["to_equal_accuracy"] for row in rows)


def test_seeds_are_averaged_where_all_have_a_point() -> None:
    row = measures.by_arm([arm("a")], [trial("a", curve(0.2, 0.6, 0.8)), trial("a", curve(0.4, 0.8, seconds=4.0), seed=1)])[0]
    assert row["accuracy_mean"] == 0.8 and row["accuracy_std"] == 0.0 and row["trials"] == 2
    assert [point["step"] for point in row["curve"]] == [0, 10]
    last = row["curve"][-1]
    assert abs(last["accuracy"] - 0.7) < 1e-12 and abs(last["accuracy_std"] - 0.1) < 1e-12 and last["device_seconds"] == 30.0


def test_arms_without_any_accuracy_come_last_and_harm_nothing() -> None:
    rows = measures.by_arm([arm("a"), arm("b")], [trial("a", [], status="never started"), trial("b", curve(0.1, 0.2))])
    assert [row["arm"] for row in rows] == ["b", "a"]
    assert rows[1]["accuracy_mean"] is None and rows[1]["to_equal_accuracy"] is None and rows[1]["finished"] == 0


def test_other_networks_are_averaged_by_name() -> None:
    trials = [trial("a", curve(0.5), models={"mlp": 0.2}), trial("a", curve(0.5), seed=1, models={"mlp": 0.4, "vgg11": 0.1})]
    models = measures.by_arm([arm("a")], trials)[0]["models"]
    assert abs(models["mlp"] - 0.3) < 1e-12 and models["vgg11"] == 0.1


def test_gains_are_differences_seed_by_seed() -> None:
    trials = [
        trial("a", curve(0.5), seed=0),
        trial("a", curve(0.7), seed=1),
        trial("b", curve(0.6), seed=0),
        trial("b", curve(0.9), seed=1),
    ]
    trials.append(trial("b", curve(0.1), seed=2))  # the baseline has no such seed
    rows = {row["arm"]: row for row in measures.by_arm([arm("a", baseline=True), arm("b")], trials)}
    told = rows["b"]["gain"]
    assert rows["a"]["gain"] is None and (told["over"], told["better"], told["seeds"]) == ("a", 2, 2)
    assert abs(told["mean"] - 0.15) < 1e-12 and abs(told["std"] - 0.05) < 1e-12


def test_an_arm_may_be_compared_with_another_than_the_baseline() -> None:
    trials = [trial("a", curve(0.5)), trial("b", curve(0.6)), trial("c", curve(0.4))]
    rows = {row["arm"]: row for row in measures.by_arm([arm("a"), arm("b", against="c"), arm("c", against="gone")], trials)}
    assert rows["b"]["gain"]["over"] == "c" and abs(rows["b"]["gain"]["mean"] - 0.2) < 1e-12
    assert rows["a"]["gain"] is None and rows["c"]["gain"] is None
