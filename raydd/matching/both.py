"""Gradients and mean features matched together, in one pass where derivatives are written by hand: DREAM+.

The loss of a class is D(gradients) + weight * D'(mean features), both of the same images. Source: specs/idc_dream_pdd.md section 3.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from raydd.matching import features, gradients
from raydd.matching.by_hand import bound
from raydd.matching.distances import Distance
from raydd.matching.threads import side_by_side
from raydd.models import FlatModel, convnet_derivatives


@dataclass(frozen=True)
class Targets:
    """Of every class's batch: the gradient (C, P) of the mean cross-entropy, and the mean feature (C, F)."""

    gradients: Tensor
    features: Tensor


def targets(model: FlatModel, theta: Tensor, images: Tensor, labels: Tensor, chunk: int | None = None) -> Targets:
    """What is matched, of batches (C, n, ch, H, W) with labels (C,), without any graph; `chunk` as in `gradients.class_gradients`."""
    by_hand = bound(convnet_derivatives.gradient_at, model, theta)
    if by_hand is None:
        per_class = [features.mean_features(model, theta, batch[None]) for batch in images]
        return Targets(gradients.class_gradients(model, theta, images, labels, chunk), torch.cat(per_class))

    def one(place: int) -> tuple[Tensor, Tensor]:
        return by_hand(images[place], labels[place].expand(images.shape[1]))[1:]

    return Targets(*side_by_side(one, len(images), images.device, chunk))


def scores(
    model: FlatModel,
    theta: Tensor,
    real: Targets,
    images: Tensor,
    labels: Tensor,
    distance: Distance,
    metric: str = "mse",
    weight: float = 1.0,
    chunk: int | None = None,
) -> Tensor:
    """The losses (C,) alone, first order. Arguments as for `match`."""
    ours = targets(model, theta, images, labels, chunk)
    return distance(real.gradients, ours.gradients)[0] + weight * features.feature_distance(metric, real.features, ours.features)[0]


def match(
    model: FlatModel,
    theta: Tensor,
    real: Targets,
    images: Tensor,
    labels: Tensor,
    distance: Distance,
    metric: str = "mse",
    weight: float = 1.0,
    chunk: int | None = None,
    frozen: int = 0,
) -> tuple[Tensor, Tensor]:
    """The losses (C,) and the gradient (C, m - frozen, ch, H, W) of each in its own class's images.

    real    `targets` of the real batches
    metric  mse or l1, as in `features.match_features`; `weight` of the feature term
    images, labels, distance, chunk and frozen as in `gradients.match`
    """
    by_hand = bound(convnet_derivatives.gradient_and_pullback, model, theta)

    def one(place: int) -> tuple[Tensor, Tensor]:
        gradient, mean, pullback = by_hand(images[place], labels[place].expand(images.shape[1]), frozen)
        loss, direction = distance(real.gradients[place], gradient)
        more, derivative = features.feature_distance(metric, real.features[place], mean)
        return loss + weight * more, pullback(direction, weight * derivative)

    if by_hand is not None:
        return side_by_side(one, len(images), images.device, chunk)
    losses, towards = gradients.match(model, theta, real.gradients, images, labels, distance, chunk, frozen)
    # One class at a time, as for the gradients: with a batch norm the statistics are those of the class.
    found = [
        features.match_features(model, theta, target[None], batch[None], metric, frozen=frozen)
        for target, batch in zip(real.features, images, strict=True)
    ]
    more, extra = (torch.cat(parts) for parts in zip(*found, strict=True))
    return losses + weight * more, towards + weight * extra
