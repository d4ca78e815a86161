"""First-order gradient of one ConvNet block and its directional derivative, by hand.

A block maps x to p = pool(relu(scale * xhat + shift)), xhat = (u - mean u) * inverse, inverse = (var u + eps)^-1/2, u = conv3x3(x),
mean and variance over the pixels of one image and channel. Without normalisation p = pool(relu(u + bias)).
Under instance normalisation the convolution bias drops out of xhat: its gradient is exactly zero and is left alone.

The `_tangent` functions carry every value together with its derivative along a direction in parameter space. The two are stacked,
so that a pair costs one library call: (value, tangent) on the way up, (tangent, value) on the way down. The product rule of the
weight gradient, tangent of the output with the input plus output with the tangent of the input, is then one call over the stack.

`tangent` and `pull` give the derivative along a direction that is known only after the gradient, and with respect to the images alone:
they go up and down a second time, from what `forward` and `backward` kept.

Maps are contiguous (B, H, W, C), the layout in which convolutions on a CPU are fastest. A tiled block convolves raised maps
(`convnet_tiles`): its weights, and the gradient of them that it adds to, are raised too.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d

from raydd.models import convnet_tiles as tiles

EPS = 1e-5
_convolution_backward = torch.ops.aten.convolution_backward.default
_masked = torch.ops.aten.threshold_backward


class Layer(NamedTuple):
    """Parameters of a block, or a direction or a gradient in them: weight (O, I, 3, 3) or raised (6 O, I, 1, 3), others (O,)."""

    weight: Tensor
    bias: Tensor
    scale: Tensor | None
    shift: Tensor | None


class Form(NamedTuple):
    """Padding of the convolution in pixels; whether the block normalises, pools, and is tiled (then the padding is 1)."""

    padding: int
    norm: bool
    pool: bool
    tiled: bool = False


class Saved(NamedTuple):
    """What the way down needs from the way up: (raised) input, activation, and for normalisation xhat and `inverse` (B, 1, 1, O).

    The tangent pass keeps the stacked input, the tangent of xhat, and slope = mean(xhat * tangent of u), (B, 1, 1, O).
    """

    x: Tensor
    y: Tensor
    xhat: Tensor | None = None
    inverse: Tensor | None = None
    xhat_tangent: Tensor | None = None
    slope: Tensor | None = None


class Kept(NamedTuple):
    """What the second way down needs from the first: the (raised) gradient at the convolution's output, and for normalisation h and dot.

    See `_norm_backward_tangent` for these two.
    """

    du: Tensor
    h: Tensor | None = None
    dot: Tensor | None = None


class Moved(NamedTuple):
    """What the second way down needs from the second way up, for normalisation: the tangent of xhat, and slope as in `Saved`."""

    xhat: Tensor
    slope: Tensor | None = None


def forward(form: Form, layer: Layer, x: Tensor) -> tuple[Tensor, Saved]:
    """Output map (B, H', W', O) for the input map (B, H, W, I)."""
    x = _raise(form, x)
    u = _lower(form, _convolve(form, x, layer.weight))
    if not form.norm:
        y = u.add_(layer.bias).relu_()
        return _pool(form, y), Saved(x, y)
    xhat, inverse = _normalise(u)
    y = torch.addcmul(layer.shift, xhat, layer.scale).relu_()
    return _pool(form, y), Saved(x, y, xhat, inverse)


def backward(
    form: Form, layer: Layer, saved: Saved, dp: Tensor, grad: Layer, to_input: bool = False, keep: bool = False
) -> tuple[Tensor | None, Kept]:
    """Add the gradient of the parameters to `grad`; return that of the input map when `to_input`, and what `pull` needs when `keep`."""
    du = _spread(form, dp[None], saved.y)[0]
    h, dot = None, None
    if form.norm:
        mean, dot = _mean(du), _mean(du * saved.xhat)
        _add_norm(grad, saved.y, mean, dot)
        h, a = du.sub_(mean).addcmul_(saved.xhat, dot, value=-1), layer.scale * saved.inverse
        du = h * a if keep else h.mul_(a)
    else:
        grad.bias.add_(du.sum((0, 1, 2)))
    du = _raise_gradient(form, du)
    dx, dweight = _pull(form, du, saved.x, layer.weight, to_input)
    grad.weight.add_(dweight)
    return (_lower_gradient(form, dx) if to_input else None), Kept(du, h, dot)


def descend(form: Form, layer: Layer, saved: Saved, dp: Tensor) -> Tensor:
    """The gradient of the input map alone (B, H, W, I), for that (B, H', W', O) of the output map."""
    du = _spread(form, dp[None], saved.y)[0]
    if form.norm:
        mean, dot = _mean(du), _mean(du * saved.xhat)
        du.sub_(mean).addcmul_(saved.xhat, dot, value=-1).mul_(layer.scale * saved.inverse)
    return _lower_gradient(form, _pull_input(form, _raise_gradient(form, du), saved.x, layer.weight))


def tangent(form: Form, layer: Layer, along: Layer, saved: Saved, x: Tensor | None) -> tuple[Tensor, Moved]:
    """Second way up: tangent (B, H', W', O) of the output map for that of the input map (B, H, W, I), None for one that does not move."""
    moved = _convolve(form, saved.x, along.weight)
    if x is not None:
        moved += _convolve(form, _raise(form, x), layer.weight)
    moved = _lower(form, moved)
    if not form.norm:
        return _pool(form, masked(moved.add_(along.bias), saved.y, out=moved)), Moved(moved)
    slope = _mean(saved.xhat * moved)
    moved.sub_(_mean(moved)).addcmul_(saved.xhat, slope, value=-1).mul_(saved.inverse)
    y = torch.addcmul(along.shift, saved.xhat, along.scale).addcmul_(moved, layer.scale)
    return _pool(form, masked(y, saved.y, out=y)), Moved(moved, slope)


def pull(form: Form, layer: Layer, along: Layer, saved: Saved, kept: Kept, moved: Moved, dp: Tensor) -> Tensor:
    """Second way down: tangent of the gradient of the input map (B, H, W, I) for that of the output map (B, H', W', O)."""
    du = _spread(form, dp[None], saved.y)[0]
    if form.norm:
        # As in `_norm_backward_tangent`, where mean(v * tangent of xhat) = mean(h * it) + dot * eps * inverse^3 * slope.
        inverse, slope = saved.inverse, moved.slope
        dot = _mean((du * saved.xhat).addcmul_(kept.h, moved.xhat)) + kept.dot * EPS * inverse**3 * slope
        du.sub_(_mean(du)).addcmul_(moved.xhat, kept.dot, value=-1).addcmul_(saved.xhat, dot, value=-1)
        a = layer.scale * inverse
        du.mul_(a).addcmul_(kept.h, along.scale * inverse - a * inverse * slope)
    dx = _pull_input(form, _raise_gradient(form, du), saved.x, layer.weight)
    dx += _pull_input(form, kept.du, saved.x, along.weight)
    return _lower_gradient(form, dx)


def forward_tangent(form: Form, layer: Layer, along: Layer, x: Tensor) -> tuple[Tensor, Saved]:
    """Stacked output map (value, tangent) (2, B, H', W', O) for the stacked input map (2, B, H, W, I).

    An input that does not move along the direction, as images do not, is (B, H, W, I).
    """
    if _fixed(x):
        u, moved = _convolve(form, x, layer.weight), _convolve(form, x, along.weight)
    else:
        x = _raise(form, x.flatten(0, 1))
        product = _convolve(form, x, layer.weight)
        product[len(x) // 2 :] += _convolve(form, x[: len(x) // 2], along.weight)
        u, moved = _lower(form, product).unflatten(0, (2, -1))
        x = x.unflatten(0, (2, -1))
    y = u.new_empty((2, *u.shape))
    if form.norm:
        xhat, inverse = _normalise(u)
        # d xhat = (d u - mean(d u) - xhat * slope) * inverse, and d inverse = -slope * inverse^2
        slope = _mean(xhat * moved)
        moved.sub_(_mean(moved)).addcmul_(xhat, slope, value=-1).mul_(inverse)
        saved = Saved(x, y[0], xhat, inverse, moved, slope)
        torch.addcmul(layer.shift, xhat, layer.scale, out=y[0])
        moved = torch.addcmul(along.shift, xhat, along.scale).addcmul_(moved, layer.scale)
    else:
        saved = Saved(x, y[0])
        torch.add(u, layer.bias, out=y[0])
        moved += along.bias
    y[0].relu_()
    masked(moved, y[0], out=y[1])
    return _pool(form, y.flatten(0, 1)).unflatten(0, (2, -1)), saved


def backward_tangent(form: Form, layer: Layer, along: Layer, saved: Saved, dp: Tensor, grad: Layer, frozen: int = 0) -> Tensor:
    """Add the tangent of the parameter gradient to `grad`; return the gradient of the input map, stacked (tangent, value).

    dp  stacked (tangent, value) gradient of the output map

    For an input that does not move, only the tangent (B - frozen, H, W, I) is returned, without the first `frozen` images.
    """
    du = _spread(form, dp, saved.y)
    if form.norm:
        _norm_backward_tangent(layer, along, saved, du, grad)
    else:
        grad.bias.add_(du[0].sum((0, 1, 2)))
    if _fixed(saved.x):
        x = saved.x[frozen:]
        dx, dweight = _pull(form, du[0], saved.x, layer.weight, to_input=not frozen)
        dx = _pull_input(form, du[0, frozen:], x, layer.weight) if frozen else dx
        dx += _pull_input(form, du[1, frozen:], x, along.weight)
    else:
        du = _raise_gradient(form, du.flatten(0, 1))
        dx, dweight = _pull(form, du, saved.x.flatten(0, 1), layer.weight)
        dx[: len(dx) // 2] += _pull_input(form, du[len(dx) // 2 :], saved.x[0], along.weight)
        dx = _lower_gradient(form, dx).unflatten(0, (2, -1))
    grad.weight.add_(dweight)
    return dx


def masked(gradient: Tensor, y: Tensor, out: Tensor | None = None) -> Tensor:
    """`gradient` where the activation y is positive and zero elsewhere; broadcasts."""
    return _masked(gradient, y, 0) if out is None else _masked.grad_input(gradient, y, 0, grad_input=out)


def _norm_backward_tangent(layer: Layer, along: Layer, saved: Saved, du: Tensor, grad: Layer) -> None:
    """Turn the stacked gradient (tangent, value) at the output of the normalisation into that at its input, in place.

    With h = v - mean(v) - xhat * dot, dot = mean(v * xhat), the gradient is a * h, a = scale * inverse, and its tangent da * h + a * dh.
    """
    moved, value = du
    mean, dot = _mean(value), _mean(value * saved.xhat)
    mean_moved, dot_moved = _mean(moved), _mean((moved * saved.xhat).addcmul_(value, saved.xhat_tangent))
    _add_norm(grad, saved.y, mean_moved, dot_moved)
    value.sub_(mean).addcmul_(saved.xhat, dot, value=-1)
    moved.sub_(mean_moved).addcmul_(saved.xhat_tangent, dot, value=-1).addcmul_(saved.xhat, dot_moved, value=-1)
    a = layer.scale * saved.inverse
    moved.mul_(a).addcmul_(value, along.scale * saved.inverse - a * saved.inverse * saved.slope)
    value.mul_(a)


def _add_norm(grad: Layer, y: Tensor, mean: Tensor, dot: Tensor) -> None:
    pixels = y.shape[1] * y.shape[2]
    grad.shift.add_(mean.sum((0, 1, 2)), alpha=pixels)
    grad.scale.add_(dot.sum((0, 1, 2)), alpha=pixels)


def _normalise(u: Tensor) -> tuple[Tensor, Tensor]:
    """xhat, in place of u, and 1 / sqrt(var + eps)."""
    u.sub_(_mean(u))
    inverse = _mean(u * u).add_(EPS).rsqrt_()
    return u.mul_(inverse), inverse


def _fixed(x: Tensor) -> bool:
    return x.dim() == 4


def _mean(x: Tensor) -> Tensor:
    return x.mean((1, 2), keepdim=True)


def _planes(x: Tensor) -> Tensor:
    """(B, H, W, C) as the (B, C, H, W) view that torch's image functions take."""
    return x.permute(0, 3, 1, 2)


