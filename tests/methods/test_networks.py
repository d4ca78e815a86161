"""What the methods with networks share: keys, streams of a step, fresh networks, and training on the synthetic set."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from raydd.config import Config, SelectionConfig
from raydd.metagrad import derivatives_of
from raydd.methods import networks
from raydd.methods.base import DataFacts
from raydd.methods.networks import StepKey
from raydd.rng import stream
from raydd.training import Recipe
from raydd.types import Candidate
from tests.helpers import table
from tests.methods.contract import SHAPE, case, stored_images

RESOURCES = case("dc").resources
MODEL = RESOURCES.model


def test_a_key_names_the_step_and_the_one_after_it() -> None:
    key = networks.draw_key(Config(seed=4), stored_images(), 7, 2)
    assert (key.seed, key.step, key.attempt) == key.key == (4, 7, 2)
    assert key.next() == StepKey((4, 8, 0))


def test_candidates_share_a_stream_unless_they_shall_not() -> None:
    one, two = Candidate(0, 5, 0), Candidate(1, 5, 0)
    assert networks.purpose(Config(), "real", one) == networks.purpose(Config(), "real", two) == "real"
    apart = Config(selection=SelectionConfig(common_draws=False))
    assert networks.purpose(apart, "real", one) != networks.purpose(apart, "real", two)


@pytest.mark.parametrize("name", ["dc", "dsa", "dm", "cafe", "idc"])
def test_equal_networks_score_equal_on_common_draws_alone(name: str) -> None:
    for common in (True, False):
        found = case(name, selection__common_draws=common)
        twins = [replace(candidate, network=found.candidates[0].network) for candidate in found.candidates]
        one, two = (found.fresh().score(found.synthetic, twin, found.draws) for twin in twins)
        assert (one.loss == two.loss) is common


@pytest.mark.parametrize("name", ["dc", "dm", "cafe", "idc", "dreamplus"])
def test_other_steps_attempts_and_seeds_draw_other_batches(name: str) -> None:
    found = case(name)
    keys = [StepKey(key) for key in ((0, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 0))]
    assert len({found.fresh().score(found.synthetic, found.candidates[0], key).loss for key in keys}) == 4


def test_a_fresh_network_is_the_models_own_start() -> None:
    network = networks.fresh(RESOURCES, Config(seed=3), 5)
    assert torch.equal(network.theta, MODEL.init(stream(3, 5, "network"))) and not network.velocity.any()
    assert (network.born, network.age, network.inner, network.memory) == (5, 0, 0, {})


def test_in_a_later_stage_fresh_networks_are_copies_of_start_networks() -> None:
    starts = table(MODEL, 3, 1)
    resources = replace(RESOURCES, starts=starts, start_count=3)
    seen = set()
    for born in range(20):
        network = networks.fresh(resources, Config(seed=3), born)
        (chosen,) = [place for place in range(3) if torch.equal(network.theta, starts.theta(place, 0))]
        assert network.theta.data_ptr() != starts.theta(chosen, 0).data_ptr() and not network.velocity.any() and network.born == born
        assert torch.equal(networks.fresh(resources, Config(seed=3), born).theta, network.theta)
        seen.add(chosen)
    assert seen == {0, 1, 2}
    others = [networks.fresh(resources, Config(seed=4), born).theta for born in range(8)]
    assert any(not torch.equal(other, networks.fresh(resources, Config(seed=3), born).theta) for born, other in enumerate(others))


def test_images_by_class() -> None:
    images = torch.arange(6).view(6, 1, 1, 1)
    assert networks.by_class(images, 3).flatten(1).tolist() == [[0, 1], [2, 3], [4, 5]]


def test_training_on_the_set_is_an_epoch_of_sgd() -> None:
    """In shuffled batches, the short one too; the order is of the epoch that is named."""
    synthetic, network = stored_images(), networks.fresh(RESOURCES, Config(), 0)
    trained, recipe = network, Recipe(4, weight_decay=0.01)
    for epoch in (8, 9):
        trained = networks.train_on_set(derivatives_of(MODEL), trained, synthetic, 0.1, recipe, 3, epoch)
    theta = network.theta.clone().requires_grad_()
    sgd = torch.optim.SGD([theta], 0.1, weight_decay=0.01)
    for epoch in (8, 9):
        order = torch.randperm(6, generator=stream(3, epoch, "network-order", 0))
        for rows in order.split(4):
            sgd.zero_grad()
            cross_entropy(MODEL(theta, synthetic.images[rows]), synthetic.labels[rows]).backward()
            sgd.step()
    torch.testing.assert_close(trained.theta, theta.detach(), rtol=1e-5, atol=1e-7)
    assert not trained.velocity.any() and trained.born == network.born


def test_training_leaves_images_and_network_alone() -> None:
    synthetic, network = stored_images(), networks.fresh(RESOURCES, Config(), 0)
    images, theta = synthetic.images.clone(), network.theta.clone()
    trained = networks.train_on_set(derivatives_of(MODEL), network, synthetic, 0.1, Recipe(4), 0, 0)
    assert torch.equal(synthetic.images, images) and torch.equal(network.theta, theta) and not torch.equal(trained.theta, theta)


def test_a_class_below_the_real_batch_is_named() -> None:
    facts = DataFacts(("cat", "dog", "emu"), (40, 12, 13), SHAPE)
    assert networks.batch_problems("dm.batch_real", 12, facts) == [] == networks.batch_problems("dm.batch_real", 99, None)
    (problem,) = networks.batch_problems("dm.batch_real", 13, facts)
    assert "--dm.batch_real=13" in problem and "'dog' has 12" in problem


def test_the_rate_counts_for_every_class() -> None:
    optimiser = networks.image_optimiser(0.1, 0.5)
    assert (optimiser.lr_images, optimiser.momentum, optimiser.class_sum, optimiser.class_order) == (0.1, 0.5, True, False)
