"""DM: a fresh network for every update, mean features of all classes, and batch statistics that no chunk changes."""

import pytest
import torch

from raydd.config import Config, DMConfig
from raydd.methods import chunks, method, networks
from tests.methods.contract import CLASSES, case, same, walk


def test_every_update_has_a_network_of_its_own() -> None:
    found = case("dm", steps=4)
    state, records = walk(found.config, found.executor())
    assert state.pool.births == 4 and state.pool.outer == 4 and state.pool.networks == (None,)
    assert [(record["outer"], record["inner"]) for record in records] == [(step, 0) for step in range(4)]
    assert len({record["loss"] for record in records}) == 4


def test_no_network_is_trained() -> None:
    found = case("dm")
    network = found.candidates[0].network
    assert found.fresh().advance(found.synthetic, network, found.draws) is network


def test_real_and_synthetic_images_are_augmented() -> None:
    losses = set()
    for strategy in ("none", "color", "flip_cutout"):
        found = case("dm", augment__strategy=strategy)
        losses.add(found.fresh().score(found.synthetic, found.candidates[0], found.draws).loss)
    assert len(losses) == 3


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_batch_statistics_are_those_of_all_classes_together(norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the reference does it; without batch normalisation a chunk changes nothing, so it may be small."""
    found = case("dm", torch.float64, model__norm=norm, augment__strategy="none")
    monkeypatch.setitem(chunks.CHUNK_IMAGES, "cpu", 1)
    model, theta, real = found.resources.model, found.candidates[0].network.theta, found.resources.real
    batches = [real.images(real.random_rows(5, 0, 0, "real-batch", 0)).flatten(0, 1), found.synthetic.images]
    one, other = (model.embed(theta, batch).unflatten(0, (CLASSES, -1)).mean(1) for batch in batches)
    asked = (found.synthetic, found.candidates[0], found.draws)
    expected = (one - other).square().sum(1).mean().item()
    assert found.fresh().score(*asked).loss == pytest.approx(expected, rel=1e-10)
    assert found.fresh().update(*asked).loss == pytest.approx(expected, rel=1e-10)


def test_the_size_of_a_score_is_that_of_the_real_mean_features() -> None:
    found = case("dm", torch.float64, augment__strategy="none")
    model, real = found.resources.model, found.resources.real
    features = model.embed(found.candidates[0].network.theta, real.images(real.random_rows(5, 0, 0, "real-batch", 0)).flatten(0, 1))
    means = features.unflatten(0, (CLASSES, -1)).mean(1)
    score = found.fresh().score(found.synthetic, found.candidates[0], found.draws)
    assert score.size == pytest.approx(means.square().sum(1).mean().item(), rel=1e-10)


def test_image_rates_come_from_the_settings() -> None:
    assert method("dm").optimiser(Config(dm=DMConfig(lr_img=10.0)), 32, 0) == networks.image_optimiser(10.0, 0.5)
    assert same(method("dm").problems(Config(), None), [])