def _rows(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).contiguous()


def _raise(form: Form, x: Tensor) -> Tensor:
    return tiles.raise_input(x) if form.tiled else x


def _lower(form: Form, product: Tensor) -> Tensor:
    return tiles.lower_output(product) if form.tiled else product


def _raise_gradient(form: Form, du: Tensor) -> Tensor:
    return tiles.raise_gradient(du) if form.tiled else du


def _lower_gradient(form: Form, product: Tensor) -> Tensor:
    return tiles.lower_gradient(product) if form.tiled else product


def _geometry(form: Form) -> tuple[list[int], int]:
    """Padding down and across, and groups, of the convolution."""
    return ([0, 1], tiles.POINTS) if form.tiled else ([form.padding] * 2, 1)


def _convolve(form: Form, x: Tensor, weight: Tensor) -> Tensor:
    padding, groups = _geometry(form)
    return _rows(conv2d(_planes(x), weight, padding=padding, groups=groups))


def _pull(form: Form, du: Tensor, x: Tensor, weight: Tensor, to_input: bool = True) -> tuple[Tensor | None, Tensor]:
    """Gradients of the convolution's input, when wanted, and weight."""
    dx, dweight = _derive(form, du, x, weight, to_input, True)
    return (_rows(dx) if to_input else None), dweight


