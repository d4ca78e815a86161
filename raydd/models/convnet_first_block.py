"""The first ConvNet block with its instance normalisation folded into the convolution.

Few channels go in, so an output pixel is a product with K = 9 C patch values, and the statistics of the output follow from the patches
alone: with P the patches of one image (K, pixels) less their mean over the pixels and S = P P' / pixels,
var u_o = w_o' S w_o. The normalised output is therefore one product with weights of that image,

    v = A P + shift,    A_o = a_o w_o,    a_o = scale_o * inverse_o,    inverse_o = (w_o' S w_o + eps)^-1/2.

Everything of the size of the output map is then a matrix product, a ReLU mask or a pool; the rest has K or K x K entries per image.
With G = dv P', t_o = <G_o, w_o>, H_o = S w_o and c_o = scale_o inverse_o^3 t_o the way down is

    d w_o = sum over images of a_o G_o - c_o H_o,    d scale_o = sum inverse_o t_o,    d P = A' dv - (1 / pixels) (sum_o c_o w_o w_o') P.

A dash in names below stands for the derivative along a direction in (weight, scale, shift); S and P do not move.
Pixels are ordered by their place in the 2 x 2 pooling window first, so that pooling adds four contiguous quarters.
A last row of ones in P carries the shift.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import fold, unfold

from raydd.models.convnet_block import EPS, Form, Layer, masked


class Saved(NamedTuple):
    """Patches (B, K + 1, pixels), their S (B, K, K), the activation (B, pixels, O), `inverse` (B, O), h = S w and A (B, O, K).

    `sides` are the height and width of the output map. In the tangent pass also the tangents of the activation, A, `inverse` and a.
    The way down writes over the maps.
    """

    patches: Tensor
    second: Tensor
    y: Tensor
    inverse: Tensor
    h: Tensor
    weights: Tensor
    sides: tuple[int, int]
    y_moved: Tensor | None = None
    weights_moved: Tensor | None = None
    inverse_moved: Tensor | None = None
    a_moved: Tensor | None = None


class Kept(NamedTuple):
    """What the second way down needs from the first: the gradient of the output map, G (B, O, K) and t (B, O)."""

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
    return _pool(saved.sides, saved.y)[0], saved


def backward(
    form: Form, layer: Layer, saved: Saved, dp: Tensor, grad: Layer, to_input: bool = False, keep: bool = False
) -> tuple[None, Kept]:
    """Add the gradient of the parameters to `grad`; return what `pull` needs. Without `keep` the activation is written over."""
    g, shift = _to_patches(_spread(dp, saved.y, torch.empty_like(saved.y) if keep else saved.y), saved.patches)
    weight = layer.weight.flatten(1)
    t = (g * weight).sum(2)
    c = layer.scale * saved.inverse**3 * t
    grad.shift.add_(shift.sum(0))
    grad.scale.add_((saved.inverse * t).sum(0))
    grad.weight.add_(_combine((layer.scale * saved.inverse, g), (-c, saved.h)).view_as(grad.weight))
    return None, Kept(dp, g, t)


def tangent(form: Form, layer: Layer, along: Layer, saved: Saved, x: None) -> tuple[Tensor, Moved]:
    """Second way up: tangent (B, H / 2, W / 2, O) of the output map; images do not move."""
    weights, inverse, _ = _moved(layer, along, saved)
    y = torch.bmm(saved.patches.mT, _with_shift(weights, along.shift))
    return _pool(saved.sides, masked(y, saved.y, out=y))[0], Moved(weights, inverse)


def pull(form: Form, layer: Layer, along: Layer, saved: Saved, kept: Kept, moved: Moved, dp: Tensor) -> Tensor:
    """Second way down: tangent of the gradient of the images (B, H, W, C) for that (B, H / 2, W / 2, O) of the output map."""
    dv = _spread(kept.dp, saved.y, torch.empty_like(saved.y))
    images = torch.bmm(moved.weights.mT, dv.mT)
    dv = _spread(dp, saved.y, dv)
    images.baddbmm_(saved.weights.mT, dv.mT)
    # a <G', w> for the tangent G' of G, without G': where dv is not zero, y = a <w, P> + shift
    at_moved = (dv * saved.y).sum(1) - layer.shift * dv.sum(1)
    weight, weight_along, inverse, t = layer.weight.flatten(1), along.weight.flatten(1), saved.inverse, kept.t
    c = layer.scale * inverse**3 * t
    c_moved = along.scale * inverse**3 * t + 3 * layer.scale * inverse**2 * moved.inverse * t
    c_moved += inverse**2 * at_moved + layer.scale * inverse**3 * (kept.g * weight_along).sum(2)
    outer = _outer_moved(weight, weight_along, c, c_moved)
    images.baddbmm_(outer, saved.patches[:, :-1], alpha=-1 / images.shape[2])
    return _fold(images, form, saved.sides)


def forward_tangent(form: Form, layer: Layer, along: Layer, x: Tensor) -> tuple[Tensor, Saved]:
    """Stacked output map (value, tangent) (2, B, H / 2, W / 2, O) for images (B, H, W, C)."""
    saved = _prepare(form, layer, x)
    moved, inverse_moved, a_moved = _moved(layer, along, saved)
    y_moved = torch.bmm(saved.patches.mT, _with_shift(moved, along.shift))
    masked(y_moved, saved.y, out=y_moved)
    saved = saved._replace(y_moved=y_moved, weights_moved=moved, inverse_moved=inverse_moved, a_moved=a_moved)
    return _pool(saved.sides, saved.y, y_moved), saved


def backward_tangent(form: Form, layer: Layer, along: Layer, saved: Saved, dp: Tensor, grad: Layer) -> Tensor:
    """Add the tangent of the parameter gradient to `grad`; return the tangent of the gradient of the images (B, H, W, C).

    dp  stacked (tangent, value) gradient of the output map
    """
    scale, inverse, weight, weight_along = layer.scale, saved.inverse, layer.weight.flatten(1), along.weight.flatten(1)
    value, moved = _spread(dp[1], saved.y, saved.y_moved), _spread(dp[0], saved.y, saved.y)
    g, _ = _to_patches(value, saved.patches)
    images = torch.bmm(saved.weights_moved.mT, value.mT)
    g_moved, shift = _to_patches(moved, saved.patches)
    images.baddbmm_(saved.weights.mT, moved.mT)
    t, t_moved = (g * weight).sum(2), (g_moved * weight).sum(2) + (g * weight_along).sum(2)
    c = scale * inverse**3 * t
    c_moved = along.scale * inverse**3 * t + 3 * scale * inverse**2 * saved.inverse_moved * t + scale * inverse**3 * t_moved
    grad.shift.add_(shift.sum(0))
    grad.scale.add_((saved.inverse_moved * t + inverse * t_moved).sum(0))
    h_moved = weight_along @ saved.second
    terms = ((saved.a_moved, g), (scale * inverse, g_moved), (-c_moved, saved.h), (-c, h_moved))
    grad.weight.add_(_combine(*terms).view_as(grad.weight))
    outer = _outer_moved(weight, weight_along, c, c_moved)
    images.baddbmm_(outer, saved.patches[:, :-1], alpha=-1 / images.shape[2])
    return _fold(images, form, saved.sides)


def _moved(layer: Layer, along: Layer, saved: Saved) -> tuple[Tensor, Tensor, Tensor]:
    """Tangents of A (B, O, K), of `inverse` (B, O) and of a (B, O)."""
    weight, weight_along = layer.weight.flatten(1), along.weight.flatten(1)
    inverse = -(saved.inverse**3) * (saved.h * weight_along).sum(2)
    a = along.scale * saved.inverse + layer.scale * inverse
    return a[:, :, None] * weight + (layer.scale * saved.inverse)[:, :, None] * weight_along, inverse, a


def _outer_moved(weight: Tensor, weight_along: Tensor, c: Tensor, c_moved: Tensor) -> Tensor:
    """Tangent (B, K, K) of sum_o c_o w_o w_o'."""
    return (c_moved[:, :, None] * weight + c[:, :, None] * weight_along).mT @ weight + (c[:, :, None] * weight).mT @ weight_along


