"""IDC, DREAM and DREAM+: rates, the decoded batch, independence of the set, representatives, the feature term, warm-ups."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from raydd import kmeans
from raydd.config import Config, IDCConfig, SelectionConfig
from raydd.data import RealData
from raydd.distill import State, distill
from raydd.executor import InlineExecutor
from raydd.methods import method
from raydd.methods.base import DataFacts, Optimiser
from raydd.methods.networks import StepKey
from raydd.methods.real_training import RealTraining
from raydd.types import Candidate, Score, SyntheticSet, Update
from tests.methods.contract import CLASSES, IPC, Case, case, real_data, settings, stored_images, walk
from tests.methods.test_contract import Seen, decoded

FAMILY = ["idc", "dream", "dreamplus"]


@pytest.mark.parametrize(("ipc", "rate"), [(1, 5e-4), (10, 5e-3), (20, 1e-2), (50, 2.5e-2)])
def test_the_image_rate_grows_with_the_images_of_a_class(ipc: int, rate: float) -> None:
    optimiser = method("idc").optimiser(Config(ipc=ipc), 32, 3)
    assert optimiser == Optimiser(pytest.approx(rate), 0.5, class_sum=True, class_order=True, clamp=True)


def test_the_image_rate_goes_with_the_area() -> None:
    """FashionMNIST has 28 pixels and the base of CIFAR, MNIST a base of its own (specs/idc_dream_pdd.md section 1.9)."""
    fashion, mnist = (Config(ipc=10, idc=IDCConfig(lr_img=1e-4, base_side=base)) for base in (32, 28))
    assert method("idc").optimiser(fashion, 28, 0).lr_images == pytest.approx(7.65625e-5)
    assert method("idc").optimiser(mnist, 28, 0).lr_images == pytest.approx(1e-4)
    assert method("dream").optimiser(Config(ipc=10), 64, 0).lr_images == pytest.approx(4 * 5e-3)


@pytest.mark.parametrize("name", FAMILY)
def test_a_network_without_convolutions_is_refused_unless_something_else_is_matched(name: str) -> None:
    facts = DataFacts(("a", "b"), (500, 500), (1, 8, 8))
    found = method(name).problems(settings(name, model__name="mlp"), facts)
    assert any("matches the gradients of convolutions, and this network has none" in problem for problem in found)
    for changes in ({"idc__fc": True}, {"idc__match": "feat"}):
        assert not method(name).problems(settings(name, model__name="mlp", **changes), facts)


# The synthetic batch


def images_with_gradient(found: Case, step: int) -> list[list[bool]]:
    """Of each class, which stored images a step moves."""
    update = found.fresh().update(found.synthetic, found.candidates[0], StepKey((0, step, 0)))
    return update.grad_images.flatten(1).any(1).unflatten(0, (CLASSES, IPC)).tolist()


def test_of_too_many_images_a_step_uses_some() -> None:
    found = case("idc", idc__factor=1, idc__batch_syn_max=1)
    moved = [images_with_gradient(found, step) for step in range(12)]
    assert all(sum(own) == 1 for step in moved for own in step)
    assert {tuple(own) for step in moved for own in step} == {(True, False), (False, True)}
    assert any(len({tuple(own) for own in step}) > 1 for step in moved), "classes draw apart"
    assert images_with_gradient(case("idc", idc__factor=1, idc__batch_syn_max=2), 0) == [[True] * 2] * CLASSES


def test_a_bound_decodes_every_image() -> None:
    """Three of a class: one image as its four quarters would be more."""
    found = case("idc", idc__decode="bound", idc__batch_syn_max=3)
    assert images_with_gradient(found, 0) == [[True] * 2] * CLASSES
    losses = {case("idc", idc__decode=kind).fresh().score(*asked(found)).loss for kind in ("single", "multi", "bound")}
    assert len(losses) == 2, "without a limit in reach, bound is single"


def asked(found: Case) -> tuple[SyntheticSet, Candidate, StepKey]:
    return found.synthetic, found.candidates[0], found.draws


# Networks


@pytest.mark.parametrize("name", FAMILY)
def test_networks_never_see_the_synthetic_set(name: str) -> None:
    found = case(name)
    network, other = found.candidates[0].network, replace(found.synthetic, images=found.synthetic.images * 0)
    one, two = (found.fresh().advance(synthetic, network, found.draws) for synthetic in (found.synthetic, other))
    assert torch.equal(one.theta, two.theta) and torch.equal(one.velocity, two.velocity) and one.inner == 1
    assert not torch.equal(one.theta, network.theta)


@pytest.mark.parametrize(
    ("name", "changes", "batches"),
    [
        ("idc", {}, 0),
        ("dream", {}, 0),
        ("dreamplus", {}, 6),  # a pass over 36 images in batches of 6
        ("dreamplus", {"dream__warm_up": 3}, 18),
        ("idc", {"idc__early": 2}, 12),
        ("idc", {"selection__candidates": 2}, 2),  # a network update of 10 images
        ("dream", {"selection__candidates": 2}, 2),
        ("dreamplus", {"selection__candidates": 2}, 6),
        ("idc", {"selection__candidates": 2, "selection__warm_up_images": 0}, 0),
        ("idc", {"selection__candidates": 2, "selection__warm_up_images": 13}, 3),
        ("dreamplus", {"selection__candidates": 2, "selection__warm_up_images": 13}, 9),
        ("idc", {"selection__warm_up_images": 13, "selection__warm_up_spread": 4}, 0),
    ],
)
def test_new_networks_are_warmed_up(monkeypatch: pytest.MonkeyPatch, name: str, changes: dict, batches: int) -> None:
    seen: list[Tensor] = []
    found = case(name, **changes)
    monkeypatch.setattr(RealTraining, "_step", lambda self, theta, velocity, rows, generator: (seen.append(rows), velocity)[1])
    found.fresh().begin(0)
    assert len(seen) == batches


def test_ages_of_new_networks_may_be_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = []
    made = case("idc", selection__candidates=2, selection__warm_up_spread=2).fresh()
    monkeypatch.setattr(RealTraining, "warm_up", lambda self, network, batches: (numbers.append(batches), network)[1])
    for born in range(30):
        made.begin(born)
    assert set(numbers) == {2, 4, 6}
    made.begin(3)
    assert numbers[-1] == numbers[3]


# Representatives


def test_representatives_are_images_of_their_class() -> None:
    found = case("dream")
    rows = found.candidates[0].network.memory["representatives"]
    assert rows.shape == (CLASSES, 4)
    assert all((real_data().resident.labels[own] == label).all() for label, own in enumerate(rows))
    everything = case("dream", idc__batch_real=12).candidates[0].network.memory["representatives"]
    assert [sorted(own.tolist()) for own in everything] == [own.tolist() for own in real_data().rows], "each image is its own centre"


def test_they_are_chosen_by_features_of_raw_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither normalised nor augmented, on the network as it is, with the settings of DREAM."""
    found, calls = case("dream", dream__subsample=2, dream__iterations=7, dream__spread=False, dream__reseed=False), []
    choose = kmeans.representatives
    monkeypatch.setattr(kmeans, "representatives", lambda *given, **how: (calls.append((given, how)), choose(*given, **how))[1])
    network = found.fresh().prepare(replace(found.candidates[0].network, memory={}), found.draws)
    transform = found.resources.real.resident.transform
    for label, ((features, count, _), how) in enumerate(calls):
        pixels = transform.inverse(found.resources.real.images(found.resources.real.rows[label]))
        assert pixels.min() + 1e-6 >= 0 and pixels.max() <= 1 + 1e-6
        torch.testing.assert_close(features, found.resources.model.embed(network.theta, pixels), rtol=1e-4, atol=1e-5)
        assert (count, how["subsample"], how["iterations"], how["spread"], how["reseed"]) == (4, 2, 7, False, False)
    assert len(calls) == CLASSES


