"""The first ConvNet block with its instance normalisation folded into the convolution.

Few channels go in, so an output pixel is a product with K = 9 C patch values, and the statistics of the output follow from the patches
alone: with P the patches of one image (K, pixels) less their mean over the pixels and S = P P' / pixels,
var u_o = w_o' S w_o. The normalised output is therefore one product with weights of that image,

    v = A P + shift,    A_o = a_o w_o,    a_o = scale_o * inverse_o,    inverse_o = (w_o' S w_o + eps)^-1/2.

Everything of the size of the output map is then a matrix product, a ReLU mask or a pool; the rest has K or K x K entries per image.
With G = dv P', t_o = <G_o, w_o>, H_o = S w_o and c_o = scale_o inverse_o^3 t_o the way down is

    d w_o = sum over images of a_o G_o - c_o H_o,    d scale_o = sum inverse_o t_o,    d P = A' dv - (1 / pixels) (sum_o c_o w_o w_o') P.

A dash in names below stands for the derivative along a direction in (weight, scale, shift); S and P do not move.

Maps are (4, windows, B, channels): pixels by their place in the 2 x 2 pooling window, then by window, so that pooling adds four blocks;
images inside, so that one product with weights of every image is a grouped 1 x 1 convolution, for which processors have faster code
than for a batch of thin matrix products. Where such a batch is used instead, images are outside in memory.
Patch values are in (row, column, channel) order, then a one, which carries the shift, then zeros up to a round number.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from raydd.models.convnet_block import EPS, Form, Layer, masked

_convolution_backward = torch.ops.aten.convolution_backward.default
ROUND = 16
"""Patch values are padded with zeros to a multiple of this, the width of a vector register."""


class Saved(NamedTuple):
    """Patches (4, windows, B, K + padding), S (B, K, K), the activation (4, windows, B, O), `inverse` (B, O), h = S w and A (B, O, K).

    Also the image's and the output map's sides, and the output map (windows, B, O). In the tangent pass also the tangents of the
    activation, A, `inverse` and a. The way down writes over the maps unless they are to be kept.
    """

    patches: Tensor
    second: Tensor
    y: Tensor
    inverse: Tensor
    h: Tensor
    weights: Tensor
    sides: tuple[int, int]
    pooled: Tensor
    y_moved: Tensor | None = None
    weights_moved: Tensor | None = None
    inverse_moved: Tensor | None = None
    a_moved: Tensor | None = None


class Kept(NamedTuple):
    """What the second way down needs from the first: the gradient of the output map (windows, B, O), G (B, O, K) and t (B, O)."""

    dp: Tensor
    g: Tensor
    t: Tensor


class Moved(NamedTuple):
    """What the second way down needs from the second way up: the tangents of A (B, O, K) and of `inverse` (B, O)."""

    weights: Tensor
    inverse: Tensor


def folds(form: Form, shape: tuple[int, int, int], width: int) -> bool:
    """Whether the fold applies (normalised, pooled from even sides) and saves work (fewer patch values than channels)."""
    channels, height, width_ = shape
    return form.norm and form.pool and height % 2 == 0 and width_ % 2 == 0 and 9 * channels < width


def forward(form: Form, layer: Layer, x: Tensor) -> tuple[Tensor, Saved]:
    """Output map (B, H / 2, W / 2, O) for images (B, H, W, C)."""
    saved = _prepare(form, layer, x)
    return _to_map(saved.pooled, saved.sides), saved


def backward(
    form: Form, layer: Layer, saved: Saved, dp: Tensor, grad: Layer, to_input: bool = False, keep: bool = False
) -> tuple[None, Kept]:
    """Add the gradient of the parameters to `grad`; return what `pull` needs. Without `keep` the activation is written over."""
    dp = _to_windows(dp)
    g, shift = _to_patches(_spread(dp, saved.y, torch.empty_like(saved.y) if keep else saved.y), saved)
    weight = _matrix(layer.weight)
    t = (g * weight).sum(2)
    c = layer.scale * saved.inverse**3 * t
    grad.shift.add_(shift.sum(0))
    grad.scale.add_((saved.inverse * t).sum(0))
    _add_weight(grad, (layer.scale * saved.inverse, g), (-c, saved.h))
    return None, Kept(dp, g, t)


def descend(form: Form, layer: Layer, saved: Saved, dp: Tensor) -> Tensor:
    """The gradient of the images alone (B, H, W, C), for that (B, H / 2, W / 2, O) of the output map; the activation is written over."""
    dp, dv, weight = _to_windows(dp), saved.y, _matrix(layer.weight)
    _spread(dp, saved.y, dv)
    c = saved.inverse**2 * _scaled_t(layer, saved, dp, dv)
    return _to_images(form, saved, _product(dv, _padded(saved.weights, saved.patches).mT), (c[:, :, None] * weight).mT @ weight)


def tangent(form: Form, layer: Layer, along: Layer, saved: Saved, x: None) -> tuple[Tensor, Moved]:
    """Second way up: tangent (B, H / 2, W / 2, O) of the output map; images do not move."""
    weights, inverse, _ = _moved(layer, along, saved)
    y = _from_patches(saved.patches, weights, along.shift)
    return _to_map(_pool(masked(y, saved.y, out=y)), saved.sides), Moved(weights, inverse)


def pull(form: Form, layer: Layer, along: Layer, saved: Saved, kept: Kept, moved: Moved, dp: Tensor) -> Tensor:
    """Second way down: tangent of the gradient of the images (B, H, W, C) for that (B, H / 2, W / 2, O) of the output map."""
    dp, dv = _to_windows(dp), _spread(kept.dp, saved.y, torch.empty_like(saved.y))
    patches = _product(dv, _padded(moved.weights, saved.patches).mT)
    patches += _product(_spread(dp, saved.y, dv), _padded(saved.weights, saved.patches).mT)
    at_moved = _scaled_t(layer, saved, dp, dv)
    weight, weight_along, inverse, t = _matrix(layer.weight), _matrix(along.weight), saved.inverse, kept.t
    c = layer.scale * inverse**3 * t
    c_moved = along.scale * inverse**3 * t + 3 * layer.scale * inverse**2 * moved.inverse * t
    c_moved += inverse**2 * at_moved + layer.scale * inverse**3 * (kept.g * weight_along).sum(2)
    return _to_images(form, saved, patches, _outer_moved(weight, weight_along, c, c_moved))


def forward_tangent(form: Form, layer: Layer, along: Layer, x: Tensor) -> tuple[Tensor, Saved]:
    """Stacked output map (value, tangent) (2, B, H / 2, W / 2, O) for images (B, H, W, C)."""
    saved = _prepare(form, layer, x)
    moved, inverse_moved, a_moved = _moved(layer, along, saved)
    y_moved = _from_patches(saved.patches, moved, along.shift)
    masked(y_moved, saved.y, out=y_moved)
    both = torch.stack([_to_map(saved.pooled, saved.sides), _to_map(_pool(y_moved), saved.sides)])
    return both, saved._replace(y_moved=y_moved, weights_moved=moved, inverse_moved=inverse_moved, a_moved=a_moved)


def backward_tangent(form: Form, layer: Layer, along: Layer, saved: Saved, dp: Tensor, grad: Layer, frozen: int = 0) -> Tensor:
    """Add the tangent of the parameter gradient to `grad`; return that of the gradient of the images (B - frozen, H, W, C).

    The first `frozen` images are left out of it.

    dp  stacked (tangent, value) gradient of the output map
    """
    scale, inverse, weight, weight_along = layer.scale, saved.inverse, _matrix(layer.weight), _matrix(along.weight)
    dv = _spread(_to_windows(dp[1]), saved.y, saved.y_moved)
    g, _ = _to_patches(dv, saved)
    patches = _product(dv[:, :, frozen:], _padded(saved.weights_moved[frozen:], saved.patches).mT)
    dv = _spread(_to_windows(dp[0]), saved.y, saved.y)
    g_moved, shift = _to_patches(dv, saved)
    patches += _product(dv[:, :, frozen:], _padded(saved.weights[frozen:], saved.patches).mT)
    t, t_moved = (g * weight).sum(2), (g_moved * weight).sum(2) + (g * weight_along).sum(2)
    c = scale * inverse**3 * t
    c_moved = along.scale * inverse**3 * t + 3 * scale * inverse**2 * saved.inverse_moved * t + scale * inverse**3 * t_moved
    grad.shift.add_(shift.sum(0))
    grad.scale.add_((saved.inverse_moved * t + inverse * t_moved).sum(0))
    h_moved = weight_along @ saved.second
    _add_weight(grad, (saved.a_moved, g), (scale * inverse, g_moved), (-c_moved, saved.h), (-c, h_moved))
    free = saved._replace(patches=saved.patches[:, :, frozen:])
    return _to_images(form, free, patches, _outer_moved(weight, weight_along, c[frozen:], c_moved[frozen:]))


def _moved(layer: Layer, along: Layer, saved: Saved) -> tuple[Tensor, Tensor, Tensor]:
    """Tangents of A (B, O, K), of `inverse` (B, O) and of a (B, O)."""
    weight, weight_along = _matrix(layer.weight), _matrix(along.weight)
    inverse = -(saved.inverse**3) * (saved.h * weight_along).sum(2)
    a = along.scale * saved.inverse + layer.scale * inverse
    return a[:, :, None] * weight + (layer.scale * saved.inverse)[:, :, None] * weight_along, inverse, a


def _scaled_t(layer: Layer, saved: Saved, dp: Tensor, dv: Tensor) -> Tensor:
    """a t (B, O) for the gradient of the output map dp (windows, B, O), spread out as dv, without the large product G.

    Where dv is not zero the activation is y = a <w, P> + shift, and dv is the same all over a window.
    """
    return (dp * saved.pooled).sum(0) - layer.shift * dv.sum((0, 1))


def _outer_moved(weight: Tensor, weight_along: Tensor, c: Tensor, c_moved: Tensor) -> Tensor:
    """Tangent (B, K, K) of sum_o c_o w_o w_o'."""
    return (c_moved[:, :, None] * weight + c[:, :, None] * weight_along).mT @ weight + (c[:, :, None] * weight).mT @ weight_along