def _prepare(form: Form, layer: Layer, x: Tensor) -> Saved:
    """The block up to its activation."""
    weight = layer.weight.flatten(1)
    patches = _patches(x, form)
    centred = patches[:, :-1]
    second = (centred @ centred.mT) / patches.shape[2]
    h = weight @ second
    inverse = (h * weight).sum(2).add_(EPS).rsqrt_()
    weights = (layer.scale * inverse)[:, :, None] * weight
    y = torch.bmm(patches.mT, _with_shift(weights, layer.shift)).relu_()
    return Saved(patches, second, y, inverse, h, weights, _windows(x, form))


def _patches(x: Tensor, form: Form) -> Tensor:
    """Centred patches and a row of ones, (B, K + 1, pixels), pixels ordered (row in window, column in window, window)."""
    columns = unfold(x.permute(0, 3, 1, 2), 3, padding=form.padding)
    columns -= columns.mean(2, keepdim=True)
    patches = columns.new_empty(len(x), columns.shape[1] + 1, columns.shape[2])
    height, width = _windows(x, form)
    windows = columns.view(*columns.shape[:2], height, 2, width, 2).permute(0, 1, 3, 5, 2, 4)
    patches[:, :-1].view(windows.shape).copy_(windows)
    patches[:, -1] = 1
    return patches


