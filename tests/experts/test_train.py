"""Expert trajectories: the recipe of the reference, and what an expert depends on."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from raydd.config import Config
from raydd.data import Resident
from raydd.errors import DivergenceError
from raydd.experts.train import Snapshot, phases, training_recipe, trajectories
from raydd.models import FlatModel, build
from raydd.rng import stream
from raydd.training import Phase
from tests.experts.conftest import Setting


def parts(setting: Setting) -> tuple[FlatModel, Resident]:
    model = build(setting.config.model, setting.dataset.shape, len(setting.dataset.classes))
    return model, Resident.load(setting.dataset.train, setting.transform, "cpu")


def walk(setting: Setting, experts: list[int], epochs: int = 3, start: Snapshot | None = None) -> list[Snapshot]:
    return list(trajectories(setting.config, *parts(setting), experts, epochs, "cpu", start))


def test_the_recipe_is_that_of_the_reference() -> None:
    recipe = training_recipe(Config())
    assert (recipe.batch_size, recipe.momentum, recipe.weight_decay) == (256, 0.0, 0.0)
    assert recipe.strategy == "color_crop_cutout_flip_scale_rotate" and recipe.parameters == "per-image"
    assert phases(Config(), 50) == (Phase(0.01, 50),)
    config = Config()
    decaying = replace(config, experts=replace(config.experts, decay=True, epochs=50))
    assert [(phase.lr, phase.epochs) for phase in phases(decaying, 50)] == [(0.01, 27), (pytest.approx(0.001), 23)]


def test_snapshots_are_those_of_torch_optim(setting: Setting) -> None:
    setting = setting.but(augment=False)
    model, data = parts(setting)
    snapshots = walk(setting, [1])
    theta = torch.nn.Parameter(model.init(stream(4, 0, "expert-init", 1)))
    optimiser = torch.optim.SGD([theta], lr=0.01)
    assert torch.equal(snapshots[0].thetas[0], theta.detach())
    for epoch in range(3):
        for rows in torch.randperm(80, generator=stream(4, epoch, "expert-order", 1)).split(32):
            images, labels = data.batch(rows)
            optimiser.zero_grad()
            F.cross_entropy(model(theta, images), labels).backward()
            optimiser.step()
        assert torch.equal(snapshots[epoch + 1].thetas[0], theta.detach())
    assert [snapshot.epoch for snapshot in snapshots] == [0, 1, 2, 3]
    assert [snapshot.images for snapshot in snapshots] == [0, 80, 80, 80]
    assert snapshots[3].loss[0] < snapshots[1].loss[0] and 0 <= snapshots[3].accuracy[0] <= 1


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_an_expert_is_the_same_alone_and_among_others(setting: Setting, momentum: float) -> None:
    setting = setting.but(momentum=momentum)
    alone, among = walk(setting, [2]), walk(setting, [0, 2, 1])
    for one, three in zip(alone, among, strict=True):
        assert torch.equal(one.thetas[0], three.thetas[1])
    assert [snapshot.loss[0] for snapshot in alone[1:]] == [snapshot.loss[1] for snapshot in among[1:]]


def test_experts_differ_from_each_other_and_between_seeds(setting: Setting) -> None:
    thetas = walk(setting, [0, 1])[-1].thetas
    other = walk(replace(setting, config=replace(setting.config, experts=replace(setting.config.experts, seed=5))), [0])[-1].thetas
    assert not torch.equal(thetas[0], thetas[1]) and not torch.equal(thetas[0], other[0])


@pytest.mark.parametrize("options", [{}, {"decay": True}, {"weight_decay": 0.01}], ids=str)
def test_taking_up_a_trajectory_changes_no_bit(setting: Setting, options: dict[str, object]) -> None:
    setting = setting.but(**options)
    whole = walk(setting, [0, 1], epochs=5)
    rest = walk(setting, [0, 1], epochs=5, start=whole[4])
    assert [snapshot.epoch for snapshot in rest] == [4, 5]
    assert torch.equal(rest[-1].thetas, whole[-1].thetas) and rest[-1].loss == whole[-1].loss


def test_the_batched_pass_trains_the_same_experts(setting: Setting) -> None:
    looped, batched = walk(setting, [0, 1]), walk(setting.but(together=2), [0, 1])
    torch.testing.assert_close(batched[-1].thetas, looped[-1].thetas, rtol=1e-3, atol=1e-4)


def test_divergence_names_the_expert_and_the_setting(setting: Setting) -> None:
    with pytest.raises(DivergenceError, match=r"Expert 6 diverged in epoch \d+.*Lower --experts\.lr=1e\+30"):
        walk(setting.but(lr=1e30), [6])
