"""MTT: recorded iterations of the reference program, its order of mini-batches, and what every method must hold."""

from dataclasses import replace

import pytest
import torch

from raydd.config import Config, MTTConfig, StagesConfig
from raydd.distill import State, apply_update
from raydd.methods import method
from raydd.methods.base import Optimiser, Resources
from raydd.methods.mtt import MTT, MTTDraws, draw
from raydd.models import build
from raydd.progressive import joined
from raydd.types import Candidate, SyntheticSet
from tests.helpers import Table, model, recorded_batches, synthetic, table

CONFIG = Config(mtt=MTTConfig(syn_steps=4, expert_epochs=2, max_start_epoch=2, batch_syn=3))


def make(config: Config = CONFIG, dtype: torch.dtype = torch.float32) -> tuple[MTT, SyntheticSet, MTTDraws]:
    network = model()
    resources = Resources(network, table(network, 3, 4, dtype), torch.device("cpu"))
    data = synthetic(network, dtype=dtype)
    return MTT(config, resources), data, draw(config, data, 0, 0)


@pytest.mark.golden
def test_three_iterations_equal_the_reference(golden) -> None:
    case = golden("mtt_three_iterations")
    config = Config(mtt=MTTConfig(expert_epochs=int(case["in_expert_epochs"])))
    resources = Resources(
        build(replace(config.model, width=16), (3, 32, 32), 4), Table(torch.tensor(case["in_trajectory"])[None]), torch.device("cpu")
    )
    images, labels = torch.tensor(case["in_images"]), torch.tensor(case["in_labels"])
    state = State.start(SyntheticSet(images, labels, torch.tensor(case["in_lr"]), torch.ones_like(labels)))
    # The recorded step size turns negative, which raydd's floor would prevent: here it is lowered out of the way.
    optimiser = Optimiser(float(case["in_lr_img"]), float(case["in_momentum"]), float(case["in_lr_lr"]), -1.0)
    for iteration in range(3):
        draws = MTTDraws((0, iteration, 0), recorded_batches(case[f"in_indices_{iteration}"]))
        update = MTT(config, resources).update(state.synthetic, Candidate(0, 0, int(case["in_start_epochs"][iteration])), draws)
        assert update.loss == pytest.approx(float(case[f"out_loss_{iteration}"]), rel=1e-8)
        assert update.grad_step_size.item() == pytest.approx(float(case[f"out_grad_lr_{iteration}"]), rel=1e-8)
        state = apply_update(state, update, optimiser)
        assert state.synthetic.step_size.item() == pytest.approx(float(case[f"out_lr_after_{iteration}"]), rel=1e-8)
    expected = torch.tensor(case["out_images_after"])
    assert ((state.synthetic.images - expected).abs().max() / expected.abs().max()).item() <= 1e-8


def test_mini_batches_are_permutations_taken_from_the_end() -> None:
    config = Config(mtt=MTTConfig(syn_steps=7, batch_syn=3))
    batches = draw(config, synthetic(model()), 0, 0).batches
    assert [len(batch.indices) for batch in batches] == [2, 3, 3, 2, 3, 3, 2]
    for first in (0, 3):
        seen = torch.cat([batch.indices for batch in batches[first : first + 3]])
        assert sorted(seen.tolist()) == list(range(8))


def union(earlier: int = 3, own: int = 2) -> SyntheticSet:
    """Four classes with so many frozen images of each, and so many of the second stage behind them."""
    network = model()
    return joined(synthetic(network, earlier), replace(synthetic(network, own), stages=torch.full((4 * own,), 2)))


def rows_of(data: SyntheticSet, frozen: bool) -> set[int]:
    per_class = len(data.labels) // 4
    return {row for row in range(len(data.labels)) if (row % per_class < data.frozen) is frozen}


def staged_config(**stages: str) -> Config:
    return Config(mtt=MTTConfig(syn_steps=6), stages=StagesConfig(count=2, **stages))


def test_a_batch_is_as_large_as_the_stage_has_images_of_its_own() -> None:
    """Of all images in turn; two of four classes make 8, and 20 images chunks of 4, 8 and 8."""
    data = union()
    batches = draw(staged_config(), data, 0, 0).batches
    assert [len(batch.indices) for batch in batches] == [4, 8, 8] * 2
    for first in (0, 3):
        assert sorted(torch.cat([batch.indices for batch in batches[first : first + 3]]).tolist()) == list(range(20))
    everything = draw(staged_config(), synthetic(model()), 0, 0).batches
    assert [len(batch.indices) for batch in everything] == [8] * 6


def test_frozen_images_stand_first_in_every_batch() -> None:
    data = union()
    for mode in ("union_chunks", "new_first"):
        for batch in draw(staged_config(batch_mode=mode), data, 0, 0).batches:
            first, last = set(batch.indices[: batch.frozen].tolist()), set(batch.indices[batch.frozen :].tolist())
            assert first <= rows_of(data, True) and last <= rows_of(data, False)


def test_freezing_changes_the_order_within_a_batch_alone() -> None:
    data = union()
    held, free = (draw(staged_config(), each, 0, 0).batches for each in (data, replace(data, frozen=0)))
    assert [sorted(batch.indices.tolist()) for batch in held] == [sorted(batch.indices.tolist()) for batch in free]
    assert not any(batch.frozen for batch in free) and any(batch.frozen for batch in held)


