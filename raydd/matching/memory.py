"""How much memory matching one class takes at once, predicted by counting before anything runs.

The images, the real gradients (C, P) and the answer are the caller's and come on top. So many classes are in memory at once as go
side by side (`chunk` of `raydd.matching.gradients`), one where derivatives are automatic.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from raydd.matching.by_hand import mixes
from raydd.models import FlatModel, convnet_derivatives
from raydd.rng import stream

# Measured peaks of tensor memory, over what is counted below, at widths 8 to 128: see tests/matching/test_memory.py.
MAPS = 6
"""First-block maps that the derivatives written by hand work with, for each image of a chunk."""
VECTORS = 6
"""Vectors of P numbers in use: gradients, a direction, and weights laid out for the convolutions."""
FIRST, SECOND = 1.4, 2.7
"""Peaks of automatic first and second derivatives over what their graphs keep; batch and layer norms come near, others need less."""


def class_bytes(model: FlatModel, real: int, synthetic: int, frozen: int = 0) -> int:
    """Bytes for one class of `real` and `synthetic` images in float32 on a CPU, at the peak of `class_gradients` and `match`.

    The first `frozen` of the synthetic ones are held fixed.
    """
    if convnet_derivatives.supports(model.config):
        return VECTORS * model.size * 4 + _by_hand(model, real, synthetic, frozen)
    free = synthetic if mixes(model) else synthetic - frozen
    first, second = FIRST * max(real, frozen) * _graph_bytes(model, False), SECOND * free * _graph_bytes(model, True)
    return VECTORS * model.size * 4 + int(max(first, second))


def _by_hand(model: FlatModel, real: int, synthetic: int, frozen: int) -> int:
    spec = convnet_derivatives.spec(model.config, model.shape, model.classes)
    padding = spec.forms()[0].padding
    pixels = math.prod(side + 2 * padding - 2 for side in spec.shape[1:])
    together = min(convnet_derivatives.chunk_size(spec, torch.empty(0, *spec.shape)), max(real, synthetic))
    return MAPS * together * 4 * spec.width * pixels + (synthetic - frozen) * convnet_derivatives.kept_bytes(spec, model.size)


def _graph_bytes(model: FlatModel, second: bool) -> int:
    """What automatic differentiation keeps of each image for the gradient in theta, or for that of its gradient in the images."""
    one, two = (_kept_by(model, count, second) for count in (1, 2))
    return two - one


def _kept_by(model: FlatModel, count: int, second: bool) -> int:
    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    theta = model.init(stream(0, 0, "plan")).requires_grad_()
    images = torch.randn(count, *model.shape, generator=stream(0, 0, "plan-images")).requires_grad_(second)
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = cross_entropy(model(theta, images), torch.zeros(count, dtype=torch.int64))
        graph = torch.autograd.grad(loss, theta, create_graph=True) if second else loss
    del graph, loss
    return sum(storages.values())
