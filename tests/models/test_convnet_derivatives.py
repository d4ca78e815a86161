"""The hand-written derivatives against automatic differentiation in float64."""

import pytest
import torch
from torch import Tensor

from raydd.config import ModelConfig
from raydd.metagrad import autograd_derivatives
from raydd.models import build
from raydd.models import convnet_derivatives as by_hand
from raydd.rng import stream

CLASSES, BATCH = 4, 5
WHOLE, ONE_BY_ONE = 1 << 40, 1


def case(config: ModelConfig, shape: tuple[int, int, int], dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """theta, images, labels and a direction; norms away from 1 and 0, images away from zero mean."""
    generator = torch.Generator().manual_seed(3)
    network = build(config, shape, CLASSES)
    theta = network.init(generator) + 0.1 * torch.randn(network.size, generator=generator)
    images = 2 * torch.randn(BATCH, *shape, generator=generator) + 0.3
    labels = torch.randint(0, CLASSES, (BATCH,), generator=generator)
    return theta.to(dtype), images.to(dtype), labels, torch.randn(network.size, generator=generator).to(dtype)


def both(config: ModelConfig, shape: tuple[int, int, int]) -> tuple[list[Tensor], list[Tensor]]:
    """(gradient, slope, curvature product, image derivative) by automatic differentiation and by hand."""
    theta, images, labels, direction = case(config, shape)
    plain, spec = autograd_derivatives(build(config, shape, CLASSES)), by_hand.spec(config, shape, CLASSES)
    expected = [plain.gradient(theta, images, labels), *plain.pullback(theta, images, labels, direction)]
    return expected, [by_hand.gradient(spec, theta, images, labels)[1], *by_hand.adjoint_step(spec, theta, images, labels, direction)]


def images_alone(config: ModelConfig, shape: tuple[int, int, int]) -> tuple[list[Tensor], list[Tensor]]:
    """Gradient, mean feature, and image derivatives of <gradient, direction>, of <mean feature, weights> and of their sum, both ways."""
    theta, images, labels, direction = case(config, shape)
    model, spec = build(config, shape, CLASSES), by_hand.spec(config, shape, CLASSES)
    theta, images = theta.requires_grad_(), images.requires_grad_()
    (gradient,) = torch.autograd.grad(torch.nn.functional.cross_entropy(model(theta, images), labels), theta, create_graph=True)
    mean = model.embed(theta, images).mean(0)
    weights = torch.randn(len(mean), generator=torch.Generator().manual_seed(4)).double()
    of_gradient, of_mean = (torch.autograd.grad(part, images, retain_graph=True)[0] for part in (gradient @ direction, mean @ weights))
    expected = [gradient.detach(), mean.detach(), of_gradient, of_mean, of_gradient + of_mean]
    network, images = by_hand.prepare(spec, theta.detach()), images.detach()
    found, feature, pullback = by_hand.gradient_and_pullback(spec, network, images, labels)
    again, through_mean = by_hand.mean_feature_and_pullback(spec, network, images)
    assert torch.equal(feature, by_hand.mean_feature(spec, network, images)) and torch.equal(feature, again)
    assert all(torch.equal(*pair) for pair in zip(by_hand.gradient_at(spec, network, images, labels)[1:], (found, feature), strict=True))
    return expected, [found, feature, pullback(direction), through_mean(weights), pullback(direction, weights)]


def assert_equal(config: ModelConfig, shape: tuple[int, int, int]) -> None:
    for quantities in (both, images_alone):
        for expected, actual in zip(*quantities(config, shape), strict=True):
            assert actual.shape == expected.shape
            assert (actual - expected).abs().max() <= 1e-10 * expected.abs().max()


@pytest.mark.parametrize("chunk_bytes", [WHOLE, ONE_BY_ONE])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_equals_double_backward(monkeypatch, depth: int, channels: int, chunk_bytes: int) -> None:
    monkeypatch.setitem(by_hand.CHUNK_BYTES, "cpu", chunk_bytes)
    assert_equal(ModelConfig(width=8, depth=depth), (channels, 16, 16))


@pytest.mark.parametrize(("channels", "width"), [(1, 16), (3, 32)])
def test_equals_double_backward_with_the_first_block_folded(channels: int, width: int) -> None:
    config = ModelConfig(width=width, depth=2)
    assert by_hand.convnet_first_block.folds(by_hand.spec(config, (channels, 8, 8), CLASSES).forms()[0], (channels, 8, 8), width)
    assert_equal(config, (channels, 8, 8))


@pytest.mark.parametrize("chunk_bytes", [WHOLE, ONE_BY_ONE])
@pytest.mark.parametrize(("channels", "depth", "norm"), [(1, 2, "instance"), (3, 3, "instance"), (3, 2, "none")])
def test_equals_double_backward_with_tiled_convolutions(monkeypatch, channels: int, depth: int, norm: str, chunk_bytes: int) -> None:
    monkeypatch.setitem(by_hand.CHUNK_BYTES, "cpu", chunk_bytes)
    monkeypatch.setattr(by_hand, "TILED_WIDTH", 16)
    config, shape = ModelConfig(width=16, depth=depth, norm=norm), (channels, 12 if channels == 1 else 16, 12 if channels == 1 else 16)
    assert any(form.tiled for form in by_hand.spec(config, shape, CLASSES).forms())
    assert_equal(config, shape)


@pytest.mark.parametrize("side", [7, 9, 10, 14])
@pytest.mark.parametrize("width", [8, 32])
def test_equals_double_backward_at_odd_sides(side: int, width: int) -> None:
    assert_equal(ModelConfig(width=width, depth=2), (3, side, side))


@pytest.mark.parametrize("norm", ["instance", "none"])
@pytest.mark.parametrize("pooling", ["avg", "none"])
def test_equals_double_backward_without_norm_or_pooling(norm: str, pooling: str) -> None:
    assert_equal(ModelConfig(width=8, depth=2, norm=norm, pooling=pooling), (3, 8, 8))


def test_loss_is_the_mean_cross_entropy() -> None:
    config, shape = ModelConfig(width=8, depth=2), (3, 8, 8)
    theta, images, labels, _ = case(config, shape)
    loss, _ = by_hand.gradient(by_hand.spec(config, shape, CLASSES), theta, images, labels)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(build(config, shape, CLASSES)(theta, images), labels))