def _pull_input(form: Form, du: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Gradient of the convolution's input; x gives only the shape."""
    return _rows(_derive(form, du, x, weight, True, False)[0])


def _derive(form: Form, du: Tensor, x: Tensor, weight: Tensor, to_input: bool, to_weight: bool) -> tuple[Tensor | None, Tensor | None]:
    padding, groups = _geometry(form)
    return _convolution_backward(
        _planes(du), _planes(x), weight, None, [1, 1], padding, [1, 1], False, [0, 0], groups, [to_input, to_weight, False]
    )[:2]


def _pool(form: Form, y: Tensor) -> Tensor:
    return _rows(avg_pool2d(_planes(y), 2)) if form.pool else y


def _spread(form: Form, dp: Tensor, y: Tensor) -> Tensor:
    """Gradients (n, B, H, W, O) at the input of the ReLU for stacked gradients (n, B, H', W', O) of the output map.

    Pooling drops the last row and column of a map of odd side; they get zero.
    """
    if not form.pool:
        return masked(dp, y)
    height, width = dp.shape[2:4]
    exact = y.shape[1:3] == (2 * height, 2 * width)
    du = (dp.new_empty if exact else dp.new_zeros)((len(dp), *y.shape))
    masked((dp * 0.25)[:, :, :, None, :, None].expand(-1, -1, -1, 2, -1, 2, -1), _windows(y, height, width), _windows(du, height, width))
    return du


def _windows(x: Tensor, height: int, width: int) -> Tensor:
    """(..., H, W, O) as a view (..., height, 2, width, 2, O) of its pooling windows."""
    return x[..., : 2 * height, : 2 * width, :].unflatten(-3, (height, 2)).unflatten(-2, (width, 2))
