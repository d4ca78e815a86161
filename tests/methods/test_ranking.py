"""How networks compete: warmed up on real data, scored on some of the classes, and updated with the batch of the ranking or another."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from raydd.config import Config, SelectionConfig
from raydd.executor import InlineExecutor
from raydd.methods import check, method, networks
from raydd.methods.base import DataFacts
from raydd.methods.networks import StepKey
from raydd.slots import Pool
from raydd.types import Candidate, Network, Score, SyntheticSet, Update
from tests.methods.contract import CLASSES, CONFIG, SHAPE, Case, case, real_data, same, settings, walk

ON_THE_SET = ["dc", "dsa", "dm", "cafe"]
WITH_NETWORKS = [*ON_THE_SET, "idc", "dream", "dreamplus"]
WARM = {
    "selection__candidates": 2,
    "selection__warm_up_images": 20,
    "augment__strategy": "none",
    "dc__batch_train": 8,
    "cafe__batch_train": 8,
}


# Warm-up


def start(name: str, born: int, **changes: Any) -> Network:
    return case(name, **changes).fresh().begin(born)


@pytest.mark.parametrize(("name", "rate"), [("dc", 0.03), ("dsa", 0.03), ("cafe", 0.02), ("dm", 0.01)])
def test_a_warm_up_is_sgd_on_real_images_at_the_methods_own_rate(name: str, rate: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty images in batches of eight are three, without one twice; DM's own batch takes all 36 at once."""
    changes, seen = {**WARM, "dc__lr_net": 0.03, "cafe__lr_net": 0.02}, []
    real, batch = real_data(), type(real_data().resident).batch
    monkeypatch.setattr(type(real.resident), "batch", lambda self, rows: (seen.append(rows), batch(self, rows))[1])
    warm = start(name, 3, **changes)
    rows = [each for each in seen if len(each) in (8, 36)][-3:] if name != "dm" else [seen[-1]]
    assert [len(each) for each in rows] == ([36] if name == "dm" else [8, 8, 8])
    assert len(set(torch.cat(rows).tolist())) == sum(map(len, rows))
    theta = start(name, 3).theta.clone().requires_grad_()
    sgd = torch.optim.SGD([theta], rate)
    for each in rows:
        sgd.zero_grad()
        cross_entropy(case(name).resources.model(theta, real.resident.images[each]), real.resident.labels[each]).backward()
        sgd.step()
    torch.testing.assert_close(warm.theta, theta.detach(), rtol=1e-4, atol=1e-6)
    assert not warm.velocity.any() and warm.born == 3 and not torch.equal(warm.theta, start(name, 3).theta)


@pytest.mark.parametrize("name", ON_THE_SET)
def test_nothing_is_warmed_up_unless_asked_for_nor_a_network_without_rivals(name: str) -> None:
    plain = start(name, 2)
    assert same(start(name, 2, selection__candidates=2), plain)
    assert same(start(name, 2, selection__candidates=2, selection__warm_up_images=0, selection__warm_up_spread=3), plain)
    assert same(start(name, 2, selection__warm_up_images=20), plain)
    warm = [start(name, born, **WARM) for born in (2, 2, 5)]
    assert same(warm[0], warm[1]) and not torch.equal(warm[0].theta - plain.theta, warm[2].theta - start(name, 5).theta)


def test_ages_of_warmed_up_networks_may_be_spread() -> None:
    once, spread = ([start("dc", born, **WARM, selection__warm_up_spread=most).theta for born in range(8)] for most in (0, 2))
    alike = [torch.equal(one, other) for one, other in zip(once, spread, strict=True)]
    assert any(alike) and not all(alike)


def test_dsa_augments_its_warm_up_as_its_training() -> None:
    dsa, dc = ({**WARM, "augment__strategy": "color"}, WARM)
    assert not torch.equal(start("dsa", 0, **dsa).theta, start("dsa", 0, **dc).theta)
    assert torch.equal(start("dc", 0, **dsa).theta, start("dc", 0, **dc).theta)