def test_float32_is_as_near_to_float64_as_automatic_differentiation() -> None:
    config, shape = ModelConfig(width=32, depth=3), (3, 16, 16)
    exact = both(config, shape)[0]
    theta, images, labels, direction = case(config, shape, torch.float32)
    spec = by_hand.spec(config, shape, CLASSES)
    actual = by_hand.adjoint_step(spec, theta, images, labels, direction)
    alone = by_hand.gradient_and_pullback(spec, by_hand.prepare(spec, theta), images, labels)[2](direction)
    plain = autograd_derivatives(build(config, shape, CLASSES)).pullback(theta, images, labels, direction)
    for mine, theirs, value in zip((*actual, alone), (*plain, plain[2]), (*exact[1:], exact[3]), strict=True):
        error, usual = ((part - value).norm() / value.norm() for part in (mine, theirs))
        assert mine.dtype == torch.float32
        assert error <= 5 * usual + 1e-6


def test_same_inputs_give_the_same_bits_and_leave_them_alone(monkeypatch) -> None:
    config, shape = ModelConfig(width=32, depth=2), (3, 8, 8)
    spec, inputs = by_hand.spec(config, shape, CLASSES), case(config, shape, torch.float32)
    copies = [tensor.clone() for tensor in inputs]
    monkeypatch.setitem(by_hand.CHUNK_BYTES, "cpu", 2 * 4 * 32 * 64)
    assert by_hand.chunk_size(spec, inputs[1]) == 2
    first, again = (by_hand.adjoint_step(spec, *inputs) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(inputs, copies, strict=True))


def test_the_bias_before_a_normalisation_has_no_derivative() -> None:
    config, shape = ModelConfig(width=8, depth=1), (3, 8, 8)
    theta, images, labels, direction = case(config, shape)
    spec = by_hand.spec(config, shape, CLASSES)
    bias = slice(8 * 27, 8 * 27 + 8)
    assert not by_hand.gradient(spec, theta, images, labels)[1][bias].any()
    assert not by_hand.adjoint_step(spec, theta, images, labels, direction)[1][bias].any()


