"""The public API as its own page shows it."""

import re
import textwrap
from pathlib import Path

import pytest

import raydd
from raydd.files import read_json
from tests.commands import STEPS, result

FASTER = {"model.width": 8, "experts.count": 3, "evaluation.epochs": 2, "evaluation.nets": 2, "steps": STEPS}


def notebook() -> str:
    """The lines in the docstring of the package."""
    return textwrap.dedent(re.search(r"\n\n(    import raydd.*)", raydd.__doc__, re.DOTALL)[1])


def test_notebook_lines_run(
    finished_run: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAYDD_STORE", str(store))
    override = raydd.override
    # The same lines on a network that takes a fraction of a second.
    monkeypatch.setattr(raydd, "override", lambda config, settings: override(config, settings | FASTER))
    names: dict[str, object] = {}
    exec(compile(notebook(), "notebook", "exec"), names)
    # What the command line gives with the same settings.
    assert names["result"]["images_sha256"] == result(finished_run)["images_sha256"] == read_json("runs/first/result.json")["images_sha256"]
    assert names["images"].shape == (10, 1, 8, 8)
    printed = capsys.readouterr().out
    assert names["result"]["images_sha256"] in printed and "'nets': 5" in printed
    assert (tmp_path / "runs/first/report.html").is_file()


@pytest.mark.usefixtures("no_report")
def test_resume_without_settings_carries_on(finished_run: Path, store: Path, tmp_path: Path) -> None:
    recipe = raydd.load_recipe("digits-mtt-ipc1")
    settings = FASTER | {"selection.policy": "dynadistill", "selection.candidates": 3, "evaluation.at_end": False}
    config = raydd.override(recipe.config, settings)
    execution = raydd.Execution(run=str(tmp_path / "run"), store=str(store), workers=0)
    short = raydd.distill(raydd.override(config, {"steps": 2}), execution)
    assert short["steps"] == 2 and short["complete"] and short["evaluation"] is None
    assert short["run"] == str(tmp_path / "run")
    again = raydd.resume(tmp_path / "run")
    assert again["images_sha256"] == short["images_sha256"]
    longer = raydd.resume(tmp_path / "run", config)
    assert longer["images_sha256"] == result(finished_run)["images_sha256"]


@pytest.mark.usefixtures("no_report")
def test_progress_is_reported(store: Path, tmp_path: Path) -> None:
    reports: list[dict[str, object]] = []
    config = raydd.override(raydd.load_recipe("digits-mtt-ipc1").config, FASTER | {"evaluation.at_end": False})
    raydd.distill(config, raydd.Execution(run=str(tmp_path / "run"), store=str(store), workers=0), reports.append)
    steps = [report["done"] for report in reports if report["phase"] == "distill"]
    assert steps == list(range(1, STEPS + 1))


def test_experts_are_trained_into_the_named_store(store: Path) -> None:
    config = raydd.override(raydd.load_recipe("digits-mtt-ipc1").config, FASTER)
    folder = Path(raydd.train_experts(config, raydd.Execution(store=str(store), workers=0)))
    assert folder.parent == store and len(list(folder.glob("expert_*.arrow"))) == 3


def test_settings_of_the_wrong_kind_are_refused(tmp_path: Path) -> None:
    config = raydd.load_recipe("digits-mtt-ipc1").config
    for execution, text in ((raydd.Execution(device="tpu"), "device='tpu'"), (raydd.Execution(threads="2"), "threads='2'")):
        with pytest.raises(raydd.RayddError, match=text):
            raydd.distill(config, execution)
        with pytest.raises(raydd.RayddError, match=text):
            raydd.predict(config, execution)


def test_page_names_what_there_is() -> None:
    assert set(re.findall(r"raydd\.(\w+)\(", raydd.__doc__)) <= set(raydd.__all__)
    assert raydd.__version__.count(".") == 2
