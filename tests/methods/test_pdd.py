"""Two recorded steps of the second stage of the reference program: MTT over frozen and new images."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from raydd import metagrad
from raydd.config import Config, ModelConfig, MTTConfig, StagesConfig
from raydd.distill import State, apply_update
from raydd.methods.base import Optimiser, Resources
from raydd.methods.mtt import MTT, MTTDraws
from raydd.models import build
from raydd.progressive import matched, staged_optimiser
from raydd.types import Candidate, SyntheticSet, Update
from tests.helpers import Table


def class_major(case: dict) -> Tensor:
    """Where each row of class-major order, frozen before new, lies in the recording, which has the frozen block first."""
    return torch.argsort(torch.tensor(case["in_labels"]), stable=True)


def start(case: dict) -> State:
    """The recorded state: one frozen image and one new one of each of four classes."""
    order, count = class_major(case), int(case["in_frozen_count"])
    images, labels = torch.tensor(case["in_images"])[order], torch.tensor(case["in_labels"])[order]
    stages = torch.where(order < count, 1, 2)
    step_size = torch.tensor(case["in_lr"])
    earlier, own = (SyntheticSet(images[stages == i], labels[stages == i], step_size, stages[stages == i]) for i in (1, 2))
    return replace(State.start(own), stage=2, earlier=earlier)


def recorded_draws(case: dict, step: int) -> MTTDraws:
    """The recorded batches in class-major rows, those that are frozen first."""
    order = class_major(case)
    batches = []
    for row in case[f"in_indices_{step}"]:
        rows = torch.argsort(order)[torch.tensor(np.sort(row[row >= 0]))]
        batches.append(metagrad.InnerBatch(rows, None, int((row[row >= 0] < int(case["in_frozen_count"])).sum())))
    return MTTDraws((0, step, 0), tuple(batches))


def assert_near(actual: Tensor, expected: np.ndarray) -> None:
    assert (actual - torch.tensor(expected)).abs().max() <= 1e-9 * np.abs(expected).max()


@pytest.mark.golden
@pytest.mark.parametrize("mode", ["adjoint", "unroll"])
def test_two_steps_of_a_second_stage_equal_the_reference(golden, mode: str) -> None:
    case = golden("pdd_frozen_rows")
    config = Config(model=ModelConfig(width=16), mtt=MTTConfig(expert_epochs=1, grad_mode=mode), stages=StagesConfig(count=2))
    network = build(config.model, (3, 32, 32), 4)
    thetas = torch.stack([torch.tensor(case["in_theta_0"]), torch.tensor(case["in_theta_target"])])
    made = MTT(config, Resources(network, Table(thetas[None]), torch.device("cpu")))
    state = start(case)
    # The recorded step size turns negative, which the floor would prevent: here it is lowered out of the way.
    plain = Optimiser(float(case["in_lr_img"]), float(case["in_momentum"]), float(case["in_lr_lr"]), -1.0)
    new = torch.argsort(torch.tensor(case["in_labels"])[int(case["in_frozen_count"]) :])
    for step in range(2):
        union = matched(config, state.earlier, state.synthetic)
        assert union.frozen == 1
        update = made.update(union, Candidate(0, 0, 0), recorded_draws(case, step))
        assert update.loss == pytest.approx(float(case[f"out_loss_{step}"]), rel=1e-9)
        assert_near(update.grad_step_size, case[f"out_grad_lr_{step}"])
        assert_near(update.grad_images, case[f"out_grad_new_{step}"][new.numpy()])
        state = apply_update(state, update, staged_optimiser(config, plain, state.synthetic, 2))
        assert state.synthetic.step_size.item() == pytest.approx(float(case[f"out_lr_after_{step}"]), rel=1e-9)
    after = torch.tensor(case["out_images_after"])[class_major(case)]
    assert_near(state.whole.images, after.numpy())
    frozen = state.whole.stages == 1
    assert torch.equal(state.whole.images[frozen], after[frozen]) and torch.equal(state.earlier.images, start(case).earlier.images)


@pytest.mark.golden
def test_a_gradient_of_zero_as_in_the_reference_leaves_frozen_rows_as_they_are(golden) -> None:
    """Its rule, all images under one optimiser and zeros for the frozen ones, comes to the same bits."""
    case = golden("pdd_frozen_rows")
    state = start(case)
    optimiser = Optimiser(float(case["in_lr_img"]), float(case["in_momentum"]), float(case["in_lr_lr"]), -1.0)
    masked = replace(State.start(replace(state.whole, frozen=0)), stage=2)
    for step in range(2):
        grad = torch.tensor(case[f"out_grad_new_{step}"])
        padded = torch.stack([torch.zeros_like(grad), grad], 1).flatten(0, 1)
        grad_step_size = torch.tensor(case[f"out_grad_lr_{step}"])
        state = apply_update(state, Update(1.0, grad, grad_step_size, 0.0), optimiser)
        masked = apply_update(masked, Update(1.0, padded, grad_step_size, 0.0), optimiser)
    assert torch.equal(masked.synthetic.images, state.whole.images)
    assert not torch.equal(state.whole.images, start(case).whole.images)