@pytest.mark.parametrize("changed", [{"norm": "batch"}, {"activation": "swish"}, {"pooling": "max"}, {"name": "resnet18"}])
def test_other_networks_are_refused(changed: dict[str, str]) -> None:
    config = ModelConfig(**changed)
    assert not by_hand.supports(config)
    with pytest.raises(ValueError, match="hand-written"):
        by_hand.spec(config, (3, 8, 8), CLASSES)


def test_chances_in_place_of_labels() -> None:
    """The gradient of a mixed cross-entropy, as automatic differentiation has it."""
    config = ModelConfig(width=4, depth=2)
    network, spec = build(config, (3, 8, 8), 5), by_hand.spec(config, (3, 8, 8), 5)
    theta = network.init(stream(0, 0, "theta")).double()
    images = torch.randn(6, 3, 8, 8, generator=stream(0, 0, "images"), dtype=torch.float64)
    chances = torch.rand(6, 5, generator=stream(0, 0, "chances"), dtype=torch.float64).softmax(1)
    at = theta.clone().requires_grad_()
    expected = torch.nn.functional.cross_entropy(network(at, images), chances)
    loss, gradient = by_hand.gradient(spec, theta, images, chances)
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, at)[0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("per_chunk", [1, 2, 9])
@pytest.mark.parametrize(("channels", "width", "norm"), [(1, 16, "instance"), (3, 32, "instance"), (3, 8, "instance"), (3, 8, "none")])
def test_frozen_images_have_their_part_in_everything_but_the_image_derivatives(
    monkeypatch, channels: int, width: int, norm: str, per_chunk: int
) -> None:
    config, shape = ModelConfig(width=width, depth=2, norm=norm), (channels, 8, 8)
    theta, images, labels, direction = case(config, shape)
    spec = by_hand.spec(config, shape, CLASSES)
    place = (spec, by_hand.prepare(spec, theta), images, labels, direction)
    whole = image_derivatives(*place, 0)
    step = by_hand.adjoint_step(spec, theta, images, labels, direction)
    monkeypatch.setattr(by_hand, "chunk_size", lambda spec, images: per_chunk)
    for frozen in (1, 3, 4):
        assert_near(image_derivatives(*place, frozen), [*whole[:3], *(derivative[frozen:] for derivative in whole[3:])])
    for frozen in (1, 4, BATCH):
        assert_near(by_hand.adjoint_step(spec, theta, images, labels, direction, frozen), (*step[:2], step[2][frozen:]))


def image_derivatives(spec, network, images: Tensor, labels: Tensor, direction: Tensor, frozen: int) -> list[Tensor]:
    """Gradient and mean feature twice, and the three image derivatives that follow them."""
    gradient, feature, pullback = by_hand.gradient_and_pullback(spec, network, images, labels, frozen)
    again, through_mean = by_hand.mean_feature_and_pullback(spec, network, images, frozen)
    weights = torch.arange(len(feature)).double().cos()
    return [gradient, feature, again, pullback(direction), pullback(direction, weights), through_mean(weights)]


def assert_near(found: list[Tensor], expected: list[Tensor]) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.shape == theirs.shape
        assert not theirs.numel() or (mine - theirs).abs().max() <= 1e-12 * theirs.abs().max()


def test_nothing_goes_a_second_way_for_frozen_images(monkeypatch) -> None:
    config, shape = ModelConfig(width=32, depth=2), (3, 8, 8)
    theta, images, labels, direction = case(config, shape)
    spec, seen, second_way = by_hand.spec(config, shape, CLASSES), [], by_hand._second_way

    def spy(spec, network, along, way, *rest) -> Tensor:
        seen.append(len(way.features))
        return second_way(spec, network, along, way, *rest)

    monkeypatch.setattr(by_hand, "_second_way", spy)
    by_hand.gradient_and_pullback(spec, by_hand.prepare(spec, theta), images, labels, 3)[2](direction)
    assert seen == [2]