def test_they_are_renewed_in_intervals() -> None:
    found = case("dream", dream__interval=2)
    network, made = found.candidates[0].network, found.fresh()
    held = [network.memory["representatives"]]
    for step in range(5):
        network = made.advance(found.synthetic, network, StepKey((0, step, 0)))
        held.append(network.memory["representatives"])
        assert network.inner == step + 1
    renewed = [held[place] is not held[place - 1] for place in range(1, 6)]
    assert renewed == [False, True, False, True, False]
    assert made.prepare(network, found.draws) is network, "those that are there are kept"


def test_a_step_matches_with_the_representatives() -> None:
    seen = Seen(*vars(real_data()).values())
    found = case("dream", real=seen, idc__match_strategy="none")
    seen.asked.clear()
    found.fresh().update(*asked(found))
    assert torch.equal(seen.asked[0], RealData.images(seen, found.candidates[0].network.memory["representatives"]))
    found.fresh().update(
        found.synthetic, replace(found.candidates[0], network=replace(found.candidates[0].network, memory={})), found.draws
    )
    assert torch.equal(seen.asked[1], RealData.images(seen, seen.next_rows(4, 0, 0, "real-batch")))


class Noted(InlineExecutor):
    """Notes of every network that is scored, prepared or used whether it had representatives."""

    def __init__(self, found: Case):
        super().__init__(found.fresh())
        self.scored: list[bool] = []
        self.prepared: list[bool] = []
        self.updated: list[bool] = []

    def score(self, synthetic: SyntheticSet, candidates: list[Candidate], draws: StepKey) -> list[Score]:
        self.scored += ["representatives" in candidate.network.memory for candidate in candidates]
        return super().score(synthetic, candidates, draws)

    def prepare(self, candidates: list[Candidate], draws: StepKey) -> list[Candidate]:
        self.prepared += ["representatives" in candidate.network.memory for candidate in candidates]
        return super().prepare(candidates, draws)

    def update(self, synthetic: SyntheticSet, candidate: Candidate, draws: StepKey) -> Update:
        self.updated.append("representatives" in candidate.network.memory)
        return super().update(synthetic, candidate, draws)


