"""The rules of stages: the order of the images, what is frozen, where steps and start epochs begin, and which rates move what."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from raydd import progressive
from raydd.config import Config, MTTConfig, StagesConfig, override
from raydd.distill import State, apply_update, distill, is_done, is_stage_done, next_stage
from raydd.errors import ConfigError
from raydd.executor import InlineExecutor
from raydd.methods import check
from raydd.methods.base import Optimiser
from raydd.types import SyntheticSet, Update
from tests.methods.contract import case, settings

CLASSES, IPC = 3, 2


def block(stage: int, ipc: int = IPC) -> SyntheticSet:
    """Images whose pixels all say class, stage and place: 100 c + 10 s + j."""
    labels = torch.arange(CLASSES).repeat_interleave(ipc)
    values = 100 * labels + 10 * stage + torch.arange(CLASSES * ipc) % ipc
    images = values.float()[:, None, None, None].expand(-1, 1, 2, 2).clone()
    return SyntheticSet(images, labels, torch.tensor(stage / 100), torch.full_like(labels, stage))


def values(synthetic: SyntheticSet) -> list[int]:
    return synthetic.images[:, 0, 0, 0].int().tolist()


def union(stages: int) -> SyntheticSet:
    whole = None
    for stage in range(1, stages + 1):
        whole = progressive.joined(whole and replace(whole, frozen=0), block(stage))
    return whole


def config(**changes: Any) -> Config:
    stages = {"count": 3} | changes
    return Config(ipc=IPC, steps=5, mtt=MTTConfig(max_start_epoch=4), stages=StagesConfig(**stages))


def same(one: SyntheticSet, other: SyntheticSet) -> bool:
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("images", "labels", "stages"))


# Images


def test_images_are_class_major_and_by_stage_within_a_class() -> None:
    whole = union(3)
    assert values(whole) == [100 * c + 10 * s + j for c in range(3) for s in (1, 2, 3) for j in range(2)]
    assert whole.labels.tolist() == [0] * 6 + [1] * 6 + [2] * 6
    assert whole.stages.tolist() == [1, 1, 2, 2, 3, 3] * 3
    assert whole.step_size == block(3).step_size


def test_the_images_of_earlier_stages_are_frozen() -> None:
    assert [union(stages).frozen for stages in (1, 2, 3)] == [0, 2, 4]
    assert progressive.joined(None, block(1)) is not None and progressive.joined(block(1), block(2, ipc=1)).frozen == 2
    for stages in (1, 2, 3):
        whole = union(stages)
        free = whole.images.unflatten(0, (CLASSES, -1))[:, whole.frozen :].flatten(0, 1)
        assert torch.equal(free, block(stages).images)


def test_unions_and_blocks_come_out_as_they_went_in() -> None:
    whole = union(3)
    for stage in (1, 2, 3):
        assert same(progressive.of_stage(whole, stage), block(stage)) and progressive.of_stage(whole, stage).frozen == 0
        assert same(progressive.up_to(whole, stage), union(stage)) and progressive.up_to(whole, stage).frozen == 0
    again = progressive.joined(progressive.up_to(whole, 2), progressive.of_stage(whole, 3))
    assert same(again, whole) and again.frozen == 4


def test_what_the_method_sees() -> None:
    earlier, own = replace(union(2), frozen=0), block(3)
    assert same(progressive.matched(config(), earlier, own), union(3))
    assert progressive.matched(config(conditioning=False), earlier, own) is own
    assert progressive.matched(config(), None, own) is own


# Steps and rates


def test_steps_are_numbered_through() -> None:
    assert [progressive.first_step(config(), stage) for stage in (1, 2, 3, 4)] == [0, 5, 10, 15]
    assert progressive.total_steps(config()) == 15


def test_schedules_begin_anew_with_every_stage() -> None:
    assert [progressive.progress(config(), step) for step in (0, 2, 4, 5, 9, 10)] == [0, 0.5, 1, 0, 1, 0]
    assert progressive.progress(replace(config(), steps=1), 2) == 0


def test_start_epochs_move_on_without_transition_alone() -> None:
    assert [progressive.start_epoch_offset(config(), stage) for stage in (1, 2, 3)] == [0, 0, 0]
    assert [progressive.start_epoch_offset(config(transition=False), stage) for stage in (1, 2, 3)] == [0, 4, 8]


def test_the_rate_grows_with_the_stage_where_that_is_asked_for() -> None:
    base = Optimiser(3.0, 0.5)
    for stage in (1, 2, 3):
        assert progressive.staged_optimiser(config(), base, block(stage), stage) == base
        assert progressive.staged_optimiser(config(scale_lr=True), base, block(stage), stage).lr_images == 3.0 * stage


def test_earlier_images_have_a_share_of_the_rate_where_that_is_asked_for() -> None:
    whole, scaled = replace(union(2), frozen=0), config(frozen_lr_scale=0.25)
    assert progressive.staged_optimiser(scaled, Optimiser(3.0, 0.5), block(1), 1).rates is None
    optimiser = progressive.staged_optimiser(scaled, Optimiser(3.0, 0.0), whole, 2)
    state = replace(State.start(whole), stage=2)
    moved = apply_update(state, Update(1.0, torch.ones_like(whole.images), torch.zeros(()), 0.0), optimiser).synthetic.images - whole.images
    assert torch.equal(moved[whole.stages == 2], torch.full((6, 1, 2, 2), -3.0))
    assert torch.equal(moved[whole.stages == 1], torch.full((6, 1, 2, 2), -0.75))


# The loop


def test_an_update_moves_the_block_of_its_stage_alone() -> None:
    earlier = replace(union(2), frozen=0)
    state = replace(State.start(block(3)), stage=3, step=10, earlier=earlier, step_sizes=(0.01, 0.02))
    gradient = torch.randn(block(3).images.shape, generator=torch.Generator().manual_seed(0))
    after = apply_update(state, Update(1.0, gradient, torch.zeros(()), 0.0), Optimiser(3.0, 0.5))
    assert same(after.earlier, union(2)) and (after.stage, after.step_sizes, after.step) == (3, (0.01, 0.02), 11)
    assert torch.equal(after.synthetic.images, block(3).images - 3 * gradient)
    assert same(progressive.up_to(after.whole, 2), union(2)) and after.whole.frozen == 4


def test_a_new_stage_begins_with_everything_learned_put_aside() -> None:
    state = replace(State.start(block(1)), step=5, velocity_images=torch.ones(6, 1, 2, 2), skips=2, pending=torch.ones(6, 1, 2, 2))
    second = next_stage(config(), state, block(2))
    assert (second.stage, second.step, second.skips, second.pending) == (2, 5, 0, None)
    assert same(second.synthetic, block(2)) and same(second.earlier, block(1)) and second.step_sizes == (block(1).step_size.item(),)
    assert not second.velocity_images.any() and second.velocity_images.shape == (6, 1, 2, 2)
    third = next_stage(config(), replace(second, step=10), block(3))
    assert same(third.earlier, union(2)) and third.earlier.frozen == 0 and third.whole.frozen == 4
    assert third.step_sizes == tuple(block(stage).step_size.item() for stage in (1, 2))


def test_earlier_images_that_move_are_part_of_the_block() -> None:
    scaled = config(frozen_lr_scale=0.25)
    third = next_stage(scaled, next_stage(scaled, State.start(block(1)), block(2)), block(3))
    assert third.earlier is None and same(third.synthetic, union(3)) and third.synthetic.frozen == 0


@pytest.mark.parametrize("name", ["mtt", "dsa", "idc", "dm"])
@pytest.mark.parametrize("conditioning", [True, False])
def test_stages_in_turn(name: str, conditioning: bool) -> None:
    """Two stages of two steps: the first is a run of its own, bit for bit, and the second leaves it alone."""
    found = case(name, steps=2, stages__count=2, stages__conditioning=conditioning)
    alone = distill(replace(found.config, stages=StagesConfig()), State.start(found.synthetic), found.executor())
    first = distill(found.config, State.start(found.synthetic), found.executor())
    assert torch.equal(first.synthetic.images, alone.synthetic.images)
    assert is_stage_done(found.config, first) and not is_done(found.config, first)
    later = replace(found.synthetic, stages=found.synthetic.stages + 1)
    records: list[dict[str, Any]] = []
    executor = InlineExecutor(found.fresh())
    last = distill(found.config, next_stage(found.config, first, later), executor, lambda state, record: records.append(record))
    assert is_done(found.config, last) and [(record["step"], record["stage"]) for record in records] == [(2, 2), (3, 2)]
    assert torch.equal(progressive.of_stage(last.whole, 1).images, first.synthetic.images)
    assert (last.synthetic.images != later.images).flatten(1).any(1).all()


# Settings


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"stages.count": 0}, "--stages.count=0 must be at least 1"),
        ({"stages.count": 2, "steps": 0}, "--steps=0 with --stages.count above 1"),
        ({"stages.networks": 0}, "--stages.networks=0 must be at least 1"),
        ({"stages.transition_epochs": 0}, "--stages.transition_epochs=0 must be at least 1"),
        ({"stages.real_lr": 0.0}, "--stages.real_lr=0.0 must be above 0"),
        ({"stages.frozen_lr_scale": -0.1}, "--stages.frozen_lr_scale=-0.1 must be at least 0"),
        ({"stages.frozen_lr_scale": 0.1, "stages.conditioning": False}, "--stages.frozen_lr_scale=0.1 moves the images of earlier stages"),
        ({"stages.frozen_lr_scale": 1.5}, "--stages.frozen_lr_scale=1.5 is a share of the rate"),
        ({"stages.scale_lr": True, "stages.conditioning": False}, "--stages.scale_lr makes up for the earlier images"),
        ({"stages.batch_mode": "new_first", "stages.conditioning": False}, "--stages.batch_mode=new_first fills batches up"),
        ({"stages.frozen_lr_scale": 0.1, "stages.batch_mode": "new_first"}, "--stages.batch_mode=new_first puts earlier images behind"),
        ({"method": "dm", "stages.batch_mode": "new_first"}, "--stages.batch_mode=new_first does not go with --method dm"),
    ],
)
def test_settings_that_do_not_go_together(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check(override(Config(), changes))
    (problem,) = caught.value.problems
    assert problem.startswith(told)


def test_settings_that_do() -> None:
    check(override(Config(), {"stages.count": 5, "stages.scale_lr": True, "stages.batch_mode": "new_first"}))
    check(override(Config(), {"stages.count": 5, "stages.transition": False, "stages.frozen_lr_scale": 0.1}))
    check(settings("dm", stages__count=3, stages__transition=False, stages__conditioning=False))
