"""k-means against scikit-learn and a plain loop; representatives against the recorded reference; what happens at the edges."""

import itertools

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from torch import Tensor

from raydd.errors import ConfigError
from raydd.kmeans import kmeans, nearest, nearest_to_any, representatives, squared_distances
from raydd.rng import stream


def features(n: int, size: int, seed: int = 0) -> Tensor:
    return torch.randn(n, size, dtype=torch.float64, generator=stream(seed, 0, "features"))


def plain(points: Tensor, centres: Tensor, passes: int) -> Tensor:
    """Lloyd's iteration as it is written in a textbook; every cluster must have points."""
    for _ in range(passes):
        labels = torch.cdist(points, centres).argmin(1)
        centres = torch.stack([points[labels == place].mean(0) for place in range(len(centres))])
    return centres


@pytest.mark.parametrize("passes", [1, 2, 5])
def test_every_pass_equals_the_plain_iteration(passes: int) -> None:
    points = features(200, 5)
    found = kmeans(points, points[:8], iterations=passes, tolerance=0)
    torch.testing.assert_close(found, plain(points, points[:8], passes), rtol=0, atol=1e-12)


@pytest.mark.parametrize("k", [1, 7, 40])
def test_ends_where_scikit_learn_ends(k: int) -> None:
    points = features(300, 6)
    expected = KMeans(k, init=points[:k].numpy(), n_init=1, tol=0, max_iter=200).fit(points.numpy()).cluster_centers_
    torch.testing.assert_close(kmeans(points, points[:k], 200, 0), torch.tensor(expected), rtol=0, atol=1e-10)


def test_stops_once_the_centres_hardly_move() -> None:
    points = features(300, 6)
    steps = [plain(points, points[:9], passes) for passes in range(30)]
    moves = [(after - before).square().sum().item() for before, after in itertools.pairwise(steps)]
    passes = next(place for place, move in enumerate(moves, 1) if move <= 0.05)
    torch.testing.assert_close(kmeans(points, points[:9], tolerance=0.05), steps[passes], rtol=0, atol=1e-12)
    assert moves[passes - 2] > 0.05


def test_an_empty_cluster_takes_the_farthest_image_or_turns_to_zero_as_in_the_reference() -> None:
    points = torch.tensor([[0.0], [1.0], [10.0], [10.5], [14.0]], dtype=torch.float64)
    start = torch.tensor([[0.5], [1000.0], [10.0]], dtype=torch.float64)
    once = kmeans(points, start, iterations=1)
    torch.testing.assert_close(once, torch.tensor([[0.5], [14.0], [11.5]], dtype=torch.float64))
    torch.testing.assert_close(kmeans(points, start), torch.tensor([[0.5], [14.0], [10.25]], dtype=torch.float64))
    zero = kmeans(points, start, iterations=1, reseed=False)
    torch.testing.assert_close(zero, torch.tensor([[0.5], [0.0], [11.5]], dtype=torch.float64))


def test_fewer_different_images_than_clusters_end_too() -> None:
    points = torch.ones(6, 3, dtype=torch.float64)
    for reseed in (True, False):
        places = representatives(points, 4, stream(0, 0, "c"), reseed=reseed)
        assert places.shape == (4,) and ((places >= 0) & (places < 6)).all()


@pytest.mark.golden
def test_nearest_equals_the_reference(golden) -> None:
    case = {name: torch.tensor(value) for name, value in golden("dream_nearest_to_centre").items()}
    points, centres = case["in_features"], case["in_centres"]
    torch.testing.assert_close(squared_distances(points, centres).sqrt(), case["out_distance"], rtol=1e-9, atol=0)
    assert torch.equal(nearest(points, centres), case["out_nearest"])
    assert torch.equal(nearest(points, centres, 2), case["out_two_nearest"].flatten())


def test_nearest_to_any_takes_different_images_by_their_distance_to_the_closest_centre() -> None:
    points, centres = features(50, 4), features(6, 4, 1)
    expected = np.argsort(torch.cdist(points, centres).amin(1).numpy())[:10]
    assert nearest_to_any(points, centres, 10).tolist() == expected.tolist()


def test_representatives_of_well_parted_groups_are_one_of_each() -> None:
    groups = torch.arange(5).repeat_interleave(20)
    points = features(100, 3) * 0.01 + groups[:, None].double() * 10
    seen = [groups[representatives(points, 5, stream(seed, 0, "c"))] for seed in range(10)]
    # Random starts may put two into one group; most often they do part the groups, and centres are never far from images.
    assert max(len(set(found.tolist())) for found in seen) == 5
    two = representatives(points, 10, stream(0, 0, "c"), subsample=2)
    assert torch.equal(groups[two[::2]], groups[two[1::2]]) and (two[::2] != two[1::2]).all()
    assert len(representatives(points, 10, stream(0, 0, "c"), spread=False).unique()) == 10


def test_equal_streams_give_equal_representatives() -> None:
    points = features(80, 5)
    one, two, other = (representatives(points, 12, stream(seed, 0, "c")) for seed in (0, 0, 1))
    assert torch.equal(one, two) and not torch.equal(one, other)


def test_more_clusters_than_images_are_refused_by_setting_and_class() -> None:
    with pytest.raises(ConfigError, match=r"--idc\.batch_real=128 asks for 128 clusters in class cat, which has 20 .* lower it"):
        representatives(features(20, 3), 128, stream(0, 0, "c"), name="class cat", setting="--idc.batch_real=128")
    with pytest.raises(ConfigError, match=r"--dream\.subsample=3 must divide the 10"):
        representatives(features(20, 3), 10, stream(0, 0, "c"), subsample=3)
