"""How much memory matching one class takes at once, predicted by counting before anything runs.

The images, the real gradients (C, P) and the answer are the caller's and come on top. So many classes are in memory at once as go
side by side (`chunk` of `raydd.matching.gradients`), or together (that of `features` and `cafe` under automatic derivatives); one
where gradients are matched under automatic derivatives.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from raydd.matching.by_hand import mixes
from raydd.models import FlatModel, convnet_derivatives
from raydd.rng import stream

Matched = Literal["gradients", "features", "maps"]
"""What is matched: gradients (`gradients`, and with features beside them `both`), mean `features`, or the maps of every block (`cafe`)."""

# Measured peaks of tensor memory, over what is counted below, at widths 8 to 128: see tests/matching/test_memory.py.
MAPS = {"gradients": 6, "features": 4}
"""First-block maps that the derivatives written by hand work with, for each image of a chunk."""
KEPT = {"gradients": 1.0, "features": 0.8}
"""What they keep of each free image, over `convnet_derivatives.kept_bytes`."""
VECTORS = 6
"""Vectors of P numbers in use: gradients, a direction, and weights laid out for the convolutions."""
FIRST, SECOND = 1.4, 2.7
"""Peaks of automatic first and second derivatives over what their graphs keep; batch and layer norms come near, others need less."""
TOWARDS_IMAGES, LARGEST = 1.2, 3
"""The peak of automatic derivatives of features in the images: so often what the graph keeps, and so many of its largest map."""


def by_hand(model: FlatModel, matched: Matched = "gradients") -> bool:
    """Whether derivatives written by hand are taken; classes then never go through the network together."""
    return matched != "maps" and convnet_derivatives.supports(model.config)


def class_bytes(
    model: FlatModel, real: int, synthetic: int, frozen: int = 0, matched: Matched = "gradients", device: torch.device | str = "cpu"
) -> int:
    """Bytes for one class of `real` and `synthetic` images in float32, at the peak of finding what the real ones are matched by and of
    `match`, whichever takes more; either number may be 0. Measured on a CPU.

    The first `frozen` of the synthetic ones are held fixed.
    """
    vectors = VECTORS * model.size * 4
    if by_hand(model, matched):
        return vectors + _by_hand(model, real, synthetic, frozen, matched, torch.device(device).type)
    free = synthetic if mixes(model) else synthetic - frozen
    if matched == "gradients":
        first, second = FIRST * max(real, frozen) * _graph_bytes(model, False), SECOND * free * _graph_bytes(model, True)
        return vectors + int(max(first, second))
    kept, largest = _feature_bytes(model, matched)
    images = LARGEST * math.prod(model.shape) * 4
    without, graph = max(2 * largest, kept / 2) + images, TOWARDS_IMAGES * kept + LARGEST * largest + images
    return vectors + int(max(without * max(real, frozen), graph * free))


def _by_hand(model: FlatModel, real: int, synthetic: int, frozen: int, matched: Matched, device: str) -> int:
    spec = convnet_derivatives.spec(model.config, model.shape, model.classes)
    padding = spec.forms()[0].padding
    pixels = math.prod(side + 2 * padding - 2 for side in spec.shape[1:])
    # No images: only the kind of device decides, and "meta" stands for any but a CPU.
    none = torch.empty(0, *spec.shape, device="cpu" if device == "cpu" else "meta")
    most, first_map = convnet_derivatives.chunk_size(spec, none), MAPS[matched] * 4 * spec.width * pixels
    free = synthetic - frozen
    kept = KEPT[matched] * convnet_derivatives.kept_bytes(spec, model.size) if free else 0
    return max(first_map * min(most, max(real, frozen)), first_map * min(most, free) + int(kept * free))


def _graph_bytes(model: FlatModel, second: bool) -> int:
    """What automatic differentiation keeps of each image for the gradient in theta, or for that of its gradient in the images."""

    def differentiated(theta: Tensor, images: Tensor) -> Tensor:
        loss = cross_entropy(model(theta, images), torch.zeros(len(images), dtype=torch.int64))
        return torch.autograd.grad(loss, theta, create_graph=True)[0] if second else loss

    return _of_each_image(model, differentiated, towards_theta=True, towards_images=second)[0]


def _feature_bytes(model: FlatModel, matched: Matched) -> tuple[int, int]:
    """What automatic differentiation keeps of each image for the gradient of its features, or maps, in it; and the largest part of that."""
    through = model.maps if matched == "maps" else model.embed
    return _of_each_image(model, through, towards_theta=False, towards_images=True)


def _of_each_image(
    model: FlatModel, work: Callable[[Tensor, Tensor], object], towards_theta: bool, towards_images: bool
) -> tuple[int, int]:
    """(bytes that the graph of `work(theta, images)` keeps of each image, those of its largest tensor), from one and from two images."""
    totals, largest = [], []
    for count in (1, 2):
        storages: dict[int, int] = {}

        def keep(tensor: Tensor, storages: dict[int, int] = storages) -> Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        theta = model.init(stream(0, 0, "plan")).requires_grad_(towards_theta)
        images = torch.randn(count, *model.shape, generator=stream(0, 0, "plan-images")).requires_grad_(towards_images)
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            graph = work(theta, images)
        del graph
        totals.append(sum(storages.values()))
        largest.append(max(storages.values(), default=0))
    return totals[1] - totals[0], largest[1] - largest[0]
