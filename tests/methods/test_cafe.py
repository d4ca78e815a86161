"""CAFE: the dynamic rule of both levels on accuracies made by hand, its caps, the end of a run, and what is asked of the network."""

from collections.abc import Iterable
from dataclasses import replace

import pytest
import torch

from raydd.config import Config, ModelConfig, SelectionConfig
from raydd.distill import State, is_done
from raydd.matching.cafe import layer_weights
from raydd.methods import cafe, chunks, method, networks
from raydd.methods.base import DataFacts
from raydd.slots import Pool
from raydd.training import Recipe
from raydd.types import Network
from tests.methods.contract import CLASSES, Case, case, real_data, same, stored_images, walk
from tests.methods.test_contract import Seen, plain_cafe


def advance(found: Case, monkeypatch: pytest.MonkeyPatch, queries: Iterable[float], before: Iterable[float] = ()) -> tuple[Network, int]:
    """The network after an update, had it the accuracies `before` and then `queries`; and how many epochs it trained."""
    answers, epochs = iter(queries), []
    monkeypatch.setattr(cafe.CAFE, "_query", lambda *_: torch.tensor(next(answers)))
    train = networks.train_on_set
    monkeypatch.setattr(cafe, "train_on_set", lambda *arguments: (epochs.append(arguments[-1]), train(*arguments))[1])
    network = replace(found.candidates[0].network, memory={"accuracies": torch.tensor(list(before))})
    return found.fresh().advance(found.synthetic, network, networks.StepKey((0, 4, 0))), len(epochs)


RULE = {"cafe__window": 3, "cafe__outer_range": 0.25, "cafe__inner_range": 0.25, "cafe__max_inner": 6}
FLAT, STEEP = [0.5] * 9, [0.0, 0.5, 1.0, 0.0]


@pytest.mark.parametrize(
    ("before", "query", "finished"),
    [
        ([0.5, 0.5], 0.625, True),
        ([0.5, 0.5], 0.75, False),  # a span of exactly the range goes on
        ([0.25, 0.5], 0.25, False),
        ([0.5], 0.5, False),  # too few accuracies to tell
        ([], 0.5, False),
        ([0.0, 0.5, 0.5], 0.5, True),  # the oldest is dropped
    ],
)
def test_a_network_whose_accuracies_hardly_differ_is_given_up(
    monkeypatch: pytest.MonkeyPatch, before: list[float], query: float, finished: bool
) -> None:
    found = case("cafe", **RULE)
    network, epochs = advance(found, monkeypatch, [query, *STEEP], before)
    assert ("finished" in network.memory) is finished and (epochs == 0) is finished
    assert network.memory["accuracies"].tolist() == [*before, query][-3:], "one accuracy for each update, without a leak"
    assert torch.equal(network.theta, found.candidates[0].network.theta) is finished


@pytest.mark.parametrize(
    ("queries", "epochs"),
    [
        ([0.0, 0.5, 1.0], 3),
        ([0.5, 0.5, 1.0], 3),
        ([0.5, 0.5, 0.5, 1.0], 4),
        ([0.5, 0.75, 0.5, 0.25, 0.5, 0.5], 4),
        ([0.5, 0.75, 0.5, 0.75, 0.5, 0.75], 6),  # never more than the range: the cap ends it
        (FLAT, 6),
        ([1.0, 0.5, 0.5, 0.5, 0.5, 0.5], 3),
    ],
)
def test_training_pauses_once_accuracies_differ(monkeypatch: pytest.MonkeyPatch, queries: list[float], epochs: int) -> None:
    """One accuracy after each epoch, in a window that begins anew after every update; at least as many epochs as the window has."""
    assert advance(case("cafe", **RULE), monkeypatch, [0.5, *queries])[1] == epochs


@pytest.mark.parametrize(("dsa", "strategy"), [(False, "none"), (True, "color_crop_cutout_flip_scale_rotate")])
def test_epochs_are_those_of_the_set(monkeypatch: pytest.MonkeyPatch, dsa: bool, strategy: str) -> None:
    found = case("cafe", cafe__dsa=dsa, **RULE)
    expected = found.candidates[0].network
    derivatives = found.fresh()._derivatives
    for epoch in range(3):  # the numbers of step 4, which may have six
        recipe = Recipe(4, strategy=strategy)
        expected = networks.train_on_set(derivatives, expected, found.synthetic, 0.01, recipe, 0, 4 * 6 + epoch)
    assert torch.equal(advance(found, monkeypatch, [0.5, *STEEP])[0].theta, expected.theta)


def test_accuracy_is_asked_on_random_training_images_of_every_class() -> None:
    seen = Seen(*vars(real_data()).values())
    found = case("cafe", real=seen, cafe__window=2, cafe__max_inner=2, cafe__queries=5)
    seen.asked.clear()
    network = found.fresh().advance(found.synthetic, found.candidates[0].network, found.draws)
    batches = [torch.stack(seen.asked[place : place + 3]) for place in range(0, len(seen.asked), 3)]
    assert len(batches) == 3 and all(batch.shape == (3, 5, 3, 8, 8) for batch in batches)
    assert not torch.equal(batches[0], batches[1]) and not torch.equal(batches[1], batches[2])
    theta, model = found.candidates[0].network.theta, found.resources.model
    right = [(model(theta, own).argmax(1) == label).float().mean() for label, own in enumerate(batches[0])]
    assert network.memory["accuracies"].item() == pytest.approx(torch.stack(right).mean().item())