@pytest.mark.parametrize("name", ON_THE_SET)
def test_a_pool_of_warm_networks_puts_back_and_starts_anew_at_the_highest_age(name: str) -> None:
    """Lifetimes of one update, two slots: each serves twice, then a new network, warm as the first, takes its place."""
    config = replace(settings(name, steps=5, dc__outer=1, cafe__max_outer=1), selection=SelectionConfig(
        policy="dynadistill", candidates=2, pool=2, slots="put_back", max_age=2, warm_up_images=20
    ))  # fmt: skip
    check(config)
    found, begun = case(name), {}
    made = found.entry.build(config, found.resources)

    class Noting(InlineExecutor):
        def begin(self, births: list[int]) -> list[Network]:
            networks = super().begin(births)
            begun.update({network.born: network for network in networks})
            return networks

    state, records = walk(config, Noting(made))
    assert list(begun) == list(range(state.pool.births)) and state.pool.births > 2
    for born, network in begun.items():
        assert torch.equal(network.theta, made.begin(born).theta) and not torch.equal(network.theta, start(name, born).theta)
    ages = [[candidate["epoch"] for candidate in record["candidates"]] for record in records]
    assert max(map(max, ages)) == 1 and all(network is None or network.age < 2 for network in state.pool.networks)


@pytest.mark.parametrize("name", ON_THE_SET)
def test_one_candidate_stays_the_base_method(name: str) -> None:
    plain, asked = (
        replace(settings(name), selection=selection)
        for selection in (
            SelectionConfig(),
            SelectionConfig(warm_up_images=20, warm_up_spread=2, rank_classes=2, reuse_ranking_batch=False),
        )
    )
    one, other = (walk(config, InlineExecutor(case(name).entry.build(config, case(name).resources)))[0] for config in (plain, asked))
    assert same(one, other)


# Classes


@pytest.mark.parametrize(
    ("name", "changes"), [*((name, {}) for name in WITH_NETWORKS if name != "cafe"), ("idc", {"idc__batch_syn_max": 5})]
)
def test_a_score_on_some_classes_is_the_mean_over_these(name: str, changes: dict[str, Any]) -> None:
    """Of three classes: the scores on every one alone are those of one, and two of them make the score on two."""
    losses, sizes, drawn = {}, {}, {}
    for step in range(12):
        for count in (1, 2):
            found = case(name, torch.float64, selection__rank_classes=count, **changes)
            key = StepKey((0, step, 0))
            classes = tuple(networks.ranked_classes(found.config, key, CLASSES).tolist())
            drawn.setdefault(count, set()).add(classes)
            if step < 3:
                score = found.fresh().score(found.synthetic, found.candidates[0], key)
                losses[step, count], sizes[step, count] = score.loss, score.size
                losses[step, classes] = score.loss
    assert drawn == {1: {(0,), (1,), (2,)}, 2: {(0, 1), (0, 2), (1, 2)}}
    for step in range(3):
        alone = []
        for label in range(CLASSES):
            with pytest.MonkeyPatch.context() as patch:
                # The method's module has the function by name.
                patch.setattr(f"raydd.methods.{_module(name)}.ranked_classes", lambda *_, label=label: torch.tensor([label]))
                found = case(name, torch.float64, **changes)
                alone.append(found.fresh().score(found.synthetic, found.candidates[0], StepKey((0, step, 0))).loss)
        whole = case(name, torch.float64, **changes)
        assert sum(alone) / CLASSES == pytest.approx(whole.fresh().score(*asked(whole, step)).loss, rel=1e-9)
        for classes in ((0, 1), (0, 2), (1, 2)):
            if (step, classes) in losses:
                assert losses[step, classes] == pytest.approx(sum(alone[label] for label in classes) / 2, rel=1e-9)


def _module(name: str) -> str:
    return {"dsa": "dc", "dream": "idc", "dreamplus": "idc"}.get(name, name)


def asked(found: Case, step: int = 0) -> tuple[SyntheticSet, Candidate, StepKey]:
    return found.synthetic, found.candidates[0], StepKey((0, step, 0))


@pytest.mark.parametrize("name", WITH_NETWORKS)
def test_all_classes_at_once_are_no_other_score_and_updates_have_all(name: str) -> None:
    plain, every, some = (case(name, selection__rank_classes=count) for count in (None, CLASSES, 2))
    assert every.fresh().score(*asked(plain)).loss == pytest.approx(plain.fresh().score(*asked(plain)).loss, rel=1e-6)
    made = some.fresh()
    assert made.score(*asked(plain)).loss != plain.fresh().score(*asked(plain)).loss
    assert same(made.update(*asked(plain)), plain.fresh().update(*asked(plain))), "what the score found is not taken for all classes"


