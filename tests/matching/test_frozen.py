"""Images that are held fixed count in every loss, and the gradient of the others is as it would be without them being fixed."""

from collections.abc import Callable

import pytest
from torch import Tensor

from raydd.matching import both, cafe, features, gradients
from raydd.matching.by_hand import mixes
from raydd.matching.distances import idc_distance
from raydd.matching.memory import class_bytes
from raydd.models import FlatModel, build
from tests.matching.recorded import assert_near
from tests.matching.test_gradients import NETWORKS, inputs


def by_gradients(model: FlatModel, place: tuple, frozen: int) -> tuple[Tensor, Tensor]:
    theta, real, images, labels = place
    target = gradients.class_gradients(model, theta, real, labels)
    return gradients.match(model, theta, target, images, labels, idc_distance(model.layout, "cos"), 2, frozen)


def by_features(model: FlatModel, place: tuple, frozen: int) -> tuple[Tensor, Tensor]:
    theta, real, images, _ = place
    return features.match_features(model, theta, features.mean_features(model, theta, real), images, "mse", 2, frozen)


def by_embedding(model: FlatModel, place: tuple, frozen: int) -> tuple[Tensor, Tensor]:
    theta, real, images, _ = place
    return features.match_features(model.embed, theta, features.mean_features(model.embed, theta, real), images, "l1", 2, frozen)


def by_a_function(model: FlatModel, place: tuple, frozen: int) -> tuple[Tensor, Tensor]:
    theta, real, images, _ = place
    target = features.mean_features(model, theta, real)
    return features.match_features(lambda theta, x: model.embed(theta, x), theta, target, images, "mse", 2, frozen)


def by_both(model: FlatModel, place: tuple, frozen: int) -> tuple[Tensor, Tensor]:
    theta, real, images, labels = place
    target = both.targets(model, theta, real, labels)
    return both.match(model, theta, target, images, labels, idc_distance(model.layout), weight=0.4, frozen=frozen)


def by_cafe(model: FlatModel, place: tuple, frozen: int) -> tuple[Tensor, Tensor]:
    theta, real, images, _ = place
    terms, towards = cafe.match(model, theta, cafe.real_features(model, theta, real, 2), images, cafe.layer_weights(2), 0.01, 2, frozen)
    return terms.loss, towards


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("match", [by_gradients, by_features, by_embedding, by_a_function, by_both, by_cafe])
def test_the_free_images_have_the_gradient_that_they_had(match: Callable, name: str) -> None:
    model = build(NETWORKS[name], (3, 8, 8), 4)
    place = inputs(model, synthetic=4)
    loss, towards = match(model, place, 0)
    for frozen in (1, 3):
        part_loss, part = match(model, place, frozen)
        assert_near(part_loss, loss, 1e-12)
        assert_near(part, towards[:, frozen:], 1e-12)


def test_images_mix_under_a_batch_norm_and_where_nothing_is_known() -> None:
    models = {name: build(config, (3, 8, 8), 4) for name, config in NETWORKS.items()}
    assert {name for name, model in models.items() if mixes(model)} == {"batch"}
    assert [mixes(models[name].embed) for name in ("instance", "batch")] == [False, True]
    assert mixes(lambda theta, images: images)


@pytest.mark.parametrize("name", ["instance", "group", "batch"])
def test_frozen_images_take_less_memory_where_they_leave_nothing(name: str) -> None:
    model = build(NETWORKS[name], (3, 8, 8), 4)
    usual, frozen = class_bytes(model, 4, 40), class_bytes(model, 4, 40, frozen=30)
    assert (frozen < usual) == (name != "batch")
    assert class_bytes(model, 4, 10) <= frozen
