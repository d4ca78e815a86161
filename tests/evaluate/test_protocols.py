"""The schedule of MTT's evaluation against the recorded reference."""

from collections.abc import Callable
from typing import Any

import pytest

from raydd.config import EvaluationConfig
from raydd.errors import ConfigError
from raydd.evaluate import protocol, protocol_names, schedule


@pytest.mark.golden
def test_every_recorded_case(golden: Callable[[str], Any]) -> None:
    cases = golden("evaluation_schedules")["mtt_evaluate_synset"]
    assert len(cases) == 12
    for name, case in cases.items():
        phases = schedule(case["epochs_argument"], case["initial_lr"])
        recorded = [(run["epochs"], pytest.approx(run["lr"], rel=1e-12)) for run in case["schedule"]]
        assert [(phase.epochs, phase.lr) for phase in phases] == recorded, name
        assert sum(phase.epochs for phase in phases) == case["training_epochs"] == case["tests_after_training_epochs"][0]
        starts = [0, *(sum(phase.epochs for phase in phases[: place + 1]) for place in range(len(phases) - 1))]
        assert starts == case["epoch_indices_that_start_without_momentum"], name
        settings, defaults = case["settings"], EvaluationConfig()
        assert (settings["momentum"], settings["weight_decay"]) == (defaults.momentum, defaults.weight_decay)
        assert (settings["batch_size"], settings["augmented"]) == (defaults.batch_size, defaults.augment)


def test_a_thousand_epochs_are_502_and_499() -> None:
    assert [phase.epochs for phase in schedule(1000, 0.01)] == [502, 499]


@pytest.mark.parametrize("epochs", [0, 1])
def test_short_runs_never_drop(epochs: int) -> None:
    assert [(phase.lr, phase.epochs) for phase in schedule(epochs, 0.1)] == [(0.1, epochs + 1)]


def test_protocols_have_names() -> None:
    assert "mtt" in protocol_names() and protocol("mtt").schedule(1000, 0.1) == schedule(1000, 0.1)
    with pytest.raises(ConfigError, match="'tmm' is not an evaluation protocol; known: mtt"):
        protocol("tmm")
