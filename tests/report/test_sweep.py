"""The page of a sweep: it shows what sweep.json says, needs nothing from outside, and copes with sweeps in which little went well."""
# ruff: noqa: RUF001 (the page uses dashes and minus signs)

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from raydd import artifact
from raydd.errors import CheckpointError, ConfigError
from raydd.files import atomic_write_json
from raydd.report import sweep, sweep_figures, sweep_tables
from raydd.report.sweepdata import FORMAT, is_sweep, read_sweep
from raydd.report.theme import DARK, LIGHT, png
from tests.commands import raydd
from tests.report.sample import finished, result
from tests.report.test_page import Page, read

ARMS = {
    "base": (0.80, 0.82),
    "t=0.1 sign=-1": (0.84, 0.88),
    "t=0.1 sign=1": (0.70, None),
    "t=5 sign=-1": (0.81, 0.81),
    "t=5 sign=1": (0.79, 0.83),
}


def trial(arm: str, seed: int, accuracy: float | None, **more: Any) -> dict[str, Any]:
    """A trial as sweep.json has it; one without accuracy has never started."""
    known = {
        "arm": arm, "seed": seed, "factors": {}, "settings": {}, "recipe": "digits-mtt-ipc1", "status": "finished", "reason": "",
        "run": f"runs/{arm}-{seed}", "steps": 40, "curve": points(accuracy), "accuracy_mean": accuracy, "accuracy_std": 0.01,
        "random_accuracy_mean": 0.4, "models": {}, "peak_accuracy": accuracy, "steps_to_95": 20, "device_seconds": 30.0, "passes": 160,
        "wall_seconds": 45.0, "images_sha256": "abcdef0123", "workers": 0, "resumed": 1, "faults": 0, "forks": [],
    }  # fmt: skip
    if accuracy is None:
        known |= {"status": "never started", "reason": "no room <script>", "run": None, "images_sha256": None, "steps": 0}
    return known | more


def points(last: float | None) -> list[dict[str, Any]]:
    return [
        {"step": step, "accuracy": last - (40 - step) / 100, "accuracy_std": 0.02, "device_seconds": 0.75 * step, "passes": 4 * step}
        for step in (0, 20, 40)
        if last is not None
    ]


def arm(rank: int, name: str, trials: list[dict[str, Any]], base: float | None) -> dict[str, Any]:
    """An arm as sweep.json has it; its gain is made up."""
    known = [one["accuracy_mean"] for one in trials if one["accuracy_mean"] is not None]
    mean = float(np.mean(known)) if known else None
    gain = (
        {"over": "base", "mean": mean - base, "std": 0.01, "better": 1, "seeds": 2}
        if mean is not None and base and name != "base"
        else None
    )
    parts = dict(part.split("=") for part in name.split() if "=" in part)
    cost = {"step": 20, "device_seconds": 15.0, "passes": 80} if mean and mean > 0.8 else None
    return {
        "arm": name, "factors": {"t": float(parts["t"]), "sign": int(parts["sign"])} if parts else {},
        "settings": {}, "recipe": "r", "baseline": name == "base", "against": "",
        "trials": len(trials), "finished": len(known), "seeds": len(known), "accuracy_mean": mean,
        "accuracy_std": float(np.std(known)) if known else None, "random_accuracy_mean": 0.4 if known else None, "models": {},
        "curve": points(mean), "peak_accuracy": mean, "steps_to_95": 20.0 if known else None, "device_seconds": 30.0 if known else None,
        "passes": 160.0 if known else None, "wall_seconds": 45.0 if known else None, "rank": rank, "gain": gain, "to_equal_accuracy": cost,
    }  # fmt: skip


def content(accuracies: dict[str, tuple[float | None, ...]], **more: Any) -> dict[str, Any]:
    """A whole sweep.json from the accuracies of every arm's seeds."""
    trials = [trial(name, seed, value) for name, values in accuracies.items() for seed, value in enumerate(values)]
    means = {name: np.mean([value for value in values if value is not None] or [-1.0]) for name, values in accuracies.items()}
    order = sorted(accuracies, key=lambda name: -means[name])
    base = float(means["base"]) if "base" in means else None
    arms = [arm(rank, name, [one for one in trials if one["arm"] == name], base) for rank, name in enumerate(order, start=1)]
    best = {"arm": order[0], "recipe": "r", "accuracy_mean": means[order[0]], "config": {}, "file": "best.toml"}
    found = {
        "format": FORMAT, "sweep": "toy", "question": "Which is <b>better</b>?", "recipe": "digits-mtt-ipc1", "metric": "accuracy",
        "created": "2026-11-20T10:00:00+00:00", "complete": False, "drawn": False, "target_accuracy": base or 0.7,
        "options": {"seeds": [0, 1], "settings": {"steps": 40}, "scheduler": "none", "execution": {"workers": 0}},
        "environment": {"command": "sweeps/toy.py", "versions": {"raydd": "1"}}, "factors": {"t": [0.1, 5.0], "sign": [-1, 1]},
        "arms": arms, "trials": trials, "best": best if means[order[0]] > 0 else None,
    }  # fmt: skip
    return found | more


