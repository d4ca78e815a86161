"""Numbers as text, and records as arrays."""

import numpy as np
import pytest

from raydd.report import tables
from raydd.report.rundata import read_run, steps_of
from tests.report.sample import finished, record


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (59.94, "59.9 s"), (60, "1 min 00 s"), (200, "3 min 20 s"), (3599.6, "1 h 00 min"), (3600 * 30 + 125, "30 h 02 min")],
)
def test_durations(seconds, text):
    assert tables.duration(seconds) == text


def test_records_become_arrays_with_nan_for_null():
    records = [record(0), record(1, skipped=True), record(2, candidates=1)]
    steps = steps_of(records)
    assert len(steps) == 3 and steps.step.tolist() == [0, 1, 2]
    assert np.array_equal(steps.loss, [1.0, np.nan, 1 / 3], equal_nan=True)
    assert steps.chosen.tolist() == [0, -1, 0] and steps.skipped.tolist() == [False, True, False] and steps.attempt.tolist() == [0, 3, 0]
    assert steps.expert.tolist() == [[0, 1, 2], [1, 2, 3], [2, -1, -1]] and steps.epoch[2].tolist() == [1, -1, -1]
    assert np.array_equal(steps.score[2], [np.nan] * 3, equal_nan=True) and np.isnan(steps.entropy[2])
    assert steps.seconds["update"].tolist() == [0.5] * 3
    assert len(steps_of([])) == 0 and steps_of([]).score.shape == (0, 0)


def test_the_later_evaluation_of_a_step_counts(tmp_path):
    run = read_run(finished(tmp_path / "run"))
    assert [(r["step"], r["accuracy_mean"]) for r in run.evaluations] == [(20, 0.41), (40, 0.66), (60, 0.6)]
    assert run.random["accuracy_mean"] == 0.35 and run.problems == []
