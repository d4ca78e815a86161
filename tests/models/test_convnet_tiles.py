"""The tiled convolution against the library's, and its gradients through the transposes."""

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from raydd.models import convnet_tiles as tiles

GENERATOR = torch.Generator().manual_seed(2)


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


def convolve(x: Tensor, weight: Tensor) -> Tensor:
    """Map (B, H, W, I) convolved by tiles."""
    product = conv2d(tiles.raise_input(x).permute(0, 3, 1, 2), tiles.raise_weight(weight), padding=(0, 1), groups=tiles.POINTS)
    return tiles.lower_output(product.permute(0, 2, 3, 1).contiguous())


def test_equals_a_3x3_convolution() -> None:
    for height, width in ((4, 4), (8, 6), (12, 1)):
        x, weight = random(2, height, width, 5), random(7, 5, 3, 3)
        expected = conv2d(x.permute(0, 3, 1, 2), weight, padding=1).permute(0, 2, 3, 1)
        torch.testing.assert_close(convolve(x, weight), expected, rtol=0, atol=1e-12)


def test_float32_rounds_like_the_library() -> None:
    x, weight = random(2, 16, 16, 128).relu(), random(16, 128, 3, 3) / 34
    exact = conv2d(x.permute(0, 3, 1, 2), weight, padding=1).permute(0, 2, 3, 1)
    assert (convolve(x.float(), weight.float()) - exact).norm() <= 2e-6 * exact.norm()


def test_gradients_are_the_transposes() -> None:
    pairs = [
        (tiles.raise_input, tiles.lower_gradient, random(2, 8, 3, 5), random(2, 2, 3, 30)),
        (tiles.lower_output, tiles.raise_gradient, random(2, 2, 3, 30), random(2, 8, 3, 5)),
        (tiles.raise_weight, tiles.lower_weight, random(4, 5, 3, 3), random(24, 5, 1, 3)),
    ]
    for forward, transpose, x, y in pairs:
        torch.testing.assert_close((forward(x) * y).sum(), (x * transpose(y)).sum())


def test_raised_zeros_match_the_raised_weight() -> None:
    weight = random(4, 5, 3, 3)
    zeros, raised = tiles.raised_zeros(weight), tiles.raise_weight(weight)
    assert zeros.shape == raised.shape
    assert zeros.stride() == raised.stride()
    assert not zeros.any()
