"""First and second derivatives of a ConvNet's mean cross-entropy, written by hand: the inner loop of trajectory matching.

With g = d loss / d theta, `gradient` returns g, and `adjoint_step` returns <g, v>, H v = d<g, v>/d theta and d<g, v>/d images for a
direction v. The second is forward over reverse: every intermediate value carries its derivative along v (theta moves, the images do
not), up through the network and down again; the derivative of the loss along v is <g, v>, that of its gradient with respect to
(theta, images) is the pair wanted. Nothing is recorded, and the gradient with respect to theta itself is never formed.

Images are independent of one another but for the mean over them, so a batch goes through in chunks that stay in the processor's
cache. Chunks are a function of the network and the kind of device alone and are added in order: equal inputs give equal bits.

Exact up to rounding (double backward of automatic differentiation in float64 agrees to 1e-10). Source of the recursion that uses
these: specs/mtt_pdd.md sections 6.4 and 6.5; forward over reverse for bilevel gradients: MixFlow-MG (arXiv 2505.00793).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from raydd.config import ModelConfig
from raydd.models import convnet_block, convnet_first_block, convnet_tiles
from raydd.models.convnet_block import Form, Layer

CHUNK_BYTES = {"cpu": 5 << 20}
"""Bytes of first-block output per chunk, by device type: a few such maps fit in a processor's last-level cache."""
OTHER_CHUNK_BYTES = 1 << 30
"""The same for device types not named above, where the number of kernel launches counts instead."""


TILED_WIDTH = 64
"""Channels from which the tiled convolutions are faster, on a CPU."""


