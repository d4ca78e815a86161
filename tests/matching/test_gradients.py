"""Gradient matching against recorded reference runs, and against plain double backward, class by class."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from raydd.config import ModelConfig
from raydd.matching import gradients
from raydd.matching.distances import Distance, dc_distance, idc_distance
from raydd.models import FlatModel, build
from tests.matching.recorded import assert_near, block_by_block, network, tensor

CLASSES = 3
NETWORKS = {
    "instance": ModelConfig(width=8, depth=2),
    "folded": ModelConfig(width=32, depth=2),
    "group": ModelConfig(width=8, depth=2, norm="group"),
    "layer": ModelConfig(width=8, depth=2, norm="layer"),
    "batch": ModelConfig(width=8, depth=2, norm="batch"),
    "none": ModelConfig(width=8, depth=2, norm="none"),
    "smooth": ModelConfig(width=8, depth=2, activation="swish", pooling="max"),
}


def inputs(model: FlatModel, real: int = 5, synthetic: int = 2) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """theta, real and synthetic images, labels, in float64."""
    generator = torch.Generator().manual_seed(2)
    theta = model.init(generator).double() + 0.1 * torch.randn(model.size, generator=generator).double()
    batches = [torch.randn(CLASSES, count, *model.shape, generator=generator).double() + 0.2 for count in (real, synthetic)]
    return theta, *batches, torch.tensor([2, 0, 3])


def plain(model: FlatModel, theta: Tensor, real: Tensor, images: Tensor, labels: Tensor, distance: Distance) -> tuple[Tensor, Tensor]:
    """Losses and image gradients by double backward, one class after another; the distance is differentiated in one step."""
    losses, towards = [], []
    for x_real, x, label in zip(real, images, labels, strict=True):
        theta, x = theta.detach().requires_grad_(), x.clone().requires_grad_()
        (target,) = torch.autograd.grad(cross_entropy(model(theta, x_real), label.expand(len(x_real))), theta)
        (ours,) = torch.autograd.grad(cross_entropy(model(theta, x), label.expand(len(x))), theta, create_graph=True)
        loss, slope = distance(target, ours.detach())
        losses.append(loss)
        towards += torch.autograd.grad(ours, x, slope)
    return torch.stack(losses), torch.stack(towards)


@pytest.mark.golden
@pytest.mark.parametrize("metric", ["mse", "l1", "l1_mean", "cos"])
def test_idc_equals_the_reference(golden, metric: str) -> None:
    case = golden("idc_match_loss")
    model = network(case, 5)
    theta = block_by_block(tensor(case, "in_theta"), tensor(case, "in_theta_shapes"))
    loss, towards = one_class(case, model, theta, idc_distance(model.layout, metric))
    assert_near(loss, tensor(case, f"out_{metric}_loss"))
    assert_near(towards, tensor(case, f"out_{metric}_grad_images"))


@pytest.mark.golden
@pytest.mark.parametrize("metric", ["rows", "mse", "cos"])
def test_dc_equals_the_reference(golden, metric: str) -> None:
    case, recorded = golden("dc_match_loss"), {"rows": "ours"}.get(metric, metric)
    model = network(case, 4)
    loss, towards = one_class(case, model, tensor(case, "in_theta"), dc_distance(model.layout, metric))
    assert_near(loss, tensor(case, f"out_{recorded}_loss"))
    assert_near(towards, tensor(case, f"out_{recorded}_grad_images"))


def one_class(case: dict, model: FlatModel, theta: Tensor, distance: Distance) -> tuple[Tensor, Tensor]:
    labels = tensor(case, "in_labels_real")[:1]
    real = gradients.class_gradients(model, theta, tensor(case, "in_images_real")[None], labels)
    if "out_gradient_real" in case:
        assert_near(real[0], tensor(case, "out_gradient_real"))
    loss, towards = gradients.match(model, theta, real, tensor(case, "in_images_syn")[None], labels, distance)
    assert_near(gradients.scores(model, theta, real, tensor(case, "in_images_syn")[None], labels, distance), loss, 1e-12)
    return loss[0], towards[0]


@pytest.mark.parametrize("chunk", [1, 2, 3])
@pytest.mark.parametrize("name", NETWORKS)
def test_equals_double_backward_class_by_class(name: str, chunk: int) -> None:
    model = build(NETWORKS[name], (3, 8, 8), 4)
    theta, real, images, labels = inputs(model)
    for distance in (dc_distance(model.layout), idc_distance(model.layout, bias=True, fc=True)):
        target = gradients.class_gradients(model, theta, real, labels, chunk)
        actual = gradients.match(model, theta, target, images, labels, distance, chunk)
        for mine, expected in zip(actual, plain(model, theta, real, images, labels, distance), strict=True):
            assert_near(mine, expected, 1e-10)


def test_one_big_batch_is_another_loss_with_a_batch_norm() -> None:
    """The gradient of a class would depend on the other classes; `chunk` must not let it."""
    model = build(NETWORKS["batch"], (3, 8, 8), 4)
    theta, _, images, labels = inputs(model)
    alone = gradients.class_gradients(model, theta, images, labels, chunk=1)
    assert_near(gradients.class_gradients(model, theta, images, labels, chunk=3), alone, 1e-12)
    theta = theta.requires_grad_()
    logits = model(theta, images.flatten(0, 1)).unflatten(0, images.shape[:2])
    together = torch.stack(
        [torch.autograd.grad(cross_entropy(x, y.expand(2)), theta, retain_graph=True)[0] for x, y in zip(logits, labels, strict=True)]
    )
    assert (together - alone).abs().max() > 1e-3 * alone.abs().max()


def test_the_number_of_threads_changes_nothing() -> None:
    model = build(NETWORKS["folded"], (3, 8, 8), 4)
    theta, real, images, labels = (tensor.float() if tensor.is_floating_point() else tensor for tensor in inputs(model))
    distance, found = idc_distance(model.layout), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            target = gradients.class_gradients(model, theta, real, labels)
            found.append((target, *gradients.match(model, theta, target, images, labels, distance)))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(first, other) for others in found[1:] for first, other in zip(found[0], others, strict=True))


def test_a_set_matches_itself() -> None:
    model = build(NETWORKS["instance"], (3, 8, 8), 4)
    theta, _, images, labels = inputs(model)
    real = gradients.class_gradients(model, theta, images, labels)
    loss, towards = gradients.match(model, theta, real, images, labels, idc_distance(model.layout))
    assert loss.max() < 1e-25 and towards.abs().max() < 1e-12
