"""Steps of the images against stepping class by class, as the reference program does, and against torch's SGD."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from raydd import optimise
from raydd.decode import Decoding, decode
from raydd.distill import State, apply_update
from raydd.matching import gradients
from raydd.matching.distances import idc_distance
from raydd.methods.base import Optimiser
from raydd.types import SyntheticSet, Update
from tests.matching.recorded import assert_near, block_by_block, network, tensor

IPC, SHAPE = 2, (1, 2, 2)


def start(classes: int, dtype: torch.dtype = torch.float64) -> State:
    images = torch.rand(classes * IPC, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=dtype) * 1.4 - 0.2
    labels = torch.arange(classes).repeat_interleave(IPC)
    return State.start(SyntheticSet(images, labels, torch.tensor(0.01, dtype=dtype), torch.ones_like(labels)))


def loss(images: Tensor, step: int) -> Tensor:
    """Some loss of each class, (C,): smooth, other in every step, and without any coupling of classes."""
    target = torch.rand(images.shape, generator=torch.Generator().manual_seed(step), dtype=torch.float64).to(images.dtype)
    return (images + 0.2 * images.square() - 4 * target + 1.5).square().unflatten(0, (-1, IPC)).sum((1, 2, 3, 4))


def gradient(images: Tensor, step: int, label: int | None = None) -> Tensor:
    images = images.clone().requires_grad_()
    losses = loss(images, step)
    return torch.autograd.grad(losses.sum() if label is None else losses[label], images)[0]


def sequentially(images: Tensor, classes: int, lr: float, momentum: float, steps: int, lifetime: int) -> list[Tensor]:
    """The reference: one SGD over all images, stepped once for each class; clamped where a network lifetime begins."""
    leaf = images.clone().requires_grad_()
    sgd, after = torch.optim.SGD([leaf], lr, momentum), []
    for step in range(steps):
        if step % lifetime == 0:
            leaf.data.clamp_(0, 1)
        for label in range(classes):
            leaf.grad = gradient(leaf.detach(), step, label)
            sgd.step()
        after.append(leaf.detach().clone())
    return after


def at_once(state: State, classes: int, optimiser: Optimiser, steps: int, lifetime: int) -> list[Tensor]:
    """All classes in one step of raydd."""
    after = []
    for step in range(steps):
        if step % lifetime == 0:
            state = replace(state, synthetic=optimise.begun(state.synthetic, optimiser))
        grad = gradient(optimise.seen(state.synthetic, state.pending).images, step)
        if optimiser.class_sum:
            grad = grad / classes  # of the mean over the classes
        state = apply_update(state, Update(1.0, grad, torch.zeros(()), 0.0), optimiser)
        after.append(state.synthetic.images)
    return after


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("classes", [1, 2, 5, 30])
def test_classes_at_once_equal_classes_in_turn(classes: int, momentum: float) -> None:
    """After every step, through the clamps of three lifetimes: so a snapshot is that of the reference at any moment."""
    lr = 0.06 * (1 - momentum)
    ours = at_once(start(classes), classes, Optimiser(lr, momentum, class_order=True, clamp=True), 12, 4)
    theirs = sequentially(start(classes).synthetic.images, classes, lr, momentum, 12, 4)
    for one, other in zip(ours, theirs, strict=True):
        assert_near(one, other, 1e-11)
    assert any(images.min() < 0 or images.max() > 1 for images in theirs), "clamping every step would go unseen"


@pytest.mark.parametrize("class_order", [True, False])
def test_a_mean_over_the_classes_is_stepped_as_their_sum(class_order: bool) -> None:
    plain = Optimiser(0.05, 0.5, class_order=class_order, clamp=True)
    ours, theirs = (at_once(start(5), 5, each, 6, 3) for each in (replace(plain, class_sum=True), plain))
    for one, other in zip(ours, theirs, strict=True):
        assert_near(one, other, 1e-11)


def test_one_class_is_plain_momentum() -> None:
    ours = at_once(start(1), 1, Optimiser(0.05, 0.5, class_order=True), 6, 99)
    theirs = at_once(start(1), 1, Optimiser(0.05, 0.5), 6, 99)
    for one, other in zip(ours, theirs, strict=True):
        assert_near(one, other, 1e-11)


def test_without_an_order_of_classes_it_is_one_step_of_sgd() -> None:
    leaf = start(3).synthetic.images.clone().requires_grad_()
    sgd = torch.optim.SGD([leaf], 0.05, 0.5)
    for step, images in enumerate(at_once(start(3), 3, Optimiser(0.05, 0.5), 5, 99)):
        leaf.grad = gradient(leaf.detach(), step)
        sgd.step()
        assert_near(images, leaf.detach(), 1e-14)


def test_the_order_of_classes_matters() -> None:
    """Plain momentum in its place would be another optimiser."""
    ours, other = (at_once(start(5), 5, Optimiser(0.05, 0.5, class_order=order), 6, 99)[-1] for order in (True, False))
    assert (ours - other).abs().max() > 0.05 * (ours - start(5).synthetic.images).abs().max()


def test_single_precision_stays_single() -> None:
    state = start(3, torch.float32)
    for step in range(2):
        grad = gradient(state.synthetic.images, step)
        state = apply_update(state, Update(1.0, grad, torch.zeros(()), 0.0), Optimiser(0.05, 0.5, class_order=True))
    assert {state.synthetic.images.dtype, state.velocity_images.dtype, state.pending.dtype} == {torch.float32}


def test_weights_of_the_first_and_the_last_class() -> None:
    """The last moves by one step of its own; the first by all that its momentum carries it, and nothing is left for later."""
    own, later = optimise.class_weights(torch.tensor([0, 1, 2]), 3, 0.5)
    assert own.flatten().tolist() == [1.75, 1.5, 1.0] and later.flatten().tolist() == [0.0, 0.25, 0.75]


def test_clamping_is_for_methods_that_ask_for_it() -> None:
    state = start(3)
    clamped = optimise.begun(state.synthetic, Optimiser(1.0, 0.5, clamp=True)).images
    assert clamped.min() == 0 and clamped.max() == 1
    assert optimise.begun(state.synthetic, Optimiser(1.0, 0.5)) is state.synthetic


@pytest.mark.golden
def test_two_steps_over_two_classes_equal_the_reference(golden) -> None:
    """Decoding, matching and momentum together."""
    case = golden("idc_class_steps")
    model = network({**case, "in_images_syn": case["in_data"]}, 5)
    theta = block_by_block(tensor(case, "in_theta"), tensor(case, "in_theta_shapes"))
    mean, std = (torch.tensor(each, dtype=torch.float64)[:, None, None] for each in ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.201)))
    labels, factor = torch.arange(2), int(case["in_factor"])
    real = gradients.class_gradients(model, theta, (tensor(case, "in_images_real") - mean) / std, labels)
    state = State.start(SyntheticSet(tensor(case, "in_data"), labels, torch.tensor(0.01), torch.ones(2)))
    recorded = tensor(case, "out_losses").unflatten(0, (2, 2))
    for step in range(2):
        images = optimise.seen(state.synthetic, state.pending).images.requires_grad_()
        seen = (decode(images[:, None], Decoding("pixels", factor)) - mean) / std
        losses, towards = gradients.match(model, theta, real, seen.detach(), labels, idc_distance(model.layout))
        (grad,) = torch.autograd.grad(seen, images, towards)
        assert_near(losses, recorded[step])
        if step == 0:
            assert_near(grad[0], tensor(case, "out_grad_first")[0])
        optimiser = Optimiser(float(case["in_lr_img"]), float(case["in_momentum"]), class_order=True)
        state = apply_update(state, Update(1.0, grad, torch.zeros(()), 0.0), optimiser)
    assert_near(state.synthetic.images, tensor(case, "out_data_after"))