def test_new_images_are_in_every_batch_beside_others_of_the_frozen_ones() -> None:
    data, config = union(), staged_config(batch_mode="new_first")
    fills = []
    for batch in draw(config, data, 0, 0).batches:
        assert set(batch.indices[batch.frozen :].tolist()) == rows_of(data, False)
        assert len(batch.indices) == len(set(batch.indices.tolist())) == 16 and batch.frozen == 8
        fills.append(frozenset(batch.indices[: batch.frozen].tolist()))
    assert len(set(fills)) > 1 and set().union(*fills) == rows_of(data, True)
    few = draw(config, union(earlier=1), 0, 0).batches
    assert all(len(batch.indices) == 12 and batch.frozen == 4 for batch in few)


def test_new_images_are_cut_up_where_they_do_not_fit() -> None:
    """Eight of them in batches of five: chunks of 3 and 5, of which the short one is filled up."""
    config = staged_config(batch_mode="new_first")
    config = replace(config, mtt=replace(config.mtt, batch_syn=5))
    batches = draw(config, union(), 0, 0).batches
    assert [(len(batch.indices), batch.frozen) for batch in batches] == [(5, 2), (5, 0)] * 3
    for first in (0, 2, 4):
        own = torch.cat([batch.indices[batch.frozen :] for batch in batches[first : first + 2]])
        assert set(own.tolist()) == rows_of(union(), False) and len(own) == 8


@pytest.mark.parametrize("batch_syn", [None, 3, 20])
def test_without_frozen_images_both_modes_draw_the_same(batch_syn: int | None) -> None:
    drawn = []
    for mode in ("union_chunks", "new_first"):
        config = replace(staged_config(batch_mode=mode), mtt=MTTConfig(syn_steps=6, batch_syn=batch_syn))
        drawn.append(draw(config, synthetic(model()), 3, 1).batches)
    for one, other in zip(*drawn, strict=True):
        assert torch.equal(one.indices, other.indices) and one.frozen == other.frozen == 0
        assert one.augmentation.operation == other.augmentation.operation
        assert all(torch.equal(value, other.augmentation.values[name]) for name, value in one.augmentation.values.items())


def test_draws_depend_on_seed_step_and_attempt_only() -> None:
    def indices(config: Config, step: int, attempt: int) -> list[list[int]]:
        return [batch.indices.tolist() for batch in draw(config, synthetic(model()), step, attempt).batches]

    assert indices(CONFIG, 3, 0) == indices(CONFIG, 3, 0)
    others = [indices(CONFIG, 4, 0), indices(CONFIG, 3, 1), indices(replace(CONFIG, seed=1), 3, 0)]
    assert all(other != indices(CONFIG, 3, 0) for other in others)


@pytest.mark.parametrize("mode", ["adjoint", "unroll", "tesla"])
def test_score_equals_the_loss_of_the_update(mode: str) -> None:
    config = replace(CONFIG, mtt=replace(CONFIG.mtt, grad_mode=mode))
    instance, data, draws = make(config, torch.float64)
    candidate = Candidate(0, 1, 1)
    assert instance.score(data, candidate, draws).loss == pytest.approx(instance.update(data, candidate, draws).loss, rel=1e-12)


def test_update_has_the_same_bits_with_and_without_a_score_before_it() -> None:
    candidates = [Candidate(0, 1, 1), Candidate(1, 2, 0), Candidate(2, 0, 1)]
    scored, data, draws = make()
    for candidate in candidates:
        scored.score(data, candidate, draws)
    fresh, _, _ = make()
    for candidate in candidates:
        one, other = scored.update(data, candidate, draws), fresh.update(data, candidate, draws)
        assert torch.equal(one.grad_images, other.grad_images) and torch.equal(one.grad_step_size, other.grad_step_size)
        assert one.loss == other.loss


def test_a_kept_walk_is_not_used_for_other_images_or_draws() -> None:
    candidate = Candidate(0, 1, 1)
    instance, data, draws = make()
    instance.score(data, candidate, draws)
    moved = replace(data, images=data.images + 0.1)
    other_draws = draw(CONFIG, data, 1, 0)
    for place in ((moved, candidate, draws), (data, candidate, other_draws), (data, candidate, draws)):
        fresh, _, _ = make()
        assert instance.score(*place).loss == fresh.score(*place).loss


def test_a_kept_walk_is_not_used_after_a_change_in_place() -> None:
    candidate = Candidate(0, 1, 1)
    instance, data, draws = make()
    instance.score(data, candidate, draws)
    data.images.add_(0.1)
    fresh, _, _ = make()
    assert instance.score(data, candidate, draws).loss == fresh.score(data, candidate, draws).loss


def test_start_and_target_are_the_snapshots_of_the_candidate() -> None:
    class Spy:
        def __init__(self, inner: Table):
            self.inner, self.asked = inner, set()

        def theta(self, expert: int, epoch: int) -> torch.Tensor:
            self.asked.add((expert, epoch))
            return self.inner.theta(expert, epoch)

    network = model()
    spy = Spy(table(network, 3, 4))
    data = synthetic(network)
    MTT(CONFIG, Resources(network, spy, torch.device("cpu"))).update(data, Candidate(0, 2, 1), draw(CONFIG, data, 0, 0))
    assert spy.asked == {(2, 1), (2, 3)}


def test_images_of_the_caller_are_left_alone() -> None:
    instance, data, draws = make()
    before = data.images.clone()
    instance.update(data, Candidate(0, 0, 0), draws)
    assert torch.equal(data.images, before) and not data.images.requires_grad


def test_is_registered() -> None:
    entry = method("mtt")
    assert entry.start_epochs(CONFIG) == 2 and entry.optimiser(CONFIG, 8, 0).lr_images == CONFIG.mtt.lr_img
