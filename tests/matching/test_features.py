"""Distribution matching against recorded reference runs and against automatic differentiation."""

import pytest
import torch
from torch import Tensor

from raydd.config import ModelConfig
from raydd.matching import features
from raydd.models import FlatModel, build
from tests.matching.recorded import assert_near, block_by_block, network, tensor


@pytest.mark.golden
@pytest.mark.parametrize(("name", "classes"), [("dm_one_class", 1), ("dm_three_classes", 3)])
@pytest.mark.parametrize(("chunk", "by_hand"), [(None, False), (1, False), (2, False), (2, True)])
def test_dm_equals_the_reference(golden, name: str, classes: int, chunk: int | None, by_hand: bool) -> None:
    case = golden(name)
    model, theta = network(case, classes), tensor(case, "in_theta")
    model = model if by_hand else model.embed
    real = features.mean_features(model, theta, tensor(case, "in_images_real"), chunk)
    images = tensor(case, "in_images_syn").unflatten(0, (classes, -1))
    losses, towards = features.match_features(model, theta, real, images, chunk=chunk)
    assert_near(losses.sum(), tensor(case, "out_loss"))
    assert_near(towards.flatten(0, 1), tensor(case, "out_grad_images"))


@pytest.mark.golden
@pytest.mark.parametrize("metric", ["mse", "l1"])
def test_the_feature_term_of_dream_plus_equals_the_reference(golden, metric: str) -> None:
    case = golden("dreamplus_match_loss")
    model = network(case, 4)
    theta = block_by_block(tensor(case, "in_theta"), tensor(case, "in_theta_shapes"))
    real = features.mean_features(model, theta, tensor(case, "in_images_real")[None])
    assert_near(real[0], tensor(case, "out_mean_feature_real"))
    losses, _ = features.match_features(model, theta, real, tensor(case, "in_images_syn")[None], metric)
    assert_near(losses[0], tensor(case, f"out_{metric}_feature_term"))


def inputs(model: FlatModel) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    batches = [torch.randn(3, count, *model.shape, generator=generator).double() for count in (4, 2)]
    return model.init(generator).double(), *batches


@pytest.mark.parametrize(("norm", "width"), [("instance", 32), ("none", 8), ("batch", 8)])
@pytest.mark.parametrize("metric", ["mse", "l1"])
def test_the_gradient_is_that_of_the_plain_sum(norm: str, width: int, metric: str) -> None:
    model = build(ModelConfig(width=width, depth=2, norm=norm), (3, 8, 8), 3)
    theta, real, images = inputs(model)
    losses, towards = features.match_features(model, theta, features.mean_features(model, theta, real), images, metric)
    images.requires_grad_()
    means = [model.embed(theta, batch.flatten(0, 1)).view(3, batch.shape[1], -1).mean(1) for batch in (real, images)]
    plain = sum((x - y).pow(2).sum() if metric == "mse" else (x - y).abs().sum() for x, y in zip(*means, strict=True))
    torch.testing.assert_close(losses.sum(), plain.detach(), rtol=1e-12, atol=0)
    assert_near(towards, torch.autograd.grad(plain, images)[0], 1e-11)


def test_equal_images_have_equal_means() -> None:
    model = build(ModelConfig(width=8, depth=2), (3, 8, 8), 3)
    theta, real, _ = inputs(model)
    losses, towards = features.match_features(model, theta, features.mean_features(model, theta, real), real)
    assert not losses.any() and not towards.any()


def test_unknown_metrics_are_named() -> None:
    with pytest.raises(ValueError, match="'l2'; known: mse, l1"):
        features.feature_distance("l2", torch.zeros(1, 2), torch.zeros(1, 2))