def made(path: Path, found: dict[str, Any]) -> Path:
    atomic_write_json(path / "sweep.json", found)
    if found["best"]:
        (path / "best.toml").write_text('title = "best"\n[settings]\nsteps = 40\n')
    return path


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are drawn, and not turned into files."""
    monkeypatch.setattr(sweep, "_small", lambda figure: str(bool(figure.axes)).encode())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep whose best run is there, with its own report."""
    path = made(tmp_path_factory.mktemp("sweeps") / "a sweep", content(ARMS))
    run = finished(path / "runs" / "t=0.1 sign=-1-1")
    artifact.write(run / "synthetic.safetensors", result())
    (run / "report.html").write_text("the run's own")
    return path


@pytest.fixture(scope="module")
def shown(folder: Path) -> Page:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "_small", lambda figure: b"")
        return read(sweep.write_sweep_report(folder))


def test_nothing_comes_from_outside(folder: Path, shown: Page) -> None:
    text = (folder / "report.html").read_text()
    assert not re.search(r"https?://|@import|url\(", text) and "<script" not in text
    assert not {"script", "link", "iframe", "object"} & set(shown.tags)
    beside = {address for address in shown.addresses if not address.startswith(("#", "data:"))}
    assert beside == {"runs/t%3D0.1%20sign%3D-1-1/report.html"}
    links = {address[1:] for address in shown.addresses if address.startswith("#")}
    assert len(links) == 7 and all(f'<section id="{name}">' in text for name in links)


def test_arms_are_ranked_with_what_they_gain(shown: Page) -> None:
    words = shown.words
    assert "Which is <b>better</b>?" in words and "Sweep toy , recipe digits-mtt-ipc1 , 2026-11-20" in words
    assert "Best 86.0 ± 2.0 % t=0.1 sign=-1 Gain +5.0 ± 1.0 points over base" in words and "Baseline 81.0 ± 1.0 % base" in words
    columns = "arm accuracy random images gain over random images gain over base seeds better finished"
    assert f"{columns} 1 t=0.1 sign=-1 86.0 ± 2.0 % 40.0 % +46.0 +5.0 ± 1.0 1 of 2 2 of 2" in words
    assert "5 t=0.1 sign=1 70.0 % 40.0 % +30.0 −11.0 ± 1.0 1 of 2 1 of 2" in words


def test_costs_of_what_was_never_reached_say_so(shown: Page) -> None:
    assert "Target: 81.0 %, the highest accuracy on the baseline's mean curve" in shown.words
    assert "t=0.1 sign=-1 20 20 80 15 160 30 45.0 s" in shown.words and "t=0.1 sign=1 20 never never never 160 30 45.0 s" in shown.words


def test_trials_that_did_not_run_are_failures_with_a_reason(shown: Page) -> None:
    assert "1 of 10 trials did not finish" in shown.words and "9 of 10 trials done, not complete" in shown.words
    assert "t=0.1 sign=1 1 never started no room <script>" in shown.words


def test_the_best_settings_are_there_to_copy_with_the_images_of_the_best_run(shown: Page) -> None:
    assert "raydd distill best.toml --seed 100" in shown.words and 'title = "best" [settings] steps = 40' in shown.words
    assert "Seed 1." in shown.words  # 0.88 is the better of the two
    assert {"<b>dog</b> at the start", "<b>dog</b> at the end"} < {image["alt"] for image in shown.images}


def test_two_factors_make_a_heat_map(folder: Path) -> None:
    columns, rows, (cells,) = sweep.maps(read_sweep(folder).found)
    assert columns == ("t", ["0.1", "5"]) and rows == ("sign", ["-1", "1"])
    assert np.allclose(cells.mean, [[0.86, 0.81], [0.70, 0.81]]) and np.allclose(cells.std, [[0.02, 0.0], [0.0, 0.02]])


def test_a_third_factor_makes_a_map_for_each_of_its_values_and_cells_without_an_arm_stay_empty() -> None:
    found = content(
        {f"t={t} sign={sign}": (0.1 * t,) for t in (1, 2) for sign in (-1, 1)}, factors={"t": [1.0, 2.0], "sign": [-1, 1], "n": ["a", "b"]}
    )
    for one in found["arms"]:
        one["factors"]["n"] = "a" if one["factors"]["t"] == 1 else "b"
    _, _, maps = sweep.maps(found)
    assert [one.title for one in maps] == ["n a", "n b"]
    assert np.allclose(maps[0].mean, [[0.1, np.nan], [0.1, np.nan]], equal_nan=True)
    assert np.allclose(maps[1].mean, [[np.nan, 0.2], [np.nan, 0.2]], equal_nan=True)


def test_one_factor_and_drawn_settings_make_none() -> None:
    assert sweep.maps(content(ARMS, factors={"t": [0.1, 5.0]})) is None and sweep.maps(content(ARMS, drawn=True)) is None


