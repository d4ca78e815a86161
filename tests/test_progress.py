"""What is shown of a run, on a terminal and without one."""

import io
from typing import Any

import pytest
from rich.console import Console

from raydd import progress
from raydd.progress import Progress


def shown(reports: list[dict[str, Any]], terminal: bool = False) -> str:
    """The text that these reports give, 80 columns wide."""
    console = Console(file=io.StringIO(), force_terminal=terminal, width=80, color_system=None)
    with Progress(console) as receive:
        for report in reports:
            receive(report)
    return console.file.getvalue()


def distilling(done: int, total: int = 3, loss: float | None = 0.5) -> dict[str, Any]:
    return {"phase": "distill", "done": done, "total": total, "loss": loss}


def test_lines_without_a_terminal() -> None:
    text = shown([distilling(1), distilling(2), distilling(3)])
    # The first and the last; those between are too close in time.
    assert text.splitlines() == ["distilling: 1/3 loss 0.5000", "distilling: 3/3 loss 0.5000"]


def test_a_line_every_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 4.0, 10.0, 13.0, 20.5])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(times))
    text = shown([distilling(step, total=9) for step in range(1, 6)])
    assert [line.split()[1] for line in text.splitlines()] == ["1/9", "3/9", "5/9"]


def test_phases_do_not_silence_each_other() -> None:
    data = {"phase": "data", "done": 1, "total": 9}
    experts = {"phase": "experts", "done": 0, "total": 8, "images_per_second": 12345.6, "seconds_left": 61.4}
    assert shown([data, experts]).splitlines() == ["decoding images: 1/9", "training experts: 0/8 12,346 images/s, 61 s left"]


def test_a_skipped_step_has_no_loss() -> None:
    assert shown([distilling(3, loss=None)]) == "distilling: 3/3\n"


def test_evaluations_and_other_texts_are_lines() -> None:
    evaluation = {"phase": "evaluation", "step": 40, "kind": "random", "accuracy_mean": 0.51236}
    # Square brackets are not markup, and long lines are not cut.
    warning = {"phase": "warning", "text": "[/bold] " + "x" * 100}
    lines = ["step 40: random images give 51.24% test accuracy", warning["text"]]
    assert shown([evaluation, warning]).splitlines() == lines
    assert all(line in shown([evaluation, warning], terminal=True) for line in lines[:1])


def test_a_report_of_an_unknown_phase_is_shown_whole() -> None:
    assert "'phase': 'odd'" in shown([{"phase": "odd", "value": 3}])


def test_bars_on_a_terminal() -> None:
    text = shown([distilling(1), distilling(3), {"phase": "evaluate", "done": 0, "total": 2}], terminal=True)
    assert "distilling" in text and "3/3" in text and "loss 0.5000" in text and "evaluating" in text and "0/2" in text


def test_results_stay_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress() as receive:
        receive(distilling(3))
    captured = capsys.readouterr()
    assert captured.out == "" and "distilling: 3/3" in captured.err


def test_networks_of_later_stages_are_told_apart() -> None:
    reports = [
        {"phase": phase, "stage": stage, "done": 2, "total": 2, "images_per_second": 4.0, "seconds_left": 0.0}
        for stage in (2, 3)
        for phase in ("transition", "experts")
    ]
    text = shown([*reports, {"phase": "experts", "done": 2, "total": 2}]).splitlines()
    assert [line.partition(":")[0] for line in text] == [
        "training start networks of stage 2",
        "training experts of stage 2",
        "training start networks of stage 3",
        "training experts of stage 3",
        "training experts",
    ]
    assert text[0] == "training start networks of stage 2: 2/2 4 images/s, 0 s left"
