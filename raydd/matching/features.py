"""Distribution matching: class means of features of real and synthetic images, and the gradient in the synthetic images.

DM: specs/dc_dsa_dm_cafe_selection_cl.md section 6. DREAM+: specs/idc_dream_pdd.md section 3. CAFE: `raydd.matching.cafe`.

`network` is a `FlatModel`, whose features are those of `embed`, or any function `(theta (P,), images (B, ch, H, W)) -> (B, F)`.
`chunk` bounds memory. Classes of one chunk go through the network together, so with a batch norm its statistics are those of the
chunk: None, all classes at once, is then the reference's form. Without one every chunk gives the same numbers up to rounding, and
networks with derivatives written by hand take one class at a time, on a CPU up to `chunk` of them side by side.
"""

import torch
from torch import Tensor

from raydd.matching.by_hand import Network, bound, mixes
from raydd.matching.threads import side_by_side
from raydd.models import FlatModel, convnet_derivatives


def mean_features(network: Network, theta: Tensor, images: Tensor, chunk: int | None = None) -> Tensor:
    """The mean feature (C, F) of every class's batch (C, n, ch, H, W), without any graph."""
    by_hand = bound(convnet_derivatives.mean_feature, network, theta)
    if by_hand is not None:
        return side_by_side(lambda place: (by_hand(images[place]),), len(images), images.device, chunk)[0]
    with torch.no_grad():
        return torch.cat([_means(network, theta, x) for x in images.split(chunk or len(images))])


def match_features(
    network: Network, theta: Tensor, real: Tensor, images: Tensor, metric: str = "mse", chunk: int | None = None, frozen: int = 0
) -> tuple[Tensor, Tensor]:
    """The losses (C,) between mean features and the gradient (C, m - frozen, ch, H, W) of each in its own class's images.

    real    (C, F), the `mean_features` of the real batches
    images  (C, m, ch, H, W), the synthetic batches as the network sees them
    metric  mse: sum over the features of squared differences (DM, and DREAM+'s feature term); l1: of absolute ones
    frozen  how many images of each class, its first ones, are held fixed

    With a batch norm the classes are not independent: the gradient is that of the sum of the losses.
    Raises `ValueError` for another metric.
    """
    by_hand = bound(convnet_derivatives.mean_feature_and_pullback, network, theta)

    def one(place: int) -> tuple[Tensor, Tensor]:
        mean, pullback = by_hand(images[place], frozen)
        loss, derivative = feature_distance(metric, real[place], mean)
        return loss, pullback(derivative)

    if by_hand is not None:
        return side_by_side(one, len(images), images.device, chunk)
    losses, towards = [], []
    for target, x in zip(real.split(chunk or len(real)), images.split(chunk or len(images)), strict=True):
        free, means = _graph(network, theta, x, frozen)
        loss, derivative = feature_distance(metric, target, means.detach())
        losses.append(loss)
        towards += torch.autograd.grad(means, free, derivative)
    return torch.cat(losses), torch.cat(towards)


def feature_distance(metric: str, real: Tensor, synthetic: Tensor) -> tuple[Tensor, Tensor]:
    """The losses () or (C,) between mean features (F,) or (C, F), and the derivative in the synthetic ones; metric as above."""
    difference = synthetic - real
    if metric == "mse":
        return difference.square().sum(-1), 2 * difference
    if metric == "l1":
        return difference.abs().sum(-1), difference.sign()
    raise ValueError(f"no feature distance {metric!r}; known: mse, l1")


def _graph(network: Network, theta: Tensor, images: Tensor, frozen: int) -> tuple[Tensor, Tensor]:
    """The free images (C, m - frozen, ch, H, W), which record what happens to them, and the mean features (C, F) of all.

    Where images do not mix, the frozen ones go by themselves and leave no graph.
    """
    free, fixed = images[:, frozen:].detach().requires_grad_(), images[:, :frozen]
    with torch.enable_grad():
        if not frozen or mixes(network):
            return free, _means(network, theta, torch.cat([fixed, free], dim=1))
        own = _means(network, theta, free) * free.shape[1]
    with torch.no_grad():
        others = _means(network, theta, fixed) * frozen
    with torch.enable_grad():
        return free, (own + others) / images.shape[1]


def _means(network: Network, theta: Tensor, images: Tensor) -> Tensor:
    """(C, F) of (C, n, ch, H, W)."""
    embed = network.embed if isinstance(network, FlatModel) else network
    return embed(theta, images.flatten(0, 1)).unflatten(0, images.shape[:2]).mean(1)
