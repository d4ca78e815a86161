"""The loop: optimiser rule, guards, base-method equality and interruption."""

import math
from dataclasses import replace

import pytest
import torch

from raydd.config import Config, ExpertConfig, GuardConfig, MTTConfig, SelectionConfig
from raydd.distill import State, apply_update, distill
from raydd.errors import DivergenceError
from raydd.executor import InlineExecutor
from raydd.methods.base import Optimiser, Resources
from raydd.methods.mtt import MTT
from raydd.rng import stream
from raydd.types import Score, Update
from tests.helpers import model, synthetic, table
from tests.methods.contract import case, settings, stored_images

CONFIG = Config(
    steps=6,
    experts=ExpertConfig(count=4),
    mtt=MTTConfig(syn_steps=3, expert_epochs=1, max_start_epoch=2, lr_img=10.0),
    selection=SelectionConfig(policy="dynadistill", candidates=3),
)


def executor(config: Config = CONFIG) -> InlineExecutor:
    network = model()
    return InlineExecutor(MTT(config, Resources(network, table(network, 4, 3), torch.device("cpu"))))


def start() -> State:
    return State.start(synthetic(model()))


def equal(one: State, other: State) -> bool:
    return (
        torch.equal(one.synthetic.images, other.synthetic.images)
        and torch.equal(one.synthetic.step_size, other.synthetic.step_size)
        and torch.equal(one.velocity_images, other.velocity_images)
        and one.step == other.step
    )


class Broken:
    """Scores and updates of which chosen steps are not finite."""

    transfer_seconds = 0.0

    def __init__(self, bad_scores=(), bad_updates=()):
        self.inner, self.calls = executor(), 0
        self.bad_scores, self.bad_updates = bad_scores, bad_updates

    def score(self, synthetic, candidates, draws):
        scores = self.inner.score(synthetic, candidates, draws)
        step, attempt = draws.key[1:]
        bad = self.bad_scores.get((step, attempt), ()) if isinstance(self.bad_scores, dict) else ()
        return [Score(math.nan, 0.0) if index in bad else score for index, score in enumerate(scores)]

    def update(self, synthetic, candidate, draws):
        self.calls += 1
        update = self.inner.update(synthetic, candidate, draws)
        if draws.key[1:] in self.bad_updates or draws.key[1] in self.bad_updates:
            return replace(update, grad_images=update.grad_images * math.inf)
        return update


def test_optimiser_is_torch_sgd_with_momentum() -> None:
    state = start()
    images, size = state.synthetic.images.clone().requires_grad_(), state.synthetic.step_size.clone().requires_grad_()
    theirs = torch.optim.SGD([{"params": [images], "lr": 3.0}, {"params": [size], "lr": 1e-3}], momentum=0.5)
    for step in range(4):
        generator = torch.Generator().manual_seed(step)
        grads = torch.randn(images.shape, generator=generator), torch.randn((), generator=generator)
        images.grad, size.grad = grads
        theirs.step()
        state = apply_update(state, Update(1.0, *grads, 0.0), Optimiser(3.0, 0.5, 1e-3, 1e-6))
        torch.testing.assert_close(state.synthetic.images, images.detach())
        torch.testing.assert_close(state.synthetic.step_size, size.detach())


def test_step_size_stays_positive_and_can_rise_again() -> None:
    state, optimiser = start(), Optimiser(0.0, 0.9, 1.0, 1e-6)
    zero = torch.full_like(state.synthetic.images, 1e-9)
    state = apply_update(state, Update(1.0, zero, torch.tensor(5.0), 0.0), optimiser)
    assert state.synthetic.step_size == torch.tensor(1e-6) and state.velocity_step_size == 0
    state = apply_update(state, Update(1.0, zero, torch.tensor(-0.5), 0.0), optimiser)
    assert state.synthetic.step_size.item() == pytest.approx(0.5, rel=1e-4)


def test_one_candidate_equals_the_base_method_whatever_the_policy() -> None:
    ends = []
    for policy in ("uniform", "dynadistill", "greedy", "annealed"):
        config = replace(CONFIG, selection=SelectionConfig(policy=policy, candidates=1))
        ends.append(distill(config, start(), executor(config)))
    assert all(equal(end, ends[0]) for end in ends)
    assert not torch.equal(ends[0].synthetic.images, start().synthetic.images)


def test_stopped_and_continued_equals_uninterrupted() -> None:
    whole = distill(CONFIG, start(), executor())
    part = distill(CONFIG, start(), executor(), should_stop=iter([False, False, True]).__next__)
    assert part.step == 2
    assert equal(distill(CONFIG, part, executor()), whole)


def test_records_say_what_happened() -> None:
    records = []
    distill(CONFIG, start(), executor(), on_step=lambda state, record: records.append(record))
    assert [record["step"] for record in records] == list(range(6))
    for record in records:
        chances = [candidate["probability"] for candidate in record["candidates"]]
        assert sum(chances) == pytest.approx(1) and len(chances) == 3
        assert record["loss"] == record["candidates"][record["chosen"]]["score"]
        assert (record["temperature"], record["sign"]) == (0.5, -1.0)
        assert 0 < record["entropy"] <= math.log(3) + 1e-12
        assert record["seconds"]["total"] >= record["seconds"]["score"] + record["seconds"]["update"] > 0