def _prepare(form: Form, layer: Layer, x: Tensor) -> Saved:
    """The block up to its output map."""
    weight, patches = _matrix(layer.weight), _patches(x, form)
    values, by_image = weight.shape[1], patches.flatten(0, 1).transpose(0, 1)
    # The product of all columns and then the corner: a round size is worth more than the columns left out.
    second = (by_image.mT @ by_image)[:, :values, :values] / by_image.shape[1]
    h = weight @ second
    inverse = (h * weight).sum(2).add_(EPS).rsqrt_()
    weights = (layer.scale * inverse)[:, :, None] * weight
    y = _from_patches(patches, weights, layer.shift).relu_()
    return Saved(patches, second, y, inverse, h, weights, _windows(x, form), _pool(y))


def _matrix(weight: Tensor) -> Tensor:
    """A convolution weight (O, C, 3, 3) as (O, K), K in the order of the patches."""
    return weight.permute(0, 2, 3, 1).flatten(1)


def _add_weight(grad: Layer, *terms: tuple[Tensor, Tensor]) -> None:
    """Add the sum over terms and images of a (B, O) times m (B, O, K) to the weight's gradient."""
    total = sum(a[:, :, None] * m for a, m in terms).sum(0)
    outputs, channels = grad.weight.shape[:2]
    grad.weight.add_(total.view(outputs, 3, 3, channels).permute(0, 3, 1, 2))