def test_classes_are_the_same_for_all_candidates_and_change_with_the_draws() -> None:
    for common in (True, False):
        config = Config(selection=SelectionConfig(rank_classes=3, common_draws=common))
        drawn = [networks.ranked_classes(config, StepKey(key), 10).tolist() for key in ((0, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 0))]
        assert len(set(map(tuple, drawn))) == 4 and all(len(set(each)) == 3 and each == sorted(each) for each in drawn)


def test_how_many_classes_is_checked() -> None:
    facts = DataFacts(("a", "b", "c"), (12, 12, 12), SHAPE)
    for name in WITH_NETWORKS:
        assert method(name).problems(settings(name, selection__rank_classes=3), facts) == []
        (problem,) = method(name).problems(settings(name, selection__rank_classes=4), facts)
        assert problem.startswith("--selection.rank_classes=4 must be from") and "to 3, the classes of the data" in problem
    assert "at least 2, for cafe" in method("cafe").problems(settings("cafe", selection__rank_classes=1), None)[0]


# The batch of the ranking


class Noted(InlineExecutor):
    """Notes the draws of every score and update."""

    def __init__(self, found: Case, config: Config):
        super().__init__(found.entry.build(config, found.resources))
        self.scored: list[tuple[int, int, int]] = []
        self.updated: list[tuple[int, int, int]] = []

    def score(self, synthetic: SyntheticSet, candidates: list[Candidate], draws: Any) -> list[Score]:
        self.scored.append(draws.key)
        return super().score(synthetic, candidates, draws)

    def update(self, synthetic: SyntheticSet, candidate: Candidate, draws: Any) -> Update:
        self.updated.append(draws.key)
        return super().update(synthetic, candidate, draws)


@pytest.mark.parametrize("name", ["mtt", *WITH_NETWORKS])
def test_the_batch_of_the_ranking_is_used_again_or_not(name: str) -> None:
    found, losses = case(name), {}
    for reuse in (True, False):
        selection = SelectionConfig(policy="greedy", candidates=2, reuse_ranking_batch=reuse)
        config = replace(CONFIG, method=name, steps=1, selection=selection)
        executor = Noted(found, config)
        _, (record,) = walk(config, executor)
        assert executor.updated == [(0, 0, 0)] and executor.scored == [(0, 0, 0) if reuse else (0, 0, -1)]
        best = min(candidate["score"] for candidate in record["candidates"])
        losses[reuse] = record["loss"], best
    if name in ("dc", "dsa", "dm", "cafe", "idc", "mtt"):  # DREAM updates with representatives
        assert losses[True][0] == pytest.approx(losses[True][1], rel=1e-5)
    assert losses[False][0] != pytest.approx(losses[False][1], rel=1e-5) and losses[False][1] != losses[True][1]


# What no method heeds


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("dm", {"selection__pool": 4}, "--selection.pool=4: every slot starts anew"),
        ("idc", {"selection__pool": 4}, "--selection.pool=4: every slot starts anew"),
        ("idc", {"selection__pool": 4, "selection__candidates": 2, "selection__slots": "redraw"}, "--selection.slots put_back"),
        ("mtt", {"selection__rank_classes": 2}, "--selection.rank_classes=2 does not go with --method mtt"),
        ("mtt", {"selection__warm_up_images": 2}, "--selection.warm_up_images=2 does not go with --method mtt"),
        ("dc", {"selection__rank_batch": "own"}, "--selection.rank_batch=own does not go with --method dc"),
    ],
)
def test_settings_that_nothing_heeds_are_refused(name: str, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(Exception, match="--selection") as caught:
        check(settings(name, **changes))
    assert words in str(caught.value)


def test_settings_that_are_heeded_pass() -> None:
    for name in WITH_NETWORKS:
        warm = {"selection__warm_up_images": 9, "selection__warm_up_spread": 1, "selection__rank_classes": 2}
        check(settings(name, selection__candidates=2, selection__pool=3, selection__slots="put_back", **warm))
    assert Pool.start(settings("dm", selection__candidates=2), method("dm").networks).networks == (None, None)