def test_drawn_settings_are_shown_each_by_itself(tmp_path: Path, quick: None) -> None:
    found = content({"t=0.01 sign=-1": (0.5,), "t=5 sign=1": (0.7,)}, drawn=True, options={"seeds": [0]})
    shown = read(sweep.write_sweep_report(made(tmp_path, found)))
    assert "Accuracy over each setting that was drawn" in {image["alt"] for image in shown.images}
    assert "Every setting was run once" in shown.words and "70.0 % 40.0 % +30.0 1 of 1" in shown.words
    figure = sweep_figures.scatter({"t": [0.01, 5.0], "k": ["a", "b"]}, np.array([0.5, 0.7]))
    assert [axes.get_xscale() for axes in figure.axes[:2]] == ["log", "linear"]


def test_a_sweep_in_which_nothing_started(tmp_path: Path, quick: None) -> None:
    shown = read(sweep.write_sweep_report(made(tmp_path, content({"base": (None,), "t=5 sign=1": (None,)}))))
    assert shown.images == [] and "no trial has an accuracy" in shown.words and "so there is no best" in shown.words


def test_one_evaluation_without_the_run_folder(tmp_path: Path, quick: None) -> None:
    found = content({"base": (0.5,), "t=5 sign=1": (0.6,)}, options={"seeds": [0]})
    for one in [*found["arms"], *found["trials"]]:
        one["curve"] = one["curve"][-1:]
    shown = read(sweep.write_sweep_report(made(tmp_path, found)))
    assert "Nothing was evaluated along the runs" in shown.words and "images of the best run are not beside this page" in shown.words
    assert "There is one seed" in shown.words and "runs/" not in " ".join(shown.addresses)


def test_arms_of_their_own_rivals_are_named() -> None:
    found = content(ARMS)
    found["arms"][0]["gain"]["over"] = "another"
    columns, rows = sweep_tables.ranking(_of(found))
    assert rows[0][columns.index("over")] == "another" and rows[1][columns.index("over")] in ("base", "–")


def test_of_many_arms_the_best_are_drawn_and_the_rest_is_told_of(tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "MOST", 4)
    found = content({f"t={i} sign=1": (0.5 + i / 100,) for i in range(6)})
    shown = read(sweep.write_sweep_report(made(tmp_path, found)))
    assert "The 2 lowest arms are left out." in shown.words


def test_figures_are_pictures_in_both_themes() -> None:
    line = sweep_figures.Line("an arm", np.array([0, 10]), np.array([0.1, 0.5]), np.array([0.0, 0.1]), baseline=True)
    for theme in (LIGHT, DARK):
        assert png(sweep_figures.curves([line, line], theme)).startswith(b"\x89PNG")
    assert len(sweep_figures.curves([line] * 7).axes) == 8 and len(sweep_figures.curves([line] * 5).axes) == 1


def test_random_images_that_are_far_away_are_not_drawn() -> None:
    arms, far, close = np.array([0.85, 0.86]), np.array([0.4, 0.4]), np.array([0.84, np.nan])
    assert not sweep_figures.near(arms, far) and sweep_figures.near(arms, close) and not sweep_figures.near(arms, np.array([np.nan] * 2))


def test_a_figure_on_the_page_is_the_drawn_one_in_few_colours() -> None:
    figure = sweep_figures.costs(["an arm"], {"Passes": np.array([3.0])})
    shown = Image.open(io.BytesIO(sweep._small(figure)))
    exact = Image.open(io.BytesIO(png(figure))).convert("RGB")
    away = np.abs(np.asarray(shown.convert("RGB"), int) - np.asarray(exact, int))
    assert shown.mode == "P" and shown.size == exact.size and away.mean() < 2


def test_the_command_tells_sweeps_from_runs(folder: Path, tmp_path: Path, quick: None) -> None:
    assert is_sweep(folder) and not is_sweep(finished(tmp_path / "run"))
    assert raydd("report", folder).last_line == str(folder / "report.html")


@pytest.mark.parametrize(
    "text, told", [("", "has not ended"), ("{", "cannot be read as JSON"), ('{"format": 1}', "this raydd reads 2"), ("[]", "format None")]
)
def test_what_is_no_sweep_is_refused(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "runs").mkdir()
    if text:
        (tmp_path / "sweep.json").write_text(text)
    assert told in raydd("report", tmp_path).refusal()
    with pytest.raises((ConfigError, CheckpointError)):
        read_sweep(tmp_path)


def test_a_damaged_result_file_is_named(tmp_path: Path, quick: None) -> None:
    made(tmp_path, content({"base": (0.5,)}))
    (tmp_path / "runs" / "base-0").mkdir(parents=True)
    (tmp_path / "runs" / "base-0" / "synthetic.safetensors").write_bytes(b"no")
    assert "synthetic.safetensors" in read(sweep.write_sweep_report(tmp_path)).words


def _of(found: dict[str, Any]) -> Any:
    from raydd.report.sweepdata import SweepData

    return SweepData(Path(), json.loads(json.dumps(found)), "", None, None, [])
