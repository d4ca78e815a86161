"""Herding and k-center against the recorded programs, and against loops that compute every distance anew."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from raydd.coreset import herding, k_center, random_rows
from raydd.errors import DataError

Rule = Callable[[Tensor, int], Tensor]


def cloud(count: int = 40, size: int = 5, seed: int = 0) -> Tensor:
    """Gaussian features far from the origin, where differences of large numbers would show."""
    return 100 + torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_herding(features: Tensor, count: int) -> list[int]:
    mean, chosen = features.mean(0), []
    for t in range(1, count + 1):
        gaps = [
            float("inf") if x in chosen else (t * mean - features[chosen].sum(0) - features[x]).norm().item() for x in range(len(features))
        ]
        chosen.append(gaps.index(min(gaps)))
    return chosen


def slow_k_center(features: Tensor, count: int) -> list[int]:
    chosen = [int((features - features.mean(0)).norm(dim=1).argmin())]
    while len(chosen) < count:
        gaps = [min((features[x] - features[c]).norm().item() for c in chosen) for x in range(len(features))]
        chosen.append(gaps.index(max(gaps)))
    return chosen


@pytest.mark.golden
def test_herding_as_recorded(golden: Callable[[str], Any]) -> None:
    case = golden("herding")
    features, labels = torch.tensor(case["in_features"]), torch.tensor(case["in_labels"])
    for label, selected in enumerate(case["out_selected"].tolist()):
        rows = torch.nonzero(labels == label).squeeze(1)
        assert rows[herding(features[rows], int(case["in_per_class"]))].tolist() == selected


@pytest.mark.golden
def test_k_center_as_recorded(golden: Callable[[str], Any]) -> None:
    case = golden("k_center")
    features, budget = torch.tensor(case["in_features"]), int(case["in_budget"])
    assert k_center(features, budget).tolist() == case["out_from_mean_order"].tolist()
    assert k_center(features, budget, int(case["in_from_random_start"])).tolist() == case["out_from_random_order"].tolist()


@pytest.mark.parametrize(("fast", "slow"), [(herding, slow_herding), (k_center, slow_k_center)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_against_every_distance(fast: Rule, slow: Callable[[Tensor, int], list[int]], dtype: torch.dtype) -> None:
    for seed in range(4):
        features = cloud(seed=seed).to(dtype)
        assert fast(features, 12).tolist() == slow(features.double(), 12)


def test_one_image_is_the_nearest_to_the_mean() -> None:
    for seed in range(20):
        features = cloud(30, seed=seed)
        assert herding(features, 1).tolist() == k_center(features, 1).tolist() == [int((features - features.mean(0)).norm(dim=1).argmin())]


def test_herding_comes_nearer_to_the_mean_than_lot() -> None:
    """The mistake of maximising the distance gives 2.8 here, where lot gives 0.9."""
    features = cloud(500, 16)

    def gap(rows: Tensor) -> float:
        return (features[rows].mean(0) - features.mean(0)).norm().item()

    lots = [gap(random_rows(torch.zeros(500), 1, 20, 0, "test", draw)) for draw in range(20)]
    assert gap(herding(features, 20)) < 0.25 * min(lots)


def test_k_center_covers_better_than_lot() -> None:
    features = cloud(300, 3)

    def radius(rows: Tensor) -> float:
        return torch.cdist(features, features[rows]).min(1).values.max().item()

    assert radius(k_center(features, 20)) < min(radius(random_rows(torch.zeros(300), 1, 20, 0, "test", draw)) for draw in range(20))


@pytest.mark.parametrize("rule", [herding, k_center])
def test_places_differ_and_a_shorter_choice_begins_a_longer_one(rule: Rule) -> None:
    features = cloud(40)
    every = rule(features, 40).tolist()
    assert sorted(every) == list(range(40)) and rule(features, 7).tolist() == every[:7]


@pytest.mark.parametrize("rule", [herding, k_center])
def test_copies_are_different_images(rule: Rule) -> None:
    features = cloud(4).repeat(3, 1)
    assert sorted(rule(features, 12).tolist()) == list(range(12))
    if rule is k_center:
        assert {place % 4 for place in rule(features, 4).tolist()} == {0, 1, 2, 3}


@pytest.mark.parametrize("rule", [herding, k_center])
def test_no_table_of_all_distances(rule: Rule) -> None:
    assert len(rule(torch.ones(200_000, 2), 2)) == 2  # all pairs would take 320 GB


@pytest.mark.parametrize("rule", [herding, k_center])
def test_refusals(rule: Rule) -> None:
    for count in (0, 41):
        with pytest.raises(DataError, match="allowed: 1 to 40. Lower --ipc"):
            rule(cloud(), count)
    features = cloud()
    features[3, 2] = float("nan")
    with pytest.raises(DataError, match="the network diverged"):
        rule(features, 2)


def test_features_stay_as_they_are() -> None:
    features = cloud()
    before = features.clone()
    herding(features, 3), k_center(features, 3)
    assert torch.equal(features, before)
