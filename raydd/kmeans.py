"""k-means, and the images nearest to its centres: DREAM's representatives of a class.

Source: specs/idc_dream_pdd.md section 2 (new_strategy.py of the reference, with fast_pytorch_kmeans): full-batch Lloyd from random data
points, until all centres together move by at most 1e-4 (squared) or 100 passes are done.

Our own Lloyd rather than scikit-learn's, because it was faster and also runs where the features are, on a GPU. From the same start, to
the same centres (largest difference 7e-7), one thread of an AMD EPYC that others used too, float32, in turn, median milliseconds:

    images x features, centres                     passes     own   scikit-learn
    5000 x 2048, 128 (a class of CIFAR-10)             26    1341           1922
    500 x 2048, 128 (as many as CIFAR-100 has)          4    12.2           17.2
    183 x 128, 64 (a class of the digits)               7     0.8            1.1

The difference is that distances to centres that did not move are kept. All classes in one batched pass were not faster than one after
another.
"""

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from raydd.errors import ConfigError

ITERATIONS, TOLERANCE = 100, 1e-4


def kmeans(features: Tensor, start: Tensor, iterations: int = ITERATIONS, tolerance: float = TOLERANCE, reseed: bool = True) -> Tensor:
    """Centres (k, F) of features (n, F) by Lloyd's iteration from `start` (k, F), float, on the features' device.

    Stops when the squared distances that the centres move sum up to at most `tolerance`, or after so many iterations. A centre without
    images goes to the image that is farthest from its own centre, further ones to the next farthest; without `reseed` it becomes the
    zero vector, as in the reference.
    """
    centres, scores = start, _scores(features, start)
    for _ in range(iterations):
        moved = _means(features, scores, len(centres), reseed)
        step = (moved - centres).square().sum()
        # A cluster that no image joins or leaves keeps its mean to the last bit, and with it its distances. Late passes move few.
        others = torch.nonzero((moved != centres).any(1)).squeeze(1)
        centres = moved
        if step <= tolerance:
            break
        scores[:, others] = _scores(features, centres[others])
    return centres


def squared_distances(features: Tensor, centres: Tensor) -> Tensor:
    """Squared Euclidean distance of every centre (k, F) to every image (n, F): (k, n), not below 0."""
    products = torch.addmm(features.square().sum(1), centres, features.T, alpha=-2)
    return (products + centres.square().sum(1)[:, None]).clamp(min=0)


def nearest(features: Tensor, centres: Tensor, subsample: int = 1) -> Tensor:
    """The `subsample` images nearest to each centre, nearest first: places int64 (k x subsample,), centre by centre.

    Of all images, not only those of the centre's cluster; two centres may share one, as in the reference.
    """
    return squared_distances(features, centres).topk(subsample, dim=1, largest=False).indices.flatten()


def nearest_to_any(features: Tensor, centres: Tensor, count: int) -> Tensor:
    """The `count` different images with the least distance to any centre: int64 (count,). The reference's choice for Tiny-ImageNet."""
    return squared_distances(features, centres).amin(0).topk(count, largest=False).indices


def representatives(
    features: Tensor,
    count: int,
    generator: Generator,
    *,
    subsample: int = 1,
    spread: bool = True,
    iterations: int = ITERATIONS,
    reseed: bool = True,
    name: str = "the set",
    setting: str = "--idc.batch_real",
) -> Tensor:
    """Places int64 (count,) of `count` images that represent all n of features (n, F), on their device.

    count / subsample clusters from random different images, then of each centre the `subsample` nearest images; without `spread` the
    images nearest to any centre, which are all different. Raises `ConfigError`, naming the `setting` that asked for `count` and the
    class `name`, when there are fewer images, and `--dream.subsample` when it does not divide `count`.
    """
    if count > len(features):
        raise ConfigError([f"{setting} asks for {count} clusters in {name}, which has {len(features)} training images; lower it."])
    if count % subsample:
        raise ConfigError([f"--dream.subsample={subsample} must divide the {count} images that {setting} asks for."])
    start = torch.randperm(len(features), generator=generator)[: count // subsample].to(features.device)
    centres = kmeans(features, features[start], iterations, reseed=reseed)
    return nearest(features, centres, subsample) if spread else nearest_to_any(features, centres, count)


def _scores(features: Tensor, centres: Tensor) -> Tensor:
    """Squared distances (n, k) less the squared norm of the image, which does not decide which centre is nearest."""
    return torch.addmm(centres.square().sum(1), features, centres.T, alpha=-2)


def _means(features: Tensor, scores: Tensor, k: int, reseed: bool) -> Tensor:
    """The mean (k, F) of the images nearest to each centre."""
    least, labels = scores.min(1)
    sums, counts = _sums(features, labels, k)
    means = sums / counts.clamp(min=1)[:, None]
    empty = counts == 0
    if reseed and bool(empty.any()):
        means[empty] = features[(least + features.square().sum(1)).topk(int(empty.sum())).indices]
    return means


def _sums(features: Tensor, labels: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Sum (k, F) and number (k,) of the images of each cluster."""
    if features.is_cuda:
        # A product, because scattered additions come in no fixed order there.
        members = F.one_hot(labels, k).to(features.dtype)
        return members.T @ features, members.sum(0)
    counts = torch.bincount(labels, minlength=k).to(features.dtype)
    return features.new_zeros(k, features.shape[1]).index_add_(0, labels, features), counts
