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
from collections.abc import Callable, Iterator
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


class Parameters(NamedTuple):
    """Parts of a flat vector: the blocks, and the classifier (classes, F) and (classes,), its columns in (row, column, channel) order."""

    layers: list[Layer]
    weight: Tensor
    bias: Tensor


Pullback = Callable[[Tensor, Tensor | None], Tensor]


class _Way(NamedTuple):
    """What one chunk keeps of its first way up and down, for the second one.

    saved, kept  of every block, by its module; features (B, F); (B, classes): logits, softmax, and the loss's gradient in the logits
    """

    saved: list
    kept: list
    features: Tensor
    logits: Tensor
    chance: Tensor
    towards: Tensor


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

    images (B, C, H, W); labels int64 (B,), or chances of the classes (B, classes); float32 or float64. The gradient of a convolution
    bias before a normalisation is zero.
    """
    return gradient_at(spec, prepare(spec, theta), images, labels)[:2]


@torch.no_grad()
def gradient_at(spec: ConvNetSpec, network: Parameters, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same two for parameters from `prepare`, which serve any number of batches, and the mean feature (F,)."""
    total, loss, features = images.new_zeros(sum(_sizes(spec))), images.new_zeros(()), 0
    grad = _accumulators(spec, total)
    for x, y in _chunks(spec, images, labels):
        way = _first_way(spec, network, grad, x, y, 1 / len(labels), keep=False)
        loss += cross_entropy(way.logits, y, reduction="sum") / len(labels)
        features = features + way.features.sum(0)
        del way  # its maps, before the next chunk's need their place in the cache
    return loss, _flat(spec, total, grad), _by_channel(spec, features / len(labels))


@torch.no_grad()
def gradient_and_pullback(
    spec: ConvNetSpec, network: Parameters, images: Tensor, labels: Tensor, frozen: int = 0
) -> tuple[Tensor, Tensor, Pullback]:
    """The gradient g (P,) of the mean cross-entropy in theta, the mean feature (F,), and a function for d<g, direction>/d images.

    network  from `prepare`; images (B, C, H, W), labels int64 (B,); float32 or float64
    frozen   how many images, the first ones, are held fixed: of these nothing is kept and nothing is derived

    The function takes a direction (P,), and the derivative (F,) of anything more in the mean feature, or None; it returns
    (B - frozen, C, H, W). It keeps the maps of the images that are free, and forms no derivative in theta, nor any value twice.
    """
    total, features, ways = images.new_zeros(sum(_sizes(spec))), 0, []
    grad = _accumulators(spec, total)
    for x, y in _chunks(spec, images[:frozen], labels[:frozen]) if frozen else ():
        features = features + _first_way(spec, network, grad, x, y, 1 / len(labels), keep=False).features.sum(0)
    for x, y in _chunks(spec, images[frozen:], labels[frozen:]):
        ways.append(_first_way(spec, network, grad, x, y, 1 / len(labels), keep=True))
        features = features + ways[-1].features.sum(0)

    @torch.no_grad()
    def pullback(direction: Tensor, towards_mean: Tensor | None = None) -> Tensor:
        along = prepare(spec, direction)
        extra = None if towards_mean is None else _by_pixel(spec, towards_mean) / len(labels)
        # Last chunk first: some of it is still in the cache.
        return _image_order([_second_way(spec, network, along, way, extra, 1 / len(labels)) for way in reversed(ways)][::-1])

    return _flat(spec, total, grad), _by_channel(spec, features / len(labels)), pullback


def kept_bytes(spec: ConvNetSpec, size: int, element: int = 4) -> int:
    """What `gradient_and_pullback` keeps of each image until its function is dropped, in bytes, counted; `size` is P."""
    one, two = (_kept_by(spec, torch.zeros(size), torch.zeros(count, *spec.shape)) for count in (1, 2))
    return (two - one) * element // 4