@dataclass(frozen=True)
class ConvNetSpec:
    """A ConvNet that the hand-written derivatives cover.

    shape (C, H, W) of the images; `width` channels in each of `depth` blocks; `norm`: instance normalisation in every block;
    `pool`: 2 x 2 average pooling in every block.
    """

    shape: tuple[int, int, int]
    classes: int
    width: int
    depth: int
    norm: bool
    pool: bool

    def forms(self, device: str = "cpu") -> list[Form]:
        """Every block, as computed on a type of device. The first convolution of grey images is padded by 3."""
        wide = device == "cpu" and self.width >= TILED_WIDTH
        forms, sides = [], self.shape[1:]
        for block in range(self.depth):
            padding = 3 if self.shape[0] == 1 and block == 0 else 1
            sides = [side + 2 * padding - 2 for side in sides]
            forms.append(Form(padding, self.norm, self.pool, tiled=block > 0 and wide and sides[0] % 4 == 0))
            sides = [side // 2 if self.pool else side for side in sides]
        return forms

    def sides(self) -> tuple[int, int]:
        """Height and width of the last map."""
        sides = [side + 2 * self.forms()[0].padding - 2 for side in self.shape[1:]]
        return tuple(side >> self.depth if self.pool else side for side in sides)


class _Parameters(NamedTuple):
    """Parts of a flat vector: the blocks, and the classifier (classes, F) and (classes,)."""

    layers: list[Layer]
    weight: Tensor
    bias: Tensor


def supports(config: ModelConfig) -> bool:
    """Whether `spec` accepts the network: a ConvNet with ReLU, instance or no normalisation, average or no pooling."""
    return (
        config.name == "convnet"
        and config.activation == "relu"
        and config.norm in ("instance", "none")
        and config.pooling in ("avg", "none")
    )


def spec(config: ModelConfig, shape: tuple[int, int, int], classes: int) -> ConvNetSpec:
    """The description of a supported network for images (C, H, W). Raises `ValueError` when `supports` says no."""
    if not supports(config):
        raise ValueError(f"no hand-written derivatives for {config}")
    return ConvNetSpec(tuple(shape), classes, config.width, config.depth, config.norm == "instance", config.pooling == "avg")


@torch.no_grad()
def gradient(spec: ConvNetSpec, theta: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy () and its gradient (P,) with respect to theta (P,).

    images (B, C, H, W), labels int64 (B,); float32 or float64. The gradient of a convolution bias before a normalisation is zero.
    """
    network, total, loss = _ready(spec, theta), torch.zeros_like(theta), theta.new_zeros(())
    grad = _accumulators(spec, total)
    for x, y in _chunks(spec, images, labels):
        loss += _gradient_of_chunk(spec, network, grad, x, y, 1 / len(labels))
    return loss, _flat(spec, total, grad)


@torch.no_grad()
def adjoint_step(spec: ConvNetSpec, theta: Tensor, images: Tensor, labels: Tensor, direction: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """With g the gradient of the mean cross-entropy in theta: <g, direction> (), H direction (P,), d<g, direction>/d images (B, C, H, W).

    theta and direction (P,), images (B, C, H, W), labels int64 (B,); float32 or float64.
    """
    network, along = _ready(spec, theta), _ready(spec, direction)
    total, slope, towards_images = torch.zeros_like(theta), theta.new_zeros(()), []
    grad = _accumulators(spec, total)
    for x, y in _chunks(spec, images, labels):
        moved, towards = _adjoint_of_chunk(spec, network, along, grad, x, y, 1 / len(labels))
        slope += moved
        towards_images.append(towards.permute(0, 3, 1, 2))
    return slope, _flat(spec, total, grad), torch.cat(towards_images).contiguous()


def _gradient_of_chunk(spec: ConvNetSpec, network: _Parameters, grad: _Parameters, x: Tensor, labels: Tensor, share: float) -> Tensor:
    """Add the gradient of `share` times the summed loss of a chunk to `grad`; return that loss."""
    first, forms, saved = _first(spec), spec.forms(x.device.type), []
    for block, layer in enumerate(network.layers):
        x, kept = (first if block == 0 else convnet_block).forward(forms[block], layer, x)
        saved.append(kept)
    features = x.flatten(1)
    logits = torch.addmm(network.bias, features, network.weight.T)
    loss = cross_entropy(logits, labels, reduction="sum") * share
    towards = _minus_one(logits.softmax(1), labels).mul_(share)
    grad.weight.addmm_(towards.T, features)
    grad.bias.add_(towards.sum(0))
    dp = (towards @ network.weight).view_as(x)
    for block in range(spec.depth - 1, 0, -1):
        dp = convnet_block.backward(forms[block], network.layers[block], saved[block], dp, grad.layers[block], to_input=True)
    first.backward(forms[0], network.layers[0], saved[0], dp, grad.layers[0])
    return loss


def _adjoint_of_chunk(
    spec: ConvNetSpec, network: _Parameters, along: _Parameters, grad: _Parameters, x: Tensor, labels: Tensor, share: float
) -> tuple[Tensor, Tensor]:
    """Add the tangent of the chunk's gradient to `grad`; return the tangents of its loss () and of its image gradient (B, H, W, C)."""
    first, forms, saved = _first(spec), spec.forms(x.device.type), []
    for block, (layer, direction) in enumerate(zip(network.layers, along.layers, strict=True)):
        x, kept = (first if block == 0 else convnet_block).forward_tangent(forms[block], layer, direction, x)
        saved.append(kept)
    features, features_moved = x.flatten(2)
    chance = torch.addmm(network.bias, features, network.weight.T).softmax(1)
    logits_moved = torch.addmm(along.bias, features, along.weight.T).addmm_(features_moved, network.weight.T)
    # derivative of softmax p along z': p * (z' - <p, z'>)
    towards_moved = chance * (logits_moved - (chance * logits_moved).sum(1, keepdim=True)) * share
    towards = _minus_one(chance, labels).mul_(share)
    slope = (towards * logits_moved).sum()
    grad.weight.addmm_(towards_moved.T, features).addmm_(towards.T, features_moved)
    grad.bias.add_(towards_moved.sum(0))
    dp = torch.stack([torch.addmm(towards @ along.weight, towards_moved, network.weight), towards @ network.weight]).view_as(x)
    for block in range(spec.depth - 1, -1, -1):
        module = first if block == 0 else convnet_block
        dp = module.backward_tangent(forms[block], network.layers[block], along.layers[block], saved[block], dp, grad.layers[block])
    return slope, dp


def _first(spec: ConvNetSpec) -> ModuleType:
    """The module that computes the first block."""
    return convnet_first_block if convnet_first_block.folds(spec.forms()[0], spec.shape, spec.width) else convnet_block


def _minus_one(chance: Tensor, labels: Tensor) -> Tensor:
    """Softmax minus one-hot labels, in place: the gradient of the summed cross-entropy in the logits."""
    return chance.scatter_add_(1, labels[:, None], chance.new_full((len(labels), 1), -1.0))


def _chunks(spec: ConvNetSpec, images: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Images (B, H, W, C) and their labels, chunk by chunk."""
    size = chunk_size(spec, images)
    return zip(images.permute(0, 2, 3, 1).contiguous().split(size), labels.split(size), strict=True)


def chunk_size(spec: ConvNetSpec, images: Tensor) -> int:
    """Images per chunk."""
    padding = spec.forms()[0].padding
    pixels = math.prod(side + 2 * padding - 2 for side in spec.shape[1:])
    return max(1, CHUNK_BYTES.get(images.device.type, OTHER_CHUNK_BYTES) // (spec.width * pixels * images.element_size()))


def _views(spec: ConvNetSpec, theta: Tensor) -> _Parameters:
    """The parameters in theta (P,), block by block; only the classifier's weight is a copy, its columns in (row, column, channel) order."""
    channels, layers, parts = spec.shape[0], [], list(theta.split(_sizes(spec)))
    for _ in range(spec.depth):
        weight = parts.pop(0).view(spec.width, channels, 3, 3)
        layers.append(Layer(weight, parts.pop(0), *([parts.pop(0), parts.pop(0)] if spec.norm else [None, None])))
        channels = spec.width
    weight = parts[0].view(spec.classes, spec.width, *spec.sides()).permute(0, 2, 3, 1)
    return _Parameters(layers, weight.clone(memory_format=torch.contiguous_format).flatten(1), parts[1])


def _ready(spec: ConvNetSpec, theta: Tensor) -> _Parameters:
    """Parameters with the weights as the convolutions want them: raised, or laid out channels last, once for all chunks."""
    parameters, layers = _views(spec, theta), []
    for form, layer in zip(spec.forms(theta.device.type), parameters.layers, strict=True):
        raised = convnet_tiles.raise_weight(layer.weight) if form.tiled else layer.weight
        layers.append(layer._replace(weight=raised.contiguous(memory_format=torch.channels_last)))
    return parameters._replace(layers=layers)


def _accumulators(spec: ConvNetSpec, total: Tensor) -> _Parameters:
    """Where the chunks add up: views of `total` (P,), zeros; the raised weights and the classifier's weight are apart from it."""
    parameters = _views(spec, total)
    layers = [
        layer._replace(weight=convnet_tiles.raised_zeros(layer.weight)) if form.tiled else layer
        for form, layer in zip(spec.forms(total.device.type), parameters.layers, strict=True)
    ]
    return parameters._replace(layers=layers)


def _flat(spec: ConvNetSpec, total: Tensor, grad: _Parameters) -> Tensor:
    """`total` (P,) with those parts of its accumulators that are apart from it put in their places."""
    for form, layer, part in zip(spec.forms(total.device.type), _views(spec, total).layers, grad.layers, strict=True):
        if form.tiled:
            layer.weight.copy_(convnet_tiles.lower_weight(part.weight))
    weight = grad.weight.view(spec.classes, *spec.sides(), spec.width).permute(0, 3, 1, 2)
    total.split(_sizes(spec))[-2].view(weight.shape).copy_(weight)
    return total


def _sizes(spec: ConvNetSpec) -> list[int]:
    """Entries of every parameter tensor in flat order."""
    sizes, channels = [], spec.shape[0]
    for _ in range(spec.depth):
        sizes += [spec.width * channels * 9, spec.width, *([spec.width, spec.width] if spec.norm else [])]
        channels = spec.width
    return [*sizes, spec.classes * spec.width * math.prod(spec.sides()), spec.classes]
