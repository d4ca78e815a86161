"""3x3 convolutions with half the multiplications: four output rows from six 1x3 convolutions (Winograd's F(4, 3), along rows only).

Down a column a 3x3 convolution is a correlation of the input rows with three kernel rows. Four outputs of it are the coefficients of
a polynomial product, found from its values at six points: out = A' ((B' x) * (G w)), where * is a 1x3 convolution of each of the six
pairs, instead of twelve. The points 0, +-sqrt(1/2), +-sqrt(2) and infinity keep rounding small: float32 errors are those of the plain
convolution in this layout within a factor of two. With n(p) = p^5 - 2.5 p^3 + p, whose roots are the five finite points,

    G w at p is w(p) / n'(p),    B' x at p is the tile's rows weighted by the coefficients of n / (. - p),    A' weights value p by p^k.

The map is linear in x and in w, so derivatives go through the transposes: `raise_gradient` is A, `lower_gradient` is B.
Source: Winograd, Arithmetic Complexity of Computations (1980); Lavin and Gray, arXiv 1509.09308.

Maps are (B, H, W, C); raised maps (B, H / 4, W, 6 C) hold the six values of a tile beside one another, as six groups of channels.
"""

import math

import torch
from torch import Tensor

POINTS = 6
_NEAR, _FAR = math.sqrt(0.5), math.sqrt(2.0)
_EVALUATE = (
    (1.0, 0.0, 0.0),
    *((1 / -1.5, sign * _NEAR / -1.5, 0.5 / -1.5) for sign in (1, -1)),
    *((1 / 6, sign * _FAR / 6, 2 / 6) for sign in (1, -1)),
    (0.0, 0.0, 1.0),
)


def raise_input(x: Tensor) -> Tensor:
    """B' x: (B, H, W, C) to (B, H / 4, W, 6 C), H a multiple of 4; rows beyond the border are zero."""
    count, height, width, channels = x.shape
    padded = x.new_zeros(count, height + 2, width, channels)
    padded[:, 1:-1] = x
    rows = [padded[:, row : row + height - 3 : 4] for row in range(6)]
    out = x.new_empty(count, height // 4, width, POINTS, channels)
    values = out.unbind(3)
    torch.add(rows[0], rows[2], alpha=-2.5, out=values[0]).add_(rows[4])
    torch.add(rows[1], rows[3], alpha=-2.5, out=values[5]).add_(rows[5])
    for first, weight, point in ((1, -2.0, _NEAR), (3, -0.5, _FAR)):
        even, odd = torch.add(rows[4], rows[2], alpha=weight), torch.add(rows[3], rows[1], alpha=weight)
        torch.add(even, odd, alpha=point, out=values[first])
        torch.sub(even, odd, alpha=point, out=values[first + 1])
    return out.flatten(3)


def lower_output(product: Tensor) -> Tensor:
    """A' m: (B, H / 4, W, 6 C) to (B, H, W, C)."""
    values = product.unflatten(3, (POINTS, -1)).unbind(3)
    count, height, width, channels = values[0].shape
    out = product.new_empty(count, height, 4, width, channels)
    rows = out.unbind(2)
    near, far = values[1] + values[2], values[3] + values[4]
    torch.add(values[0], near, out=rows[0]).add_(far)
    torch.mul(near, 0.5, out=rows[2]).add_(far, alpha=2)
    torch.sub(values[1], values[2], out=near).mul_(_NEAR)
    torch.sub(values[3], values[4], out=far).mul_(_FAR)
    torch.add(near, far, out=rows[1])
    torch.add(values[5], near, alpha=0.5, out=rows[3]).add_(far, alpha=2)
    return out.flatten(1, 2)


def raise_gradient(du: Tensor) -> Tensor:
    """A du, the transpose of `lower_output`: (B, H, W, C) to (B, H / 4, W, 6 C)."""
    count, height, width, channels = du.shape
    rows = du.unflatten(1, (-1, 4)).unbind(2)
    out = du.new_empty(count, height // 4, width, POINTS, channels)
    values = out.unbind(3)
    values[0].copy_(rows[0])
    values[5].copy_(rows[3])
    for first, square, point in ((1, 0.5, _NEAR), (3, 2.0, _FAR)):
        even, odd = torch.add(rows[0], rows[2], alpha=square), torch.add(rows[1], rows[3], alpha=square)
        torch.add(even, odd, alpha=point, out=values[first])
        torch.sub(even, odd, alpha=point, out=values[first + 1])
    return out.flatten(3)


def lower_gradient(product: Tensor) -> Tensor:
    """B m, the transpose of `raise_input`: (B, H / 4, W, 6 C) to (B, H, W, C)."""
    values = product.unflatten(3, (POINTS, -1)).unbind(3)
    count, tiles, width, channels = values[0].shape
    # Rows 0 to 3 of every tile, with one tile more to take rows 4 and 5 of the last.
    padded = product.new_empty(count, tiles + 1, 4, width, channels)
    padded[:, -1] = 0
    rows, beyond = padded[:, :-1].unbind(2), padded[:, 1:].unbind(2)
    near, far = values[1] + values[2], values[3] + values[4]
    rows[0].copy_(values[0])
    torch.mul(values[0], -2.5, out=rows[2]).add_(near, alpha=-2).add_(far, alpha=-0.5)
    fourth = near.add_(far).add_(values[0])
    near, far = (values[1] - values[2]).mul_(_NEAR), torch.sub(values[3], values[4], out=far).mul_(_FAR)
    torch.add(values[5], near, alpha=-2, out=rows[1]).add_(far, alpha=-0.5)
    torch.add(near, far, out=rows[3]).add_(values[5], alpha=-2.5)
    beyond[0].add_(fourth)
    beyond[1].add_(values[5])
    return padded.flatten(1, 2)[:, 1 : 4 * tiles + 1].contiguous()


def raise_weight(weight: Tensor) -> Tensor:
    """G w: (O, I, 3, 3) to (6 O, I, 1, 3)."""
    rows = weight.permute(2, 0, 3, 1).contiguous()
    values = weight.new_empty(POINTS, *rows.shape[1:])
    # Not as a matrix product, whose rounding depends on the number of threads.
    for coefficients, value in zip(_EVALUATE, values, strict=True):
        torch.mul(rows[0], coefficients[0], out=value).add_(rows[1], alpha=coefficients[1]).add_(rows[2], alpha=coefficients[2])
    return values.flatten(0, 1)[:, None].permute(0, 3, 1, 2)


def raised_zeros(weight: Tensor) -> Tensor:
    """Zeros (6 O, I, 1, 3) for a weight (O, I, 3, 3), to add raised gradients to."""
    outputs, inputs = weight.shape[:2]
    return weight.new_zeros(POINTS * outputs, 1, 3, inputs).permute(0, 3, 1, 2)


def lower_weight(gradient: Tensor) -> Tensor:
    """The transpose of `raise_weight`: (6 O, I, 1, 3) to (O, I, 3, 3)."""
    channels = gradient.shape[1]
    values = gradient.permute(0, 2, 3, 1).reshape(POINTS, -1)
    return (values.new_tensor(_EVALUATE).T @ values).view(3, -1, 3, channels).permute(1, 3, 0, 2)