@torch.no_grad()
def mean_feature(spec: ConvNetSpec, network: Parameters, images: Tensor) -> Tensor:
    """The mean (F,) of the features before the classifier, of images (B, C, H, W)."""
    return _by_channel(spec, sum(_features(spec, network, x)[0].sum(0) for x in _split(spec, images)) / len(images))


@torch.no_grad()
def mean_feature_and_pullback(
    spec: ConvNetSpec, network: Parameters, images: Tensor, frozen: int = 0
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The same mean (F,), and a function from a derivative (F,) in it to that in the images, to be called once.

    It returns (B - frozen, C, H, W), without the first `frozen` images, of which nothing is kept.
    """
    fixed = sum(_features(spec, network, x)[0].sum(0) for x in _split(spec, images[:frozen])) if frozen else 0
    chunks = [_features(spec, network, x) for x in _split(spec, images[frozen:])]

    @torch.no_grad()
    def pullback(towards_mean: Tensor) -> Tensor:
        dp, forms, towards = _by_pixel(spec, towards_mean) / len(images), spec.forms(images.device.type), []
        for features, saved in chunks:
            dx = dp.expand_as(features).reshape(len(features), *spec.sides(), spec.width)
            for module, *place in reversed(list(zip(_modules(spec), forms, network.layers, saved, strict=True))):
                dx = module.descend(*place, dx)
            towards.append(dx)
        return _image_order(towards)

    return _by_channel(spec, sum((features.sum(0) for features, _ in chunks), fixed) / len(images)), pullback


@torch.no_grad()
def adjoint_step(
    spec: ConvNetSpec, theta: Tensor, images: Tensor, labels: Tensor, direction: Tensor, frozen: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """With g the gradient of the mean cross-entropy in theta: <g, direction> (), H direction (P,), d<g, direction>/d images.

    theta and direction (P,), images (B, C, H, W), labels int64 (B,); float32 or float64. The last one is (B - frozen, C, H, W): the
    first `frozen` images get no gradient.
    """
    network, along = prepare(spec, theta), prepare(spec, direction)
    total, slope, towards_images = torch.zeros_like(theta), theta.new_zeros(()), []
    grad = _accumulators(spec, total)
    for x, y in _chunks(spec, images, labels):
        held = min(frozen, len(x))
        moved, towards = _adjoint_of_chunk(spec, network, along, grad, x, y, 1 / len(labels), held)
        frozen -= held
        slope += moved
        towards_images.append(towards)
    return slope, _flat(spec, total, grad), _image_order(towards_images)


def _first_way(spec: ConvNetSpec, network: Parameters, grad: Parameters, x: Tensor, labels: Tensor, share: float, keep: bool) -> _Way:
    """A chunk up and down: add the gradient of `share` times its summed loss to `grad`. Without `keep` the maps are written over."""
    modules, forms, kept = _modules(spec), spec.forms(x.device.type), []
    features, saved = _features(spec, network, x)
    logits = torch.addmm(network.bias, features, network.weight.T)
    chance = logits.softmax(1)
    towards = _minus_one(chance.clone(), labels).mul_(share)
    grad.weight.addmm_(towards.T, features)
    grad.bias.add_(towards.sum(0))
    dp = (towards @ network.weight).view(len(x), *spec.sides(), spec.width)
    for block in reversed(range(spec.depth)):
        place = forms[block], network.layers[block], saved[block], dp, grad.layers[block]
        dp, values = modules[block].backward(*place, to_input=block > 0, keep=keep)
        kept.insert(0, values)
    return _Way(saved, kept, features, logits, chance, towards)


@torch.no_grad()
def _kept_by(spec: ConvNetSpec, theta: Tensor, images: Tensor) -> int:
    labels = torch.zeros(len(images), dtype=torch.int64)
    way = _first_way(spec, prepare(spec, theta), _accumulators(spec, theta), *next(_chunks(spec, images, labels)), 1.0, keep=True)
    tensors = [part for parts in (*way.saved, *way.kept, way[2:]) for part in parts if isinstance(part, Tensor)]
    return sum({part.untyped_storage().data_ptr(): part.untyped_storage().nbytes() for part in tensors}.values())


def _features(spec: ConvNetSpec, network: Parameters, x: Tensor) -> tuple[Tensor, list]:
    """Features (B, F) of a chunk, and what every block saves."""
    saved = []
    for module, form, layer in zip(_modules(spec), spec.forms(x.device.type), network.layers, strict=True):
        x, values = module.forward(form, layer, x)
        saved.append(values)
    return x.flatten(1), saved


def _second_way(spec: ConvNetSpec, network: Parameters, along: Parameters, way: _Way, extra: Tensor | None, share: float) -> Tensor:
    """The image gradient (B, H, W, C) of <g, direction> for one chunk, and of <`extra` (F,), its features> added up."""
    modules, forms, x, moved = _modules(spec), spec.forms(way.features.device.type), None, []
    for place in zip(modules, forms, network.layers, along.layers, way.saved, strict=True):
        x, values = place[0].tangent(*place[1:], x)
        moved.append(values)
    logits = torch.addmm(along.bias, way.features, along.weight.T).addmm_(x.flatten(1), network.weight.T)
    dp = torch.addmm(way.towards @ along.weight, _softmax_moved(way.chance, logits) * share, network.weight)
    dp = (dp if extra is None else dp.add_(extra)).view_as(x)
    for block in reversed(range(spec.depth)):
        place = forms[block], network.layers[block], along.layers[block], way.saved[block], way.kept[block], moved[block]
        dp = modules[block].pull(*place, dp)
    return dp


def _adjoint_of_chunk(
    spec: ConvNetSpec, network: Parameters, along: Parameters, grad: Parameters, x: Tensor, labels: Tensor, share: float, frozen: int
) -> tuple[Tensor, Tensor]:
    """Add the tangent of the chunk's gradient to `grad`; return those of its loss () and its image gradient (B - frozen, H, W, C)."""
    modules, forms, saved = _modules(spec), spec.forms(x.device.type), []
    for module, form, layer, direction in zip(modules, forms, network.layers, along.layers, strict=True):
        x, kept = module.forward_tangent(form, layer, direction, x)
        saved.append(kept)
    features, features_moved = x.flatten(2)
    chance = torch.addmm(network.bias, features, network.weight.T).softmax(1)
    logits_moved = torch.addmm(along.bias, features, along.weight.T).addmm_(features_moved, network.weight.T)
    towards_moved = _softmax_moved(chance, logits_moved) * share
    towards = _minus_one(chance, labels).mul_(share)
    slope = (towards * logits_moved).sum()
    grad.weight.addmm_(towards_moved.T, features).addmm_(towards.T, features_moved)
    grad.bias.add_(towards_moved.sum(0))
    dp = torch.stack([torch.addmm(towards @ along.weight, towards_moved, network.weight), towards @ network.weight]).view_as(x)
    for block in reversed(range(spec.depth)):
        place = forms[block], network.layers[block], along.layers[block], saved[block], dp, grad.layers[block]
        dp = modules[block].backward_tangent(*place, frozen=0 if block else frozen)
    return slope, dp


def _modules(spec: ConvNetSpec) -> list[ModuleType]:
    """The module that computes each block."""
    first = convnet_first_block if convnet_first_block.folds(spec.forms()[0], spec.shape, spec.width) else convnet_block
    return [first] + [convnet_block] * (spec.depth - 1)


def _softmax_moved(chance: Tensor, logits: Tensor) -> Tensor:
    """Derivative of the softmax p along z': p * (z' - <p, z'>)."""
    return chance * (logits - (chance * logits).sum(1, keepdim=True))


def _image_order(chunks: list[Tensor]) -> Tensor:
    """Chunks (B, H, W, C) as one batch (B, C, H, W)."""
    return torch.cat(chunks).permute(0, 3, 1, 2).contiguous()


def _by_channel(spec: ConvNetSpec, features: Tensor) -> Tensor:
    """A feature vector (F,) in the order of the network, channel first, from (row, column, channel) order."""
    return features.view(*spec.sides(), spec.width).permute(2, 0, 1).flatten()


def _by_pixel(spec: ConvNetSpec, features: Tensor) -> Tensor:
    """The inverse of `_by_channel`."""
    return features.view(spec.width, *spec.sides()).permute(1, 2, 0).flatten()


def _minus_one(chance: Tensor, labels: Tensor) -> Tensor:
    """Softmax minus the labels' chances, in place: the gradient of the summed cross-entropy in the logits."""
    if labels.is_floating_point():
        return chance.sub_(labels)
    return chance.scatter_add_(1, labels[:, None], chance.new_full((len(labels), 1), -1.0))


def _chunks(spec: ConvNetSpec, images: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Images (B, H, W, C) and their labels, chunk by chunk."""
    chunks = _split(spec, images)
    return zip(chunks, labels.tensor_split(len(chunks)), strict=True)


def _split(spec: ConvNetSpec, images: Tensor) -> tuple[Tensor, ...]:
    """Images (B, H, W, C) in as few chunks as `chunk_size` allows, all nearly equal, because a small one costs almost as much."""
    return images.permute(0, 2, 3, 1).contiguous().tensor_split(-(-len(images) // chunk_size(spec, images)))


def chunk_size(spec: ConvNetSpec, images: Tensor) -> int:
    """The most images in a chunk."""
    padding = spec.forms()[0].padding
    pixels = math.prod(side + 2 * padding - 2 for side in spec.shape[1:])
    return max(1, CHUNK_BYTES.get(images.device.type, OTHER_CHUNK_BYTES) // (spec.width * pixels * images.element_size()))


def _views(spec: ConvNetSpec, theta: Tensor) -> Parameters:
    """The parameters in theta (P,), block by block; only the classifier's weight is a copy."""
    channels, layers, parts = spec.shape[0], [], list(theta.split(_sizes(spec)))
    for _ in range(spec.depth):
        weight = parts.pop(0).view(spec.width, channels, 3, 3)
        layers.append(Layer(weight, parts.pop(0), *([parts.pop(0), parts.pop(0)] if spec.norm else [None, None])))
        channels = spec.width
    weight = parts[0].view(spec.classes, spec.width, *spec.sides()).permute(0, 2, 3, 1)
    return Parameters(layers, weight.clone(memory_format=torch.contiguous_format).flatten(1), parts[1])


def prepare(spec: ConvNetSpec, theta: Tensor) -> Parameters:
    """The parameters in theta (P,) with the weights as the convolutions want them: raised, or laid out channels last, once for all."""
    parameters, layers = _views(spec, theta), []
    for form, layer in zip(spec.forms(theta.device.type), parameters.layers, strict=True):
        raised = convnet_tiles.raise_weight(layer.weight) if form.tiled else layer.weight
        layers.append(layer._replace(weight=raised.contiguous(memory_format=torch.channels_last)))
    return parameters._replace(layers=layers)


def _accumulators(spec: ConvNetSpec, total: Tensor) -> Parameters:
    """Where the chunks add up: views of `total` (P,), zeros; the raised weights and the classifier's weight are apart from it."""
    parameters = _views(spec, total)
    layers = [
        layer._replace(weight=convnet_tiles.raised_zeros(layer.weight)) if form.tiled else layer
        for form, layer in zip(spec.forms(total.device.type), parameters.layers, strict=True)
    ]
    return parameters._replace(layers=layers)


def _flat(spec: ConvNetSpec, total: Tensor, grad: Parameters) -> Tensor:
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