# Lifetimes


def lifetimes(found: Case) -> list[tuple[int, int]]:
    return [(record["outer"], record["inner"]) for record in walk(found.config, found.executor())[1]]


def test_a_network_serves_until_it_is_finished() -> None:
    always = case("cafe", steps=5, cafe__outer_range=2.0, cafe__max_outer=9, cafe__max_inner=1)
    assert lifetimes(always) == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]
    never = case("cafe", steps=5, cafe__outer_range=0.0, cafe__max_outer=3, cafe__max_inner=1)
    assert lifetimes(never) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]


def test_accuracies_outlive_a_selection_within_the_lifetime() -> None:
    """Ranking on a shared batch takes no memory from the winner."""
    found = case("cafe", steps=4, cafe__outer_range=2.0, cafe__max_outer=9, cafe__max_inner=1)
    config = replace(found.config, selection=SelectionConfig(candidates=2, pool=2, slots="put_back", every=1))
    state, records = walk(config, found.executor())
    slots = [record["candidates"][record["chosen"]]["expert"] for record in records]
    second = next(step for step in range(1, 4) if slots[step] in slots[:step])
    assert records[second]["outer"] == 0 and (second == 3 or records[second + 1]["outer"] == 1)
    assert state.pool.outer >= 1


def test_a_run_ends_with_its_iterations() -> None:
    found = case("cafe", steps=99, cafe__iterations=2, cafe__max_outer=2, cafe__max_inner=1, cafe__outer_range=0.0)
    state, records = walk(found.config, found.executor())
    assert state.step == len(records) == 4 and state.pool.outer == 2
    assert is_done(found.config, state)


def test_steps_or_iterations_end_a_run() -> None:
    state, config = State.start(stored_images()), Config(method="cafe", steps=3)
    assert [is_done(config, replace(state, step=step)) for step in (2, 3)] == [False, True]
    assert [is_done(config, replace(state, pool=Pool((None,), outer=outer))) for outer in (1999, 2000)] == [False, True]


def test_the_image_rate_is_halved_three_times() -> None:
    found = {outer: method("cafe").optimiser(Config(), 32, outer).lr_images for outer in (0, 1199, 1200, 1599, 1600, 1799, 1800, 1999)}
    assert found == {0: 0.1, 1199: 0.1, 1200: 0.05, 1599: 0.05, 1600: 0.025, 1799: 0.025, 1800: 0.0125, 1999: 0.0125}
    assert same(method("cafe").optimiser(Config(), 32, 0), networks.image_optimiser(0.1, 0.5))


# What is matched


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_weights_of_the_layers_are_those_of_the_reference(depth: int) -> None:
    assert case("cafe", model__depth=depth).fresh()._weights == layer_weights(depth)


def test_weights_are_settings() -> None:
    losses = set()
    for changed in (
        {},
        {"cafe__early_weight": 0.3},
        {"cafe__late_weight": 2.0},
        {"cafe__discrimination_weight": 0.0},
        {"cafe__dsa": False},
    ):
        found = case("cafe", torch.float64, **changed)
        losses.add(found.fresh().score(found.synthetic, found.candidates[0], found.draws).loss)
    assert len(losses) == 5


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_batch_statistics_are_those_of_all_classes_together(norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without batch normalisation a chunk changes nothing, so it may be small."""
    found = case("cafe", torch.float64, model__norm=norm, cafe__dsa=False)
    monkeypatch.setitem(chunks.CHUNK_IMAGES, "cpu", 1)
    real, theta = found.resources.real, found.candidates[0].network.theta
    images = real.images(real.random_rows(5, 0, 0, "real-batch", 0))
    asked = (found.synthetic, found.candidates[0], found.draws)
    expected = plain_cafe(found, theta, images, found.synthetic.images).item()
    assert found.fresh().score(*asked).loss == pytest.approx(expected, rel=1e-9)
    assert found.fresh().update(*asked).loss == pytest.approx(expected, rel=1e-9)


def test_the_size_of_a_score_is_that_of_the_real_means() -> None:
    found = case("cafe", torch.float64, cafe__dsa=False)
    real, theta = found.resources.real, found.candidates[0].network.theta
    maps = found.resources.model.maps(theta, real.images(real.random_rows(5, 0, 0, "real-batch", 0)).flatten(0, 1))
    squares = sum(each.unflatten(0, (CLASSES, -1)).mean(1).square().sum().item() for each in maps)
    score = found.fresh().score(found.synthetic, found.candidates[0], found.draws)
    assert score.size == pytest.approx(squares / CLASSES, rel=1e-10)


def test_what_it_cannot_do_is_refused() -> None:
    problems = method("cafe").problems
    facts = DataFacts(("one", "two"), (300, 300), (3, 32, 32))
    assert problems(Config(), facts) == []
    (other,) = problems(Config(model=ModelConfig(name="resnet18")), facts)
    assert "--model.name=resnet18" in other and "--model.name convnet" in other
    (alone,) = problems(Config(), DataFacts(("one",), (300,), (3, 32, 32)))
    assert "two or more classes" in alone
    few = DataFacts(("one", "two"), (300, 100), (3, 32, 32))
    assert [text.split("=")[0] for text in problems(Config(), few)] == ["--cafe.batch_real", "--cafe.queries"]
