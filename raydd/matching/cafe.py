"""CAFE: class means of every block's map, and real images classified by the centres of the synthetic ones.

With mu_c(.) the mean over the images of class c, f_l the maps (before pooling, the last one after it) and f the last one flattened:

    layer term l   sum over classes and entries of (mu_c(f_l real) - mu_c(f_l synthetic))^2, weighted
    discrimination sum of the same for f, plus `factor` times the cross-entropy, summed over all real images n, of the logits
                   <f_n real, mu_c(f synthetic)>

The mean cross-entropy of the network on the real images, which the reference adds to the reported total, moves no synthetic pixel and
is left out. Source: specs/dc_dsa_dm_cafe_selection_cl.md section 7.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from raydd.matching.by_hand import mixes
from raydd.models import FlatModel

FACTOR = 0.01
"""Weight of the summed cross-entropy in the reference program."""


@dataclass(frozen=True)
class RealFeatures:
    """What the synthetic images are matched with: `means`, one (C, ...) for each map, and `features` (C, n, F) of the last."""

    means: tuple[Tensor, ...]
    features: Tensor


@dataclass(frozen=True)
class Terms:
    """Every term by itself: `layers` (L,) unweighted, the distance of the centres () and the summed cross-entropy (); and the loss ()."""

    layers: Tensor
    centres: Tensor
    cross_entropy: Tensor
    loss: Tensor


def layer_weights(depth: int) -> tuple[float, ...]:
    """The reference's weights for `depth` blocks and the last pooling: 0.1, but 1 for the last block and the pooling."""
    return (*[0.1] * (depth - 1), 1.0, 1.0)


@torch.no_grad()
def real_features(model: FlatModel, theta: Tensor, images: Tensor, chunk: int | None = None) -> RealFeatures:
    """Means of all maps, and the last one's features, of real batches (C, n, ch, H, W), `chunk` classes at a time."""
    parts = [_class_maps(model, theta, x) for x in images.split(chunk or len(images))]
    means = tuple(torch.cat([maps[place].mean(1) for maps in parts]) for place in range(len(parts[0])))
    return RealFeatures(means, torch.cat([maps[-1].flatten(2) for maps in parts]))


def match(
    model: FlatModel,
    theta: Tensor,
    real: RealFeatures,
    images: Tensor,
    weights: Sequence[float],
    factor: float = FACTOR,
    chunk: int | None = None,
    frozen: int = 0,
) -> tuple[Terms, Tensor]:
    """CAFE's loss and its gradient (C, m - frozen, ch, H, W) in the synthetic batches (C, m, ch, H, W).

    weights  of the layer terms, one for each map
    factor   of the summed cross-entropy
    chunk    classes that go through together, None for all; it bounds memory. The centres couple the classes, so fewer than all cost a
             second forward pass. With a batch norm statistics are those of the chunk, None is the reference's form.
    frozen   how many images of each class, its first ones, are held fixed
    """
    chunks = images.split(chunk or len(images))
    if len(chunks) == 1:
        graphs = [_graph(model, theta, images, frozen)]
        centres = graphs[0][1][-1].detach().flatten(1)
    else:
        centres = torch.cat([_centres(model, theta, x) for x in chunks])
        graphs = (_graph(model, theta, x, frozen) for x in chunks)
    surprise, pull = _discrimination(real, centres)
    distance, layers, towards = (centres - real.means[-1].flatten(1)).square().sum(), [], []
    places = torch.arange(len(images), device=images.device).split(chunk or len(images))
    for place, (x, means) in zip(places, graphs, strict=True):
        differences = [mine.detach() - theirs[place] for mine, theirs in zip(means, real.means, strict=True)]
        layers.append(torch.stack([difference.square().sum() for difference in differences]))
        slopes = [2 * weight * difference for weight, difference in zip(weights, differences, strict=True)]
        slopes[-1] += 2 * differences[-1] + factor * pull[place].view_as(slopes[-1])
        towards += torch.autograd.grad(means, x, slopes)
    return _terms(torch.stack(layers).sum(0), weights, distance, surprise, factor), torch.cat(towards)


@torch.no_grad()
def score(
    model: FlatModel,
    theta: Tensor,
    real: RealFeatures,
    images: Tensor,
    weights: Sequence[float],
    factor: float = FACTOR,
    chunk: int | None = None,
) -> Terms:
    """The same loss alone, without any graph. Arguments as for `match`."""
    means = real_features(model, theta, images, chunk).means
    layers = torch.stack([(mine - theirs).square().sum() for mine, theirs in zip(means, real.means, strict=True)])
    centres = means[-1].flatten(1)
    return _terms(layers, weights, (centres - real.means[-1].flatten(1)).square().sum(), _discrimination(real, centres)[0], factor)


def _terms(layers: Tensor, weights: Sequence[float], distance: Tensor, surprise: Tensor, factor: float) -> Terms:
    loss = (layers * layers.new_tensor(weights)).sum() + distance + factor * surprise
    return Terms(layers, distance, surprise, loss)


def _discrimination(real: RealFeatures, centres: Tensor) -> tuple[Tensor, Tensor]:
    """The summed cross-entropy () of the real images against the centres (C, F), and its derivative (C, F) in them."""
    features = real.features.flatten(0, 1)
    labels = torch.arange(len(centres), device=centres.device).repeat_interleave(real.features.shape[1])
    logits = features @ centres.T
    towards = logits.softmax(1).scatter_add_(1, labels[:, None], logits.new_full((len(labels), 1), -1.0))
    return cross_entropy(logits, labels, reduction="sum"), towards.T @ features


def _graph(model: FlatModel, theta: Tensor, images: Tensor, frozen: int) -> tuple[Tensor, list[Tensor]]:
    """The free images (k, m - frozen, ch, H, W), which record what happens to them, and the class means (k, ...) of all maps.

    Where images do not mix, the frozen ones go by themselves and leave no graph.
    """
    free, fixed = images[:, frozen:].detach().requires_grad_(), images[:, :frozen]
    with torch.enable_grad():
        if not frozen or mixes(model):
            return free, [maps.mean(1) for maps in _class_maps(model, theta, torch.cat([fixed, free], dim=1))]
    with torch.no_grad():
        others = [maps.sum(1) for maps in _class_maps(model, theta, fixed)]
    with torch.enable_grad():
        own = [maps.sum(1) for maps in _class_maps(model, theta, free)]
        return free, [(one + other) / images.shape[1] for one, other in zip(own, others, strict=True)]


@torch.no_grad()
def _centres(model: FlatModel, theta: Tensor, images: Tensor) -> Tensor:
    return _class_maps(model, theta, images)[-1].mean(1).flatten(1)


def _class_maps(model: FlatModel, theta: Tensor, images: Tensor) -> list[Tensor]:
    """Every map as (C, n, ...) of images (C, n, ch, H, W)."""
    return [maps.unflatten(0, images.shape[:2]) for maps in model.maps(theta, images.flatten(0, 1))]
