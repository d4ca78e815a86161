"""What the terminal says after a run of several stages: a row for each stage."""

from pathlib import Path

import pytest

from raydd.__main__ import _print_evaluation
from tests import commands

SUMMARY = {
    "accuracy_mean": 0.7, "accuracy_std": 0.01, "random_accuracy_mean": 0.5, "random_accuracy_std": 0.02, "nets": 5, "epochs": 300,
    "lr": 0.04, "model": "convnet", "settings": {"protocol": "mtt"},
}  # fmt: skip


def staged(*accuracies: float) -> list[dict[str, float]]:
    return [
        {"stage": stage, "ipc": 2 * stage, "lr": 0.02 * stage, "accuracy_mean": accuracy, "accuracy_std": 0.01}
        for stage, accuracy in enumerate(accuracies, start=1)
    ]


def test_a_row_for_each_stage(capsys: pytest.CaptureFixture[str]) -> None:
    _print_evaluation({**SUMMARY, "stages": "sequential", "by_stage": staged(0.6, 0.7), "random_by_stage": staged(0.4, 0.5)})
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines() if line.split()[0] in "12"]
    assert rows == [
        ["1", "2", "0.02", "60.00%", "±", "1.00%", "40.00%", "±", "1.00%"],
        ["2", "4", "0.04", "70.00%", "±", "1.00%", "50.00%", "±", "1.00%"],
    ]
    assert "both: 300 passes, sequential, networks (convnet) from scratch, protocol mtt" in out


def test_one_stage_prints_as_before(capsys: pytest.CaptureFixture[str]) -> None:
    _print_evaluation(SUMMARY)
    out = capsys.readouterr().out
    assert "both: 300 passes at rate 0.04, networks" in out and "stage" not in out and len(out.splitlines()) == 4


def test_stages_from_the_command_line(tmp_path: Path, no_report: None) -> None:
    """Asked for and added later: the same images, and a row for each stage."""
    tiny = ("--model.width", "4", "--steps", "2", "--stages.ipc", "1", "--stages.networks", "1", "--stages.transition_epochs", "1")
    tiny += ("--dm.batch_real", "8", "--evaluation.updates", "2", "--evaluation.nets", "1", "--workers", "0")
    whole = commands.raydd("distill", "digits-pdd-dm-ipc6", *tiny, "--run", tmp_path / "whole")
    part = commands.raydd("distill", "digits-pdd-dm-ipc6", *tiny, "--stages.count", "2", "--run", tmp_path / "part")
    assert whole.code == part.code == 0 and whole.last_line != part.last_line
    more = commands.raydd("distill", "--extend", tmp_path / "part", "--stages.add", "1", "--workers", "0")
    assert more.code == 0 and more.last_line == whole.last_line and "images sha256: " in more.last_line
    rows = [line.split()[:2] for line in more.out.splitlines() if line.split()[0] in ("1", "2", "3")]
    assert rows == [["1", "1"], ["2", "2"], ["3", "3"]]
