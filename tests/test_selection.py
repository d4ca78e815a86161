"""Candidates and choices against the formulas of the paper and simple counting."""

import math
from collections import Counter
from dataclasses import replace

import pytest

from raydd import selection
from raydd.config import Config, ExpertConfig, SelectionConfig

CONFIG = Config(experts=ExpertConfig(count=10), selection=SelectionConfig(policy="dynadistill", candidates=3))


def with_selection(**settings) -> Config:
    return replace(CONFIG, selection=replace(CONFIG.selection, **settings))


def test_worked_example_of_the_specification() -> None:
    # specs/mtt_pdd.md section 4.2: losses .5, .7, .9 at temperature .5.
    chances = selection.probabilities(SelectionConfig(policy="dynadistill"), [0.5, 0.7, 0.9], 0)
    assert chances == pytest.approx([0.47, 0.32, 0.21], abs=0.005)
    mirrored = selection.probabilities(SelectionConfig(policy="dynadistill", sign=1.0), [0.5, 0.7, 0.9], 0)
    assert mirrored == pytest.approx(chances[::-1])


def test_softmax_survives_huge_losses_and_ignores_non_finite_ones() -> None:
    policy = SelectionConfig(policy="dynadistill")
    assert selection.probabilities(policy, [1e6, 2e6, 3e6], 0) == [1.0, 0.0, 0.0]
    with_nan = selection.probabilities(policy, [0.5, math.nan, 0.7, math.inf], 0)
    assert with_nan[1] == with_nan[3] == 0 and sum(with_nan) == pytest.approx(1)
    assert with_nan[0] / with_nan[2] == pytest.approx(math.exp(0.4))
    assert selection.probabilities(policy, [math.nan, math.inf], 0) == [0, 0]


@pytest.mark.parametrize("policy", ["uniform", "dynadistill"])
def test_uniform_and_sign_zero_are_by_lot(policy: str) -> None:
    chances = selection.probabilities(SelectionConfig(policy=policy, sign=0.0), [0.1, 5.0, 2.0], 0)
    assert chances == pytest.approx([1 / 3] * 3)


def test_tiny_temperatures_and_zero_losses_give_probabilities() -> None:
    cold = SelectionConfig(policy="dynadistill", temperature=1e-320)
    assert selection.probabilities(cold, [0.5, 0.2, 0.9], 0) == [0, 1, 0]
    assert selection.probabilities(cold, [0.2, 0.2, 0.9], 0) == [0.5, 0.5, 0]
    zeros = SelectionConfig(policy="dynadistill", normalise="mean")
    assert selection.probabilities(zeros, [0.0, 0.0], 0) == [0.5, 0.5]


def test_temperature_may_multiply() -> None:
    """specs/idc_dream_pdd.md section 5.2: the printed formula has no place for it."""
    multiplied = SelectionConfig(policy="dynadistill", temperature=4.0, temperature_place="multiply")
    divided = SelectionConfig(policy="dynadistill", temperature=0.25)
    losses = [0.5, 0.7, 0.9]
    assert selection.probabilities(multiplied, losses, 0) == pytest.approx(selection.probabilities(divided, losses, 0))
    weights = [math.exp(-4 * loss) for loss in losses]
    assert selection.probabilities(multiplied, losses, 0) == pytest.approx([weight / sum(weights) for weight in weights])
    assert selection.probabilities(replace(multiplied, temperature=1e300), [0.5, 0.2, 0.9], 0) == [0, 1, 0]


def test_annealing_moves_a_temperature_that_multiplies() -> None:
    annealed = SelectionConfig(policy="annealed", temperature=1.0, final_temperature=100.0, temperature_place="multiply")
    early, late = (selection.probabilities(annealed, [0.5, 0.6], progress) for progress in (0.0, 1.0))
    assert early[0] == pytest.approx(1 / (1 + math.exp(-0.1))) and late[0] == pytest.approx(1 / (1 + math.exp(-10)))


def test_relative_scores_are_divided_by_the_size_of_what_is_matched() -> None:
    """A loss of 6 on gradients of squared norm 12 is better than one of 4 on 5."""
    relative = SelectionConfig(policy="dynadistill", normalise="relative")
    weights = [math.exp(-0.5 / 0.5), math.exp(-0.8 / 0.5)]
    assert selection.probabilities(relative, [6.0, 4.0], 0, [12.0, 5.0]) == pytest.approx([weight / sum(weights) for weight in weights])
    greedy = replace(relative, policy="greedy")
    assert selection.probabilities(greedy, [6.0, 4.0], 0, [12.0, 5.0]) == [1, 0]
    assert selection.probabilities(replace(greedy, normalise="none"), [6.0, 4.0], 0, [12.0, 5.0]) == [0, 1]


