"""The trajectory gradient against recorded runs of the reference program and against full automatic differentiation."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from raydd import metagrad
from raydd.augment import dsa
from raydd.config import DSA_OPERATIONS, Config, ModelConfig, MTTConfig
from raydd.models import build
from tests.augment.test_dsa import recorded_draw
from tests.helpers import batches, model, recorded_batches, synthetic, table


def relative(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()


DERIVATIVES = {"autograd": metagrad.autograd_derivatives, "fastest": metagrad.derivatives_of}


def three_ways(network, start: Tensor, target: Tensor, data, inner, kind="fastest") -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    derivatives = DERIVATIVES[kind](network)
    place = (data.images, data.labels, data.step_size, inner)
    thetas = metagrad.walk(derivatives, start, *place)
    return {
        "adjoint": metagrad.adjoint(derivatives, thetas, target, *place),
        "unroll": metagrad.unroll(network, start, target, *place),
        "tesla": metagrad.adjoint(derivatives, thetas, target, *place, chain=False),
    }


@pytest.mark.golden
@pytest.mark.parametrize("kind", ["full", "batch3"])
@pytest.mark.parametrize("steps", [1, 4, 8])
@pytest.mark.parametrize("mode", ["autograd", "fastest", "unroll"])
def test_equals_the_reference_unroll(golden, kind: str, steps: int, mode: str) -> None:
    case = golden("mtt_unroll")
    network = build(ModelConfig(width=16), (3, 32, 32), 4)
    images, labels, start, target = (torch.tensor(case[f"in_{name}"]) for name in ("images", "labels", "theta_0", "theta_target"))
    place = (images, labels, torch.tensor(case["in_lr"]), recorded_batches(case[f"in_indices_N{steps}_{kind}"]))
    derivatives = DERIVATIVES.get(mode, metagrad.autograd_derivatives)(network)
    thetas = metagrad.walk(derivatives, start, *place)
    assert relative(thetas[-1], torch.tensor(case[f"out_N{steps}_{kind}_theta_N"])) <= 1e-9
    if mode == "unroll":
        result = metagrad.unroll(network, start, target, *place)
    else:
        result = metagrad.adjoint(derivatives, thetas, target, *place)
    for actual, name in zip(result, ("loss", "grad_images", "grad_lr"), strict=True):
        assert relative(actual, torch.tensor(case[f"out_N{steps}_{kind}_{name}"])) <= 1e-9, name


@pytest.mark.golden
@pytest.mark.parametrize("kind", DERIVATIVES)
def test_equals_the_reference_through_the_augmentation(golden, kind: str) -> None:
    case = golden("mtt_unroll_augmented")
    network = build(ModelConfig(width=16), (3, 32, 32), 4)
    augmentation = [recorded_draw(case, DSA_OPERATIONS[op], f"in_step{step}") for step, op in enumerate(case["in_operation"])]
    inner = recorded_batches(case["in_indices"], augmentation)
    place = (torch.tensor(case["in_images"]), torch.tensor(case["in_labels"]), torch.tensor(case["in_lr"]), inner)
    derivatives = DERIVATIVES[kind](network)
    thetas = metagrad.walk(derivatives, torch.tensor(case["in_theta_0"]), *place)
    result = metagrad.adjoint(derivatives, thetas, torch.tensor(case["in_theta_target"]), *place)
    assert relative(thetas[-1], torch.tensor(case["out_theta_N"])) <= 1e-8
    for actual, name in zip(result, ("loss", "grad_images", "grad_lr"), strict=True):
        assert relative(actual, torch.tensor(case[f"out_{name}"])) <= 1e-8, name


@pytest.mark.parametrize("batch_syn", [None, 3])
@pytest.mark.parametrize("operation", [*DSA_OPERATIONS, "color_crop_cutout_flip_scale_rotate", "none"])
@pytest.mark.parametrize("kind", DERIVATIVES)
def test_adjoint_equals_unroll(batch_syn: int | None, operation: str, kind: str) -> None:
    network = model()
    data, experts = synthetic(network, dtype=torch.float64), table(network, 1, 1, torch.float64)
    config = Config(mtt=MTTConfig(syn_steps=9, batch_syn=batch_syn))
    config = replace(config, augment=replace(config.augment, strategy=operation))
    ways = three_ways(network, experts.theta(0, 0), experts.theta(0, 1), data, batches(config, len(data.images), 8), kind)
    for actual, expected in zip(ways["adjoint"], ways["unroll"], strict=True):
        assert relative(actual, expected) <= 1e-10


def test_tesla_is_exact_for_one_inner_step_only() -> None:
    network = model()
    data, experts = synthetic(network, dtype=torch.float64, step_size=0.1), table(network, 1, 1, torch.float64)
    for steps, equal in ((1, True), (8, False)):
        inner = batches(Config(mtt=MTTConfig(syn_steps=steps)), len(data.images), 8)
        ways = three_ways(network, experts.theta(0, 0), experts.theta(0, 1), data, inner)
        assert relative(ways["tesla"][0], ways["unroll"][0]) <= 1e-12
        for actual, expected in zip(ways["tesla"][1:], ways["unroll"][1:], strict=True):
            assert (relative(actual, expected) <= 1e-10) == equal


def test_step_size_gradient_equals_a_central_difference() -> None:
    # A smooth activation: through ReLU the unrolled loss has kinks, and a wide difference lies.
    network = model(ModelConfig(width=8, depth=2, activation="swish"))
    data, experts = synthetic(network, dtype=torch.float64), table(network, 1, 1, torch.float64)
    inner = batches(Config(mtt=MTTConfig(syn_steps=5)), len(data.images), 8)
    derivatives, start, target = metagrad.derivatives_of(network), experts.theta(0, 0), experts.theta(0, 1)

    def loss(step_size: float, images: Tensor = data.images) -> float:
        thetas = metagrad.walk(derivatives, start, images, data.labels, torch.tensor(step_size, dtype=torch.float64), inner)
        return metagrad.matching_loss(thetas[-1], start, target).item()

    _, grad_images, grad_step_size = three_ways(network, start, target, data, inner)["adjoint"]
    middle, half = data.step_size.item(), 1e-6
    assert (loss(middle + half) - loss(middle - half)) / (2 * half) == pytest.approx(grad_step_size.item(), rel=1e-6)
    direction = torch.randn(data.images.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    difference = (loss(middle, data.images + half * direction) - loss(middle, data.images - half * direction)) / (2 * half)
    assert difference == pytest.approx((grad_images * direction).sum().item(), rel=1e-6)


def test_rows_outside_the_batches_get_no_gradient() -> None:
    network = model()
    data, experts = synthetic(network, dtype=torch.float64), table(network, 1, 1, torch.float64)
    inner = tuple(metagrad.InnerBatch(torch.tensor([0, 2]), None) for _ in range(3))
    for result in three_ways(network, experts.theta(0, 0), experts.theta(0, 1), data, inner).values():
        assert (result[1][[1, 3, 4, 5, 6, 7]] == 0).all() and (result[1][[0, 2]] != 0).any()


def test_no_graph_is_left_behind() -> None:
    network = model()
    data, experts = synthetic(network), table(network, 1, 1)
    inner = (metagrad.InnerBatch(torch.arange(8), dsa.DsaDraw("flip", {"flip": torch.rand(8)})),)
    for result in three_ways(network, experts.theta(0, 0), experts.theta(0, 1), data, inner).values():
        assert not any(tensor.requires_grad for tensor in result)


@pytest.mark.parametrize("operation", ["color_crop_cutout_flip_scale_rotate", "none"])
@pytest.mark.parametrize("kind", DERIVATIVES)
def test_frozen_rows_train_the_student_and_get_no_gradient(kind: str, operation: str) -> None:
    """Batches begin with their frozen rows 0, 2, 4 and 6; one has nothing else, another none of them."""
    network = model()
    data, experts = synthetic(network, dtype=torch.float64), table(network, 1, 1, torch.float64)
    rows = [[2, 6, 1, 5], [0, 4], [3, 7, 1], [4, 0, 6, 2, 3]]
    frozen = [sum(row % 2 == 0 for row in own) for own in rows]
    generator = torch.Generator().manual_seed(0)
    drawn = [dsa.draw(generator, operation, len(own), 8, "per-image") for own in rows]
    free = tuple(metagrad.InnerBatch(torch.tensor(own), each) for own, each in zip(rows, drawn, strict=True))
    held = tuple(replace(batch, frozen=count) for batch, count in zip(free, frozen, strict=True))
    place = (network, experts.theta(0, 0), experts.theta(0, 1), data)
    whole, part = (three_ways(*place, inner, kind)["adjoint"] for inner in (free, held))
    assert relative(part[0], whole[0]) <= 1e-12 and relative(part[2], whole[2]) <= 1e-12
    assert relative(part[1][1::2], whole[1][1::2]) <= 1e-12
    assert not part[1][::2].any() and whole[1][::2].flatten(1).any(1).all()
