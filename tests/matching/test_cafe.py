"""CAFE's terms against a recorded reference run, and against automatic differentiation of the formula."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from raydd.config import ModelConfig
from raydd.matching import cafe
from raydd.models import build
from tests.matching.recorded import assert_near, network, tensor


@pytest.mark.golden
@pytest.mark.parametrize("chunk", [None, 4])
def test_every_term_equals_the_reference(golden, chunk: int | None) -> None:
    case = golden("cafe_losses")
    model, theta = network(case, 10), tensor(case, "in_theta")
    images = tensor(case, "in_images_syn").unflatten(0, (10, -1))
    real = cafe.real_features(model, theta, tensor(case, "in_images_real").unflatten(0, (10, -1)), chunk)
    *weights, factor = case["in_weights"].tolist()
    assert tuple(weights) == cafe.layer_weights(3) and factor == cafe.FACTOR
    terms, towards = cafe.match(model, theta, real, images, weights, factor, chunk)
    assert_near(terms.layers, tensor(case, "out_layer_terms"))
    assert_near(terms.centres, tensor(case, "out_centre_distance"))
    assert_near(terms.cross_entropy, tensor(case, "out_cross_entropy_sum"))
    assert_near(terms.loss, tensor(case, "out_align_loss") + tensor(case, "out_disc_loss"))
    assert_near(towards.flatten(0, 1), tensor(case, "out_align_grad_images") + tensor(case, "out_disc_grad_images"))


@pytest.mark.parametrize("chunk", [None, 1, 2])
@pytest.mark.parametrize(("depth", "norm", "pooling"), [(1, "instance", "avg"), (2, "none", "none"), (3, "group", "max")])
def test_any_depth_class_count_and_size(depth: int, norm: str, pooling: str, chunk: int | None) -> None:
    model = build(ModelConfig(width=8, depth=depth, norm=norm, pooling=pooling), (1, 8, 8), 3)
    generator = torch.Generator().manual_seed(2)
    theta = model.init(generator).double()
    reals, images = (torch.randn(3, count, 1, 8, 8, generator=generator).double() for count in (4, 2))
    weights = cafe.layer_weights(depth)
    terms, towards = cafe.match(model, theta, cafe.real_features(model, theta, reals, chunk), images, weights, chunk=chunk)
    images.requires_grad_()
    ours, theirs = ([maps.unflatten(0, batch.shape[:2]) for maps in model.maps(theta, batch.flatten(0, 1))] for batch in (images, reals))
    loss = sum(w * (x.mean(1) - y.mean(1)).pow(2).sum() for w, x, y in zip(weights, ours, theirs, strict=True))
    centres, features = ours[-1].mean(1).flatten(1), theirs[-1].flatten(2)
    loss = loss + (centres - features.mean(1)).pow(2).sum()
    loss = loss + 0.01 * cross_entropy(features.flatten(0, 1) @ centres.T, torch.arange(3).repeat_interleave(4), reduction="sum")
    torch.testing.assert_close(terms.loss, loss.detach(), rtol=1e-12, atol=0)
    assert_near(towards, torch.autograd.grad(loss, images)[0], 1e-11)


def test_maps_are_taken_before_pooling_and_the_last_one_after_it() -> None:
    model = build(ModelConfig(width=4, depth=2), (3, 8, 8), 3)
    theta = model.init(torch.Generator().manual_seed(0))
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    maps = model.maps(theta, images)
    assert [tuple(map_.shape) for map_ in maps] == [(2, 4, 8, 8), (2, 4, 4, 4), (2, 4, 2, 2)]
    assert torch.equal(maps[-1].flatten(1), model.embed(theta, images))
    assert all((map_ >= 0).all() and (map_ == 0).any() for map_ in maps[:2])
