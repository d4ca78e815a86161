"""Staged sets: which images each set has, for how long networks train on it, and that training goes on from set to set."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import raydd.training
from raydd.config import Config, ModelConfig
from raydd.coreset import random_rows
from raydd.errors import ConfigError
from raydd.evaluate import Evaluation, TrainingSet, evaluate, resolve, settings_for, stage_counts, stage_sequence, train_on
from raydd.evaluate.staged import passes_for, stage_epochs
from raydd.models import FlatModel, build
from raydd.rng import stream
from raydd.training import Epoch, Networks, Streams, TensorBatches, accuracy, initial
from tests.evaluate.conftest import Digits

RATES = (0.05, 0.02, 0.03)
MODES = ("progressive", "union", "sequential")


def with_evaluation(digits: Digits, **settings: Any) -> Config:
    return replace(digits.config, evaluation=replace(digits.config.evaluation, **settings))


def three_each(digits: Digits, sets: int) -> Config:
    """Settings by which so many sets get three epochs each."""
    return with_evaluation(digits, epochs=3 * (sets + 1) // 2)


def prefixes(digits: Digits, stages: int = 3) -> list[TrainingSet]:
    """U_1, U_2, .. with one image of each class in every stage."""
    rows = random_rows(digits.train.labels, 10, stages, 0, "test").reshape(10, stages)
    parts = (digits.train.batch(rows[:, :stage].flatten()) for stage in range(1, stages + 1))
    return [TrainingSet(images, labels, rate) for (images, labels), rate in zip(parts, RATES, strict=False)]


def run(digits: Digits, sets: list[TrainingSet], model: FlatModel | None = None, together: bool = False, **settings: Any) -> Evaluation:
    test = TensorBatches(digits.test.images[:200], digits.test.labels[:200])
    settings = {"epochs": 3 * (len(sets) + 1) // 2, **settings}
    return evaluate(with_evaluation(digits, **settings), model or digits.model, sets, test, "cpu", together=together)


def visits(mode: str, epochs: int, stages: int) -> int:
    """Images of one class that a network sees when each of the stages has three."""
    counts = stage_counts(mode, 3, stages)
    return stage_epochs(mode, epochs, len(counts)) * sum(counts)


def test_the_sets_of_each_mode() -> None:
    stages = torch.tensor([1, 1, 2, 3, 1, 1, 2, 3])

    def rows(mode: str) -> list[tuple[int, list[int]]]:
        return [(stage, own.nonzero().flatten().tolist()) for stage, own in stage_sequence(mode, stages)]

    assert rows("progressive") == [(1, [0, 1, 4, 5]), (2, [0, 1, 2, 4, 5, 6]), (3, list(range(8)))]
    assert rows("union") == [(3, list(range(8)))]
    assert rows("sequential") == [(1, [0, 1, 4, 5]), (2, [2, 6]), (3, [3, 7])]
    for mode in MODES:
        assert [(stage, own.all().item()) for stage, own in stage_sequence(mode, torch.ones(4))] == [(1, True)]
        assert stage_counts(mode, 5, 4) == [int(own.sum()) for _, own in stage_sequence(mode, torch.arange(1, 5).repeat(5))]


@pytest.mark.parametrize("stages", range(1, 11))
def test_all_modes_see_equally_many_images(stages: int) -> None:
    assert stage_epochs("progressive", 1000, 1) == stage_epochs("sequential", 1000, stages) == 1000
    even = 12 * (stages + 1)  # 2 E / (P + 1) is whole
    assert {visits(mode, even, stages) for mode in MODES} == {even * stages * 3}
    # Else an epoch is rounded by at most a half.
    assert abs(visits("progressive", 1000, stages) - visits("union", 1000, stages)) <= 3 * stages * (stages + 1) / 4


def test_the_papers_epochs_for_five_stages(digits: Digits) -> None:
    """2000 / (P + 1) = 333 (appendix A1.1), of a protocol of 1000."""
    for mode, epochs in (("progressive", 333), ("union", 1000), ("sequential", 1000)):
        config = with_evaluation(digits, epochs=None, stages=mode)
        assert settings_for(config, digits.model, *stage_counts(mode, 20, 5), ipc=10).epochs == epochs
        assert settings_for(with_evaluation(digits, stages=mode), digits.model, *stage_counts(mode, 20, 5), ipc=10).epochs == stage_epochs(
            mode, 3, 1 if mode == "union" else 5
        )


@pytest.mark.parametrize("mode", MODES)
def test_a_protocol_hears_of_all_stages_together(mode: str) -> None:
    """IDC trains a DenseNet less on 50 stored images of each class that are decoded to more."""
    config = replace(Config(ipc=10), evaluation=replace(Config().evaluation, protocol="idc", stages=mode))
    counts = stage_counts(mode, 10 * 40, 5)
    usual = {"progressive": 133, "union": 400, "sequential": 400}[mode]
    assert resolve(config, ModelConfig("densenet-thin", norm="batch"), counts, 32, 10, ipc=50).epochs == usual
    same = replace(config, evaluation=replace(config.evaluation, same_compute=True))
    assert resolve(same, ModelConfig("densenet-thin", norm="batch"), counts, 32, 10, ipc=50).epochs == usual // 4


@pytest.mark.parametrize("protocol", ["mtt", "idc"])
@pytest.mark.parametrize("mode", MODES)
def test_updates_decide_how_long(digits: Digits, mode: str, protocol: str) -> None:
    counts = stage_counts(mode, 30, 3)
    each = sum(-(-count // 8) for count in counts)
    for updates in (1, each, each + 1, 100):
        settings = settings_for(
            with_evaluation(digits, epochs=None, updates=updates, stages=mode, protocol=protocol), digits.model, *counts
        )
        passes = settings.passes()
        assert passes == passes_for(updates, counts, 8) and (passes - 1) * each < updates <= passes * each
    for others in ({"epochs": 3}, {"epochs": None, "same_compute": True}):
        with pytest.raises(ConfigError, match=r"--evaluation.updates=5 .* --evaluation.(epochs=3|same_compute)"):
            settings_for(with_evaluation(digits, updates=5, **others), digits.model, *counts)


def test_updates_are_counted(digits: Digits, monkeypatch: pytest.MonkeyPatch) -> None:
    taken, step = [], raydd.training._step_in_turn
    monkeypatch.setattr("raydd.training._step_in_turn", lambda *arguments: (taken.append(1), step(*arguments))[1])
    for sets, settings in ((prefixes(digits), {"epochs": 1}), (prefixes(digits), {"epochs": None, "updates": 12})):
        taken.clear()
        result = run(digits, sets, **settings)
        assert result.updates == len(taken) == result.epochs // 3 * (2 + 3 + 4) and result.epochs == 6


@pytest.mark.parametrize("carry", [True, False])
def test_it_is_a_loop_on_torch_optim(digits: Digits, carry: bool) -> None:
    """PDD's program: a rate and a drop in every stage, and the momentum of one optimiser throughout; or a fresh one each time."""
    sets, settings = prefixes(digits), settings_for(three_each(digits, 3), digits.model, 10, 20, 30)
    settings, streams = replace(settings, augment="none", strategy="none"), Streams(0, "evaluation", (0,))
    networks = initial(digits.model, streams, "cpu")
    for place, training in enumerate(sets):
        numbers = [
            epoch.number
            for epoch in train_on(digits.model, networks, training, settings, streams, first_epoch=4 * place, carry_momentum=carry)
        ]
        assert numbers == [4 * place + 1, 4 * place + 2, 4 * place + 3, 4 * place + 4]

    theta = torch.nn.Parameter(digits.model.init(stream(0, 0, "evaluation-init")))
    fresh = {"momentum": 0.9, "weight_decay": 5e-4, "foreach": False}
    optimiser = torch.optim.SGD([theta], lr=1.0, **fresh)
    for epoch in range(12):
        training, (stage, own) = sets[epoch // 4], divmod(epoch, 4)
        if own in (0, 3):  # a stage begins, or its rate drops
            optimiser = optimiser if carry else torch.optim.SGD([theta], lr=1.0, **fresh)
            optimiser.param_groups[0]["lr"] = RATES[stage] * (0.1 if own else 1)
        for rows in torch.randperm(len(training.labels), generator=stream(0, epoch, "evaluation-order")).split(8):
            optimiser.zero_grad()
            F.cross_entropy(digits.model(theta, training.images[rows]), training.labels[rows]).backward()
            optimiser.step()
    assert torch.equal(networks.thetas[0], theta.detach())


def test_one_set_is_the_protocols(digits: Digits) -> None:
    """Neither mode nor momentum between stages says anything where there is one set."""
    (alone, *_) = prefixes(digits)
    plain = run(digits, [alone])
    for settings in ({"carry_momentum": False}, {"stages": "sequential"}, {"stages": "union"}):
        assert replace(run(digits, [alone], **settings), seconds=0.0) == replace(plain, seconds=0.0)
    assert plain.stages == (plain.accuracies,) and (plain.epochs, plain.updates) == (4, 8)


@pytest.mark.parametrize("carry", [True, False])
def test_what_each_stage_adds(digits: Digits, carry: bool) -> None:
    """The accuracies after a stage are those of training on the stages up to it; so are points of the curve."""
    sets = prefixes(digits)
    result = run(digits, sets, carry_momentum=carry, samples=1)
    assert [number for number, _ in result.curve] == [4, 8, 12] and tuple(accuracies for _, accuracies in result.curve) == result.stages
    assert result.accuracies == result.stages[-1] and len(set(result.stages)) == 3 and result.lr == RATES[-1]
    for stage in (2,) if carry else (1, 2):  # one set alone drops its momentum with its rate
        assert run(digits, sets[:stage], carry_momentum=carry).accuracies == result.stages[stage - 1]


def test_momentum_makes_a_difference_and_the_batched_pass_none(digits: Digits) -> None:
    sets = prefixes(digits)
    carried, fresh = (run(digits, sets, carry_momentum=carry) for carry in (True, False))
    assert carried.train_loss != fresh.train_loss
    for settings, alone in (({}, carried), ({"carry_momentum": False}, fresh)):
        assert run(digits, sets, together=True, **settings).train_loss == pytest.approx(alone.train_loss, rel=1e-4)


def test_running_statistics_go_on(digits: Digits) -> None:
    model = build(ModelConfig(width=8, depth=2, norm="batch"), (1, 8, 8), 10)
    sets, streams = prefixes(digits, 2), Streams(0, "evaluation", (0, 1))
    result = run(digits, sets, model)
    networks = initial(model, streams, "cpu", statistics=True)
    settings = settings_for(three_each(digits, 2), model, 10, 20)
    for place, training in enumerate(sets):
        for _ in train_on(model, networks, training, settings, streams, first_epoch=4 * place, carry_momentum=True):
            pass
    test = TensorBatches(digits.test.images[:200], digits.test.labels[:200])
    assert result.accuracies == tuple(accuracy(model, networks.thetas, test, statistics=networks.statistics).tolist())


def recorded_epochs(digits: Digits, monkeypatch: pytest.MonkeyPatch, rates: list[float], **settings: Any) -> list[tuple[float, bool]]:
    """(rate, whether momentum is under way) of every epoch of an evaluation; nothing is trained."""
    found: list[tuple[float, bool]] = []

    def record(model: Any, data: Any, networks: Networks, lr: float, recipe: Any, streams: Any, epoch: int, *rest: Any) -> Epoch:
        found.append((lr, networks.velocity is not None))
        networks.velocity = torch.zeros(())
        return Epoch(epoch + 1, torch.zeros(1), torch.zeros(1), 0)

    monkeypatch.setattr("raydd.training.train_epoch", record)
    (alone,) = prefixes(digits, 1)
    test = TensorBatches(digits.test.images[:2], digits.test.labels[:2])
    config = with_evaluation(digits, samples=1, **settings)
    evaluate(config, digits.model, [replace(alone, lr=rate) for rate in rates], test, "cpu", nets=1)
    return found


def expected(schedules: list[list[dict[str, Any]]]) -> list[Any]:
    runs = [one for schedule in schedules for one in schedule]
    return [pytest.approx(one["lr"], rel=1e-12) for one in runs for _ in range(one["epochs"])]


@pytest.mark.golden
@pytest.mark.parametrize("case", ["three_stages_epochs500", "three_stages_epochs1000", "three_stages_epochs20"])
def test_pdds_program_on_mtt(golden: Callable[[str], Any], digits: Digits, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    stages = golden("evaluation_schedules")["pdd_mtt_progressive_evaluation"][case]
    rates = [stage["initial_lr"] for stage in stages]
    found = recorded_epochs(digits, monkeypatch, rates, epochs=stages[0]["epochs_argument"] * (len(stages) + 1) // 2)
    assert [rate for rate, _ in found] == expected([stage["schedule"] for stage in stages])
    places, begun = [], 0
    for stage in stages:
        places += [begun + place for place in stage["epoch_indices_that_start_without_momentum"]]
        begun += stage["training_epochs"]
    assert [place for place, (_, carried) in enumerate(found) if not carried] == places


@pytest.mark.golden
@pytest.mark.parametrize("case", ["stages5_epochs500_repeats1", "stages5_epochs333_repeats1", "stages8_epochs60_repeats2"])
def test_pdds_program_on_idc(golden: Callable[[str], Any], digits: Digits, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    """The first repeat. The program halves its rate from stage 6 on, and for good: here that is a matter of the rates given."""
    stages = golden("evaluation_schedules")["pdd_idc_progressive_evaluation"][case]["runs"][0]
    rates = [stage["schedule"][0]["lr"] for stage in stages]
    epochs = sum(one["epochs"] for one in stages[0]["schedule"])
    found = recorded_epochs(digits, monkeypatch, rates, protocol="idc", epochs=epochs * (len(stages) + 1) // 2)
    assert [rate for rate, _ in found] == expected([stage["schedule"] for stage in stages])
    assert [found[place * epochs][1] for place in range(len(stages))] == [stage["first_epoch_starts_with_momentum"] for stage in stages]