def _patches(x: Tensor, form: Form) -> Tensor:
    """Centred patches, ones and zeros, (4, windows, B, K + padding), of images (B, H, W, C)."""
    padding = form.padding
    runs = pad(x, (0, 0, padding, padding, padding, padding)).unfold(1, 3, 1).unfold(2, 3, 1).permute(0, 1, 2, 4, 5, 3)
    height, width = _windows(x, form)
    runs = runs.unflatten(1, (height, 2)).unflatten(3, (width, 2)).permute(2, 4, 1, 3, 0, 5, 6, 7)
    values = 9 * x.shape[3]
    patches = x.new_zeros(4, height * width, len(x), -(-(values + 1) // ROUND) * ROUND)
    patches[..., :values].view(runs.shape).copy_(runs)
    patches -= patches.mean((0, 1))
    patches[..., values] = 1
    return patches


def _windows(x: Tensor, form: Form) -> tuple[int, int]:
    """Pooling windows down and across."""
    return (x.shape[1] + 2 * form.padding - 2) // 2, (x.shape[2] + 2 * form.padding - 2) // 2


def _to_images(form: Form, saved: Saved, patches: Tensor, outer: Tensor) -> Tensor:
    """Image gradient (B, H, W, C): `patches` (like the saved ones) - P outer / pixels, less their mean, added up where they overlap."""
    pixels, values, padding = 4 * patches.shape[1], outer.shape[2], form.padding
    square = _padded(pad(outer / pixels, (0, 0, 0, patches.shape[3] - values)), saved.patches)
    patches -= _product(saved.patches, square)
    patches -= patches.mean((0, 1))
    count, (height, width) = patches.shape[2], saved.sides
    places = patches.unflatten(1, (height, width)).unflatten(0, (2, 2)).permute(4, 2, 0, 3, 1, 5)
    patches = places.reshape(count, 2 * height, 2 * width, patches.shape[3])
    images = patches.new_zeros(count, 2 * height + 2, 2 * width + 2, values // 9)
    for place, own in enumerate(patches[..., :values].split(values // 9, dim=3)):
        row, column = divmod(place, 3)
        images[:, row : row + 2 * height, column : column + 2 * width] += own
    return images[:, padding:-padding, padding:-padding]


def _pool(y: Tensor) -> Tensor:
    """Output map (windows, B, O) of (4, windows, B, O)."""
    return torch.add(y[0], y[1]).add_(y[2]).add_(y[3]).mul_(0.25)


def _spread(dp: Tensor, y: Tensor, out: Tensor) -> Tensor:
    """Gradient (4, windows, B, O) at the normalised output for that of the output map (windows, B, O), written to `out`."""
    masked((dp * 0.25).expand_as(y), y, out=out)
    return out


def _to_map(windows: Tensor, sides: tuple[int, int]) -> Tensor:
    """(windows, B, O) as a contiguous map (B, H, W, O)."""
    return windows.transpose(0, 1).contiguous().unflatten(1, sides)


def _to_windows(maps: Tensor) -> Tensor:
    """The inverse of `_to_map`."""
    return maps.flatten(1, 2).transpose(0, 1).contiguous()


def _from_patches(patches: Tensor, weights: Tensor, shift: Tensor) -> Tensor:
    """(4, windows, B, O): the patches times the weights (B, O, K) of each image, plus the shift (O,)."""
    full = _padded(weights, patches)
    full[:, :, weights.shape[2]] = shift
    return _product(patches, full)


def _padded(weights: Tensor, patches: Tensor) -> Tensor:
    """Weights (B, O, K) with zeros for what the patches hold beside K values."""
    full = weights.new_zeros(*weights.shape[:2], patches.shape[3])
    full[:, :, : weights.shape[2]] = weights
    return full


def _to_patches(dv: Tensor, saved: Saved) -> tuple[Tensor, Tensor]:
    """G (B, O, K) and the sum of dv (4, windows, B, O) over the pixels (B, O)."""
    count, values = saved.patches.shape[2], saved.h.shape[2]
    if _grouped(dv):
        weight = dv.new_empty(count * dv.shape[3], saved.patches.shape[3], 1, 1)
        arguments = None, [1, 1], [0, 0], [2, 2], False, [0, 0], count, [False, True, False]
        product = _convolution_backward(_planes(dv), _planes(saved.patches), weight, *arguments)[1].view(count, dv.shape[3], -1)
    else:
        product = dv.flatten(0, 1).permute(1, 2, 0) @ saved.patches.flatten(0, 1).transpose(0, 1)
    return product[:, :, :values], product[:, :, values]


def _product(x: Tensor, weights: Tensor) -> Tensor:
    """(4, windows, B, O) of x (4, windows, B, I) and weights (B, O, I) of each image."""
    if not _grouped(x) or not len(weights):
        return (x.flatten(0, 1).transpose(0, 1) @ weights.mT).transpose(0, 1).unflatten(0, x.shape[:2])
    # A 1 x 1 kernel has no use for dilation, but only with some does torch hand such a kernel to its fast library on one thread.
    product = conv2d(_planes(x), weights.reshape(-1, weights.shape[2], 1, 1), groups=len(weights), dilation=2)
    return product.permute(0, 2, 3, 1).reshape(*x.shape[:3], -1)


def _grouped(x: Tensor) -> bool:
    """Whether grouped convolutions are the faster products: in float32 on a CPU."""
    return x.device.type == "cpu" and x.dtype == torch.float32


def _planes(x: Tensor) -> Tensor:
    """(4, windows, B, C) as one image of B C channels, (1, B C, 4, windows)."""
    return x.reshape(1, 4, x.shape[1], -1).permute(0, 3, 1, 2)