def _fold(patches: Tensor, form: Form, sides: tuple[int, int]) -> Tensor:
    """Adjoint of `_patches` without its last row: gradient of the images (B, H, W, C), for the sides of the output map."""
    patches = patches - patches.mean(2, keepdim=True)
    height, width = sides
    columns = patches.view(*patches.shape[:2], 2, 2, height, width).permute(0, 1, 4, 2, 5, 3).flatten(2)
    side = (2 * height + 2 - 2 * form.padding, 2 * width + 2 - 2 * form.padding)
    return fold(columns, side, 3, padding=form.padding).permute(0, 2, 3, 1)


def _windows(x: Tensor, form: Form) -> tuple[int, int]:
    """Pooling windows down and across."""
    return (x.shape[1] + 2 * form.padding - 2) // 2, (x.shape[2] + 2 * form.padding - 2) // 2


def _pool(sides: tuple[int, int], *maps: Tensor) -> Tensor:
    """Stacked pooled maps (n, B, H / 2, W / 2, O) of n maps (B, pixels, O)."""
    count, _, width = maps[0].shape
    pooled = maps[0].new_empty(len(maps), count, *sides, width)
    for quarters, out in zip(maps, pooled, strict=True):
        torch.sum(quarters.view(count, 4, *sides, width), 1, out=out)
    return pooled.mul_(0.25)


def _spread(dp: Tensor, y: Tensor, out: Tensor) -> Tensor:
    """Gradient (B, pixels, O) at the normalised output for that of the pooled one, written to `out`."""
    quarters = (dp * 0.25).flatten(1, 2)[:, None].expand(-1, 4, -1, -1)
    masked(quarters, y.view(quarters.shape), out=out.view(quarters.shape))
    return out


def _with_shift(weights: Tensor, shift: Tensor) -> Tensor:
    """(B, K + 1, O): the weights of each image and the shift, which the row of ones multiplies."""
    return torch.cat([weights.mT, shift.expand(len(weights), 1, -1)], dim=1)


def _to_patches(dv: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
    """G (B, O, K) and the sum of dv over the pixels (B, O)."""
    product = torch.bmm(patches, dv)
    return product[:, :-1].mT, product[:, -1]


def _combine(*terms: tuple[Tensor, Tensor]) -> Tensor:
    """Sum over terms and images of a (B, O) times m (B, O, K): (O, K)."""
    return sum(torch.einsum("bo,bok->ok", a, m) for a, m in terms)
