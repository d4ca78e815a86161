"""Gradients and mean features together against a recorded reference run, and against each by itself."""

import pytest
import torch

from raydd.config import ModelConfig
from raydd.matching import both, features, gradients
from raydd.matching.distances import idc_distance
from raydd.models import build
from tests.matching.recorded import assert_near, block_by_block, network, tensor


@pytest.mark.golden
@pytest.mark.parametrize("metric", ["mse", "l1"])
def test_dream_plus_equals_the_reference(golden, metric: str) -> None:
    case = golden("dreamplus_match_loss")
    model, labels = network(case, 4), tensor(case, "in_labels_real")[:1]
    theta = block_by_block(tensor(case, "in_theta"), tensor(case, "in_theta_shapes"))
    distance, images = idc_distance(model.layout, metric), tensor(case, "in_images_syn")[None]
    real = both.targets(model, theta, tensor(case, "in_images_real")[None], labels)
    losses, towards = both.match(model, theta, real, images, labels, distance, metric)
    assert_near(losses[0], tensor(case, f"out_{metric}_loss"))
    assert_near(towards[0], tensor(case, f"out_{metric}_grad_images"))
    assert torch.equal(both.scores(model, theta, real, images, labels, distance, metric), losses)


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_both_are_the_weighted_sum_of_each(norm: str) -> None:
    model = build(ModelConfig(width=32, depth=2, norm=norm), (3, 8, 8), 3)
    generator = torch.Generator().manual_seed(2)
    theta, labels, distance = model.init(generator).double(), torch.tensor([1, 0]), idc_distance(model.layout, "l1")
    reals, images = (torch.randn(2, count, 3, 8, 8, generator=generator).double() for count in (4, 3))
    real = both.targets(model, theta, reals, labels)
    losses, towards = both.match(model, theta, real, images, labels, distance, weight=0.3)
    assert_near(real.gradients, gradients.class_gradients(model, theta, reals, labels), 1e-12)
    assert_near(real.features, features.mean_features(model, theta, reals, 1), 1e-12)
    first, second = (
        gradients.match(model, theta, real.gradients, images, labels, distance),
        features.match_features(model, theta, real.features, images, chunk=1),
    )
    assert_near(losses, first[0] + 0.3 * second[0], 1e-12)
    assert_near(towards, first[1] + 0.3 * second[1], 1e-11)
    assert_near(both.scores(model, theta, real, images, labels, distance, weight=0.3), losses, 1e-12)