def test_low_losses_are_chosen_more_often_with_sign_minus_one() -> None:
    means = {}
    for sign in (-1.0, 1.0):
        config = replace(CONFIG, steps=25, selection=replace(CONFIG.selection, sign=sign, temperature=0.01))
        config = replace(config, mtt=replace(config.mtt, lr_img=1e-6))
        records = []
        distill(config, start(), executor(config), on_step=lambda state, record, into=records: into.append(record))
        means[sign] = sum(record["loss"] for record in records)
    assert means[-1.0] < means[1.0]


def test_a_non_finite_candidate_is_never_chosen() -> None:
    records = []
    broken = Broken(bad_scores={(step, 0): (0, 2) for step in range(6)})
    distill(CONFIG, start(), broken, on_step=lambda state, record: records.append(record))
    assert all(record["chosen"] == 1 and record["candidates"][0]["score"] is None for record in records)


def test_a_step_without_finite_candidate_is_redrawn() -> None:
    records = []
    broken = Broken(bad_scores={(2, 0): (0, 1, 2)})
    end = distill(CONFIG, start(), broken, on_step=lambda state, record: records.append(record))
    assert records[2]["attempt"] == 1 and not records[2]["skipped"] and end.step == 6
    (failed,) = records[2]["failed"]
    assert [candidate["score"] for candidate in failed] == [None] * 3 and "failed" not in records[1]


def test_a_hopeless_step_is_skipped_and_leaves_the_images_alone() -> None:
    states, records = [], []
    broken = Broken(bad_updates={3})
    distill(CONFIG, start(), broken, on_step=lambda state, record: (states.append(state), records.append(record)))
    assert records[3]["skipped"] and records[3]["attempt"] == CONFIG.guard.redraws
    assert torch.equal(states[3].synthetic.images, states[2].synthetic.images)
    assert states[3].skips == 1 and states[4].skips == 0


def test_images_without_any_gradient_count_as_diverged() -> None:
    state, optimiser = start(), Optimiser(1.0, 0.5, 1e-3, 1e-6)
    zero = torch.zeros_like(state.synthetic.images)
    assert apply_update(state, Update(1.0, zero, torch.tensor(0.1), 0.0), optimiser) is None
    zero[3, 0, 2, 2] = 1e-12
    assert apply_update(state, Update(1.0, zero, torch.tensor(0.1), 0.0), optimiser) is not None


def test_too_many_skips_stop_the_run_at_its_last_good_state() -> None:
    config = replace(CONFIG, guard=GuardConfig(redraws=1, max_skips=2))
    seen = []
    with pytest.raises(DivergenceError, match=r"2 steps in a row.*--mtt\.lr_img=10"):
        distill(config, start(), Broken(bad_updates={2, 3, 4, 5}), on_step=lambda state, record: seen.append(state))
    assert torch.isfinite(seen[-1].synthetic.images).all() and seen[-1].step == 4


# Methods whose networks train


class Failing:
    """An executor whose answers at step 2 are not finite: the update, or the scores of the slots in `bad`."""

    transfer_seconds = 0.0

    def __init__(self, name: str, bad: tuple[int, ...] | None = None):
        self._inner, self._bad = case(name).executor(), bad
        self.births: list[list[int]] = []

    def begin(self, births):
        self.births.append(births)
        return self._inner.begin(births)

    def score(self, synthetic, candidates, draws):
        scores = self._inner.score(synthetic, candidates, draws)
        if self._bad is None or draws.step != 2:
            return scores
        return [replace(s, loss=math.nan) if c.expert in self._bad else s for s, c in zip(scores, candidates, strict=True)]

    def update(self, synthetic, candidate, draws):
        update = self._inner.update(synthetic, candidate, draws)
        return replace(update, loss=math.nan) if self._bad is None and draws.step == 2 else update

    def __getattr__(self, name):
        return getattr(self._inner, name)


def states_of(config: Config, broken: Failing) -> list[State]:
    states = []
    distill(config, State.start(stored_images()), broken, lambda state, record: states.append(state))
    return states


def test_a_network_that_fails_is_given_up_with_its_lifetime() -> None:
    """Lifetimes of three updates: the second fails in its last, so that the next begins at once, and images stay as they were."""
    broken = Failing("dc")
    states = states_of(settings("dc", steps=6), broken)
    assert broken.births == [[0], [1]]
    assert [(state.pool.outer, state.pool.inner) for state in states] == [(0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0)]
    assert torch.equal(states[2].synthetic.images, states[1].synthetic.images) and states[2].skips == 1
    assert states[2].pool.networks == (None,) and states[3].pool.networks[0].born == 1


def test_networks_without_finite_score_are_given_up() -> None:
    """Step 2 chooses among two slots of three. Those tried last are begun anew; the third, which may have served before, stays."""
    config = replace(settings("dm", steps=4), selection=SelectionConfig(candidates=2, pool=3, slots="put_back", max_age=0))
    tried = torch.randperm(3, generator=stream(0, 2, "slots", config.guard.redraws))[:2].tolist()
    broken = Failing("dm", (0, 1, 2))
    states = states_of(config, broken)
    assert [slot for slot, network in enumerate(states[2].pool.networks) if network is None] == sorted(tried)
    assert broken.births == [[0, 1, 2], [3, 4]] and not states[3].skips


def test_one_network_without_finite_score_is_never_chosen() -> None:
    config = replace(settings("dm", steps=4), selection=SelectionConfig(candidates=3, pool=3, slots="put_back"))
    records = []
    distill(config, State.start(stored_images()), Failing("dm", (0, 1)), lambda state, record: records.append(record))
    assert records[2]["candidates"][records[2]["chosen"]]["expert"] == 2
    assert sum(candidate["score"] is None for candidate in records[2]["candidates"]) == 2