@pytest.mark.parametrize("rank_batch", ["shared", "own"])
def test_candidates_are_ranked_on_a_shared_batch_or_on_their_own(rank_batch: str) -> None:
    """Shared: only the winner's representatives are looked for, and one that has them keeps them. Lifetimes of three updates."""
    found = case("dreamplus", steps=5)
    config = replace(found.config, selection=SelectionConfig(candidates=2, pool=2, every=2, rank_batch=rank_batch))
    executor = Noted(found)
    walk(config, executor)
    assert executor.scored == [rank_batch == "own"] * 6 and executor.updated == [True] * 5
    if rank_batch == "own":
        assert executor.prepared[:3] == [False, False, True]
    else:
        assert executor.prepared[0] is False and len(executor.prepared) == 3


# Two terms


def test_dream_plus_without_weight_is_dream() -> None:
    plus, dream = case("dreamplus", torch.float64, dream__alpha=0.0), case("dream", torch.float64)
    one, other = plus.fresh().update(*asked(plus)), dream.fresh().update(*asked(plus))
    torch.testing.assert_close(one.grad_images, other.grad_images, rtol=1e-10, atol=1e-14)
    assert one.loss == pytest.approx(other.loss, rel=1e-12)


@pytest.mark.parametrize("metric", ["mse", "l1", "cos"])
def test_the_feature_term_has_the_metric_of_the_gradients_where_there_is_one(metric: str) -> None:
    """One of features alone is that of means: squared for a cosine, and always where features are all that is matched."""
    without = {"idc__match_strategy": "none", "idc__metric": metric}
    plus, dream = case("dreamplus", torch.float64, dream__alpha=2.0, **without), case("dream", torch.float64, **without)
    model, theta, transform = plus.resources.model, plus.candidates[0].network.theta, plus.resources.real
    batches = transform.images(plus.candidates[0].network.memory["representatives"]), decoded(plus, plus.synthetic.images)
    real, ours = (model.embed(theta, batch.flatten(0, 1)).unflatten(0, batch.shape[:2]).mean(1) for batch in batches)
    squares, others = ((real - ours) ** 2).sum(1).mean().item(), (real - ours).abs().sum(1).mean().item()
    term = plus.fresh().score(*asked(plus)).loss - dream.fresh().score(*asked(plus)).loss
    assert term == pytest.approx(2 * (others if metric == "l1" else squares), rel=1e-8)
    alone = case("dream", torch.float64, **without, idc__match="feat")
    assert alone.fresh().score(*asked(plus)).loss == pytest.approx(squares, rel=1e-9)


def test_the_size_of_a_score_has_both_terms() -> None:
    plus, dream = case("dreamplus", dream__alpha=2.0), case("dream")
    features = case("dream", idc__match="feat")
    sizes = [found.fresh().score(*asked(plus)).size for found in (plus, dream, features)]
    assert sizes[0] == pytest.approx(sizes[1] + 2 * sizes[2], rel=1e-5) and min(sizes) > 0


# Lifetimes and settings


class Watching(InlineExecutor):
    """Notes the images that updates are asked for."""

    def __init__(self, found: Case):
        super().__init__(found.fresh())
        self.seen: list[Tensor] = []

    def update(self, synthetic: SyntheticSet, candidate: Candidate, draws: StepKey) -> Update:
        self.seen.append(synthetic.images)
        return super().update(synthetic, candidate, draws)


def test_images_are_clamped_where_a_lifetime_begins() -> None:
    found, states = case("idc", steps=3, idc__inner_steps=2, idc__lr_img=1.0), []
    executor = Watching(found)
    distill(found.config, State.start(stored_images()), executor, lambda state, record: states.append(state))
    after = [state.synthetic.images for state in states]
    assert after[1].max() > 1 or after[1].min() < 0, "a snapshot is not clamped"
    assert torch.equal(executor.seen[1], after[0] - states[0].pending)
    assert torch.equal(executor.seen[2], after[1].clamp(0, 1) - states[1].pending)


def test_settings_that_cannot_be() -> None:
    facts = DataFacts(("one", "two"), (200, 60), (3, 8, 8))
    problems = method("dream").problems
    assert problems(settings("dream"), facts) == []
    for changes, words in (
        ({"init": "real"}, "--init=real with --idc.factor=2"),
        ({"dream__subsample": 3}, "--dream.subsample=3 does not divide --idc.batch_real=4"),
        ({"idc__factor": 9}, "--idc.factor=9 is more than the 8 pixels"),
        ({"idc__batch_real": 61}, "class 'two' has 60 training images"),
    ):
        (problem,) = problems(settings("dream", **changes), facts)
        assert words in problem
    assert problems(settings("dream", init="real", idc__factor=1), facts) == []
    assert problems(settings("dream", init="first"), facts) == []
    (own,) = method("idc").problems(settings("idc", selection__rank_batch="own"), facts)
    assert "--selection.rank_batch=own" in own and "dreamplus" in own