def test_a_relative_score_without_size_is_never_chosen() -> None:
    relative = SelectionConfig(policy="uniform", normalise="relative")
    assert selection.probabilities(relative, [1.0, 2.0, 3.0], 0, [1.0, 0.0, math.nan]) == [1, 0, 0]
    assert selection.probabilities(relative, [1.0, 2.0], 0, [0.0, 0.0]) == [0, 0]
    assert selection.probabilities(replace(relative, normalise="mean"), [1.0, 3.0], 0, [0.0, 1.0]) == [0.5, 0.5]


def test_greedy_takes_the_best_and_the_first_of_equals() -> None:
    greedy = SelectionConfig(policy="greedy")
    assert selection.probabilities(greedy, [0.5, 0.2, 0.2], 0) == [0, 1, 0]
    assert selection.probabilities(replace(greedy, sign=1.0), [0.5, 0.2, 0.7], 0) == [0, 0, 1]
    assert selection.probabilities(greedy, [math.nan, 0.2, 0.3], 0) == [0, 1, 0]


def test_annealed_moves_temperature_geometrically_and_sign_linearly() -> None:
    annealed = SelectionConfig(policy="annealed", temperature=1.0, final_temperature=0.01, sign=-1.0, final_sign=1.0)
    assert selection.schedule(annealed, 0) == (1.0, -1.0)
    assert selection.schedule(annealed, 0.5) == pytest.approx((0.1, 0.0))
    assert selection.schedule(annealed, 1) == pytest.approx((0.01, 1.0))
    assert selection.schedule(replace(annealed, policy="dynadistill"), 0.5) == (1.0, -1.0)


def test_normalisations() -> None:
    assert selection.normalised("mean", [1.0, 3.0]) == [0.5, 1.5]
    assert selection.normalised("zscore", [1.0, 3.0]) == [-1.0, 1.0]
    assert selection.normalised("zscore", [2.0, 2.0]) == [0.0, 0.0]
    assert selection.normalised("none", [2.0, 3.0]) == [2.0, 3.0]


def test_choices_follow_their_probabilities() -> None:
    counts = Counter(selection.choose([0.2, 0.0, 0.8], seed=1, step=step, attempt=0) for step in range(3000))
    assert counts[1] == 0
    assert counts[0] / 3000 == pytest.approx(0.2, abs=0.03)


def test_candidates_are_different_experts_with_their_own_start_epochs() -> None:
    steps = [selection.draw_candidates(CONFIG, 5, step, 0) for step in range(200)]
    assert all(len({c.expert for c in step}) == 3 and [c.index for c in step] == [0, 1, 2] for step in steps)
    assert {c.expert for step in steps for c in step} == set(range(10))
    assert {c.epoch for step in steps for c in step} == set(range(5))
    assert any(len({c.epoch for c in step}) > 1 for step in steps)


def test_first_candidate_is_that_of_the_base_method() -> None:
    for step in range(20):
        assert selection.draw_candidates(CONFIG, 5, step, 0)[0] == selection.draw_candidates(with_selection(candidates=1), 5, step, 0)[0]


def test_share_start_gives_one_start_epoch() -> None:
    steps = [selection.draw_candidates(with_selection(share_start=True), 5, step, 0) for step in range(50)]
    assert all(len({c.epoch for c in step}) == 1 for step in steps)
    assert len({step[0].epoch for step in steps}) == 5


def test_pool_limits_the_experts() -> None:
    drawn = {c.expert for step in range(100) for c in selection.draw_candidates(with_selection(pool=4), 5, step, 0)}
    assert drawn == {0, 1, 2, 3}


def test_without_replacement_each_expert_comes_once_in_a_pass() -> None:
    config = with_selection(replacement=False, candidates=5)
    for first in (0, 2, 4):
        experts = [c.expert for step in (first, first + 1) for c in selection.draw_candidates(config, 5, step, 0)]
        assert sorted(experts) == list(range(10))


def test_entropy() -> None:
    assert selection.entropy([1.0, 0.0]) == 0
    assert selection.entropy([0.25] * 4) == pytest.approx(math.log(4))
