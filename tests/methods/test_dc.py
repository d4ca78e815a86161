"""DC and DSA: the loops of the paper, training on the set between updates, and what augmentation each has."""

from dataclasses import replace

import pytest
import torch

from raydd.config import Config, DCConfig
from raydd.executor import InlineExecutor
from raydd.matching.distances import dc_distance
from raydd.matching.gradients import class_gradients
from raydd.metagrad import derivatives_of
from raydd.methods import dc, method, networks
from raydd.training import Recipe
from raydd.types import Candidate, Network, SyntheticSet, Update
from tests.methods.contract import CLASSES, Case, case, same, walk


@pytest.mark.golden
def test_loops_equal_the_reference(golden) -> None:
    table = golden("dc_get_loops")
    expected = {int(ipc): (entry["outer_loop"], entry["inner_loop"]) for ipc, entry in table["images_per_class"].items()}
    assert {ipc: dc.loops(Config(ipc=ipc)) for ipc in expected} == expected == dc.LOOPS
    for ipc in table["rejected_with_exit"]:
        (problem,) = method("dc").problems(Config(method="dc", ipc=ipc), None)
        assert f"--ipc={ipc} has no loop counts" in problem and "--dc.outer" in problem and "--dc.inner" in problem


def test_loops_may_be_given() -> None:
    given = DCConfig(outer=7, inner=0)
    assert dc.loops(Config(ipc=10, dc=given)) == dc.loops(Config(ipc=2, dc=given)) == (7, 0)
    assert dc.loops(Config(ipc=10, dc=DCConfig(outer=7))) == (7, 50)
    assert dc.loops(Config(ipc=10, dc=DCConfig(inner=0))) == (10, 0)
    problems = method("dsa").problems
    assert problems(Config(ipc=2, dc=given), None) == []
    assert problems(Config(ipc=2, dc=DCConfig(outer=7)), None) and problems(Config(ipc=2, dc=DCConfig(inner=7)), None)


class Told(InlineExecutor):
    """Notes what is asked."""

    def __init__(self, found: Case):
        super().__init__(found.fresh())
        self.log: list[str] = []

    def begin(self, births: list[int]) -> list[Network]:
        self.log.append(f"begin {births}")
        return super().begin(births)

    def update(self, synthetic: SyntheticSet, candidate: Candidate, draws: object) -> Update:
        self.log.append("update")
        return super().update(synthetic, candidate, draws)

    def advance(self, synthetic: SyntheticSet, candidates: list[Candidate], draws: object) -> list[Network]:
        self.log.append("advance")
        return super().advance(synthetic, candidates, draws)


def test_a_network_trains_between_its_updates_and_not_after_the_last() -> None:
    executor = Told(case("dc", steps=7))
    _, records = walk(case("dc", steps=7).config, executor)
    lifetime = ["update", "advance", "update", "advance", "update"]
    assert executor.log == ["begin [0]", *lifetime, "begin [1]", *lifetime, "begin [2]", *lifetime[:2]]
    assert [(record["outer"], record["inner"]) for record in records] == [divmod(step, 3) for step in range(7)]


@pytest.mark.parametrize(("name", "strategy"), [("dc", "none"), ("dsa", "color_crop_cutout_flip_scale_rotate")])
def test_networks_train_on_the_set_for_some_epochs(name: str, strategy: str) -> None:
    """DSA augments every image of these batches by itself, DC none; epochs are numbered through the run."""
    found = case(name, dc__inner=2)
    draws = networks.StepKey((0, 5, 0))
    expected = network = found.candidates[0].network
    recipe = Recipe(4, strategy=strategy, parameters="per-image")
    for epoch in (10, 11):
        expected = networks.train_on_set(derivatives_of(found.resources.model), expected, found.synthetic, 0.01, recipe, 0, epoch)
    assert same(found.fresh().advance(found.synthetic, network, draws), expected)
    assert not torch.equal(expected.theta, network.theta)


def test_no_epochs_leave_the_network_alone() -> None:
    found = case("dc", dc__inner=0)
    assert same(found.fresh().advance(found.synthetic, found.candidates[0].network, found.draws), found.candidates[0].network)


@pytest.mark.parametrize(("name", "augments"), [("dc", False), ("dsa", True)])
def test_only_dsa_augments(name: str, augments: bool) -> None:
    losses = set()
    for strategy in ("none", "color", "flip_cutout"):
        found = case(name, augment__strategy=strategy)
        losses.add(found.fresh().score(found.synthetic, found.candidates[0], found.draws).loss)
    assert len(losses) == (3 if augments else 1)


@pytest.mark.parametrize("metric", ["rows", "mse", "cos"])
def test_every_distance_is_used_and_chunks_change_nothing(metric: str) -> None:
    found = case("dc", torch.float64, dc__metric=metric, dc__eps=1e-3)
    asked = (found.synthetic, found.candidates[0], found.draws)
    whole = found.fresh().update(*asked)
    cut = case("dc", torch.float64, dc__metric=metric, dc__eps=1e-3, dc__class_chunk=1)
    parts = cut.fresh().update(found.synthetic, replace(cut.candidates[0], network=found.candidates[0].network), found.draws)
    torch.testing.assert_close(parts.grad_images, whole.grad_images, rtol=1e-9, atol=1e-12)
    model, theta, real = found.resources.model, found.candidates[0].network.theta, found.resources.real
    labels, images = torch.arange(CLASSES), networks.by_class(found.synthetic.images, CLASSES)
    rows = real.random_rows(5, 0, 0, "real-batch", 0)
    gradients = [class_gradients(model, theta, batch, labels) for batch in (real.images(rows), images)]
    assert whole.loss == pytest.approx(dc_distance(model.layout, metric, 1e-3)(*gradients)[0].mean().item(), rel=1e-9)


def test_the_size_of_a_score_is_that_of_the_matched_real_gradients() -> None:
    found = case("dc", torch.float64)
    model, theta, real = found.resources.model, found.candidates[0].network.theta, found.resources.real
    gradients = class_gradients(model, theta, real.images(real.random_rows(5, 0, 0, "real-batch", 0)), torch.arange(CLASSES))
    squares = [sum(part.square().sum().item() for part in model.views(each).values() if part.dim() > 1) for each in gradients]
    score = found.fresh().score(found.synthetic, found.candidates[0], found.draws)
    assert score.size == pytest.approx(sum(squares) / CLASSES, rel=1e-9)


def test_image_rates_come_from_the_settings() -> None:
    optimiser = method("dsa").optimiser(Config(dc=DCConfig(lr_img=0.3, momentum=0.2)), 32, 5)
    assert optimiser == networks.image_optimiser(0.3, 0.2)
