"""Distances of gradients against automatic differentiation of the formula, written per tensor, and against known values."""

import pytest
import torch
from torch import Tensor

from raydd.config import ModelConfig
from raydd.matching.distances import Distance, dc_distance, idc_distance
from raydd.models import build

NETWORK = build(ModelConfig(width=4, depth=2), (3, 8, 8), 3)
LAYERED = build(ModelConfig(width=4, depth=2, norm="layer"), (3, 8, 8), 3)
ROWS = 2 * 4 + 3
IDC = [
    ("mse", {}),
    ("l1", {}),
    ("l1_mean", {}),
    ("cos", {}),
    ("mse", {"bias": True}),
    ("l1_mean", {"fc": True, "bias": True}),
    ("cos", {"fc": True}),
]


def vectors(size: int = NETWORK.size, classes: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(classes, size, generator=generator, dtype=torch.float64) for _ in range(2))


def cosines(x: Tensor, y: Tensor) -> Tensor:
    x, y = x.reshape(len(x), -1), y.reshape(len(y), -1)
    return (1 - (x * y).sum(-1) / (x.norm(dim=-1) * y.norm(dim=-1) + 1e-6)).sum()


TERMS = {
    "mse": lambda x, y: (x - y).pow(2).sum(),
    "l1": lambda x, y: (x - y).abs().sum(),
    "l1_mean": lambda x, y: (x - y).abs().reshape(len(x), -1).mean(1).sum(),
    "cos": cosines,
}


def plain_idc(real: Tensor, synthetic: Tensor, metric: str, bias: bool = False, fc: bool = False) -> Tensor:
    pairs = zip(NETWORK.views(real).values(), NETWORK.views(synthetic).values(), strict=True)
    return sum(TERMS[metric](x, y) for x, y in pairs if x.dim() == 4 or (x.dim() == 1 and bias) or (x.dim() == 2 and fc))


def plain_dc(real: Tensor, synthetic: Tensor, metric: str) -> Tensor:
    if metric == "mse":
        return (real - synthetic).pow(2).sum()
    if metric == "cos":
        return 1 - (real * synthetic).sum() / (real.norm() * synthetic.norm() + 1e-6)
    pairs = zip(NETWORK.views(real).values(), NETWORK.views(synthetic).values(), strict=True)
    return sum(cosines(x, y) for x, y in pairs if x.dim() > 1)


def assert_equals(distance: Distance, plain, **settings) -> None:
    real, synthetic = vectors()
    losses, derivatives = distance(real, synthetic)
    for place in range(len(real)):
        leaf = synthetic[place].clone().requires_grad_()
        loss = plain(real[place], leaf, **settings)
        (derivative,) = torch.autograd.grad(loss, leaf)
        torch.testing.assert_close(losses[place], loss.detach(), rtol=1e-12, atol=0)
        torch.testing.assert_close(derivatives[place], derivative, rtol=1e-11, atol=1e-14)
        alone = distance(real[place], synthetic[place])
        torch.testing.assert_close((losses[place], derivatives[place]), alone, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(("metric", "matched"), IDC)
def test_idc_equals_the_formula_and_its_derivative(metric: str, matched: dict[str, bool]) -> None:
    assert_equals(idc_distance(NETWORK.layout, metric, **matched), plain_idc, metric=metric, **matched)


@pytest.mark.parametrize("metric", ["rows", "mse", "cos"])
def test_dc_equals_the_formula_and_its_derivative(metric: str) -> None:
    assert_equals(dc_distance(NETWORK.layout, metric), plain_dc, metric=metric)


def test_identical_gradients_are_near_and_opposite_ones_two_per_row() -> None:
    distance, (real, _) = dc_distance(NETWORK.layout), vectors()
    assert distance(real, real)[0].abs().max() < 1e-3
    torch.testing.assert_close(distance(real, -real)[0], torch.full((3,), 2.0 * ROWS, dtype=torch.float64), rtol=1e-5, atol=0)


@pytest.mark.parametrize("distance", [idc_distance(NETWORK.layout, "l1"), dc_distance(NETWORK.layout)], ids=["idc", "dc"])
def test_vectors_are_ignored_and_matrices_by_idc(distance: Distance) -> None:
    real, synthetic = vectors()
    changed = synthetic.clone()
    least = 4 if distance.metric == "l1" else 2
    for view in (view for row in changed for view in NETWORK.views(row).values() if view.dim() < least):
        view.add_(7.0)
    assert not torch.equal(changed, synthetic)
    for before, after in zip(distance(real, synthetic), distance(real, changed), strict=True):
        assert torch.equal(before, after)


def test_a_row_of_zeros_has_a_finite_derivative() -> None:
    real, synthetic = vectors()
    synthetic[:, :27] = 0
    assert all(torch.isfinite(part).all() for part in dc_distance(NETWORK.layout)(real, synthetic))


def test_scales_of_a_layer_norm_are_rows_for_dc_and_biases_for_idc() -> None:
    names = {name for name, shape in LAYERED.layout if len(shape) == 3}
    assert names and names <= dc_distance(LAYERED.layout).matched
    assert not names & idc_distance(LAYERED.layout).matched and names <= idc_distance(LAYERED.layout, bias=True).matched


def test_eps_is_under_the_cosine() -> None:
    real, synthetic = vectors()
    usual, none = (dc_distance(NETWORK.layout, eps=eps)(1e-4 * real, 1e-4 * synthetic)[0] for eps in (1e-6, 0.0))
    torch.testing.assert_close(none, dc_distance(NETWORK.layout, eps=0.0)(real, synthetic)[0])
    assert (usual - none).abs().min() > 1e-3


@pytest.mark.parametrize("distance", [idc_distance, dc_distance])
def test_unknown_metrics_are_named(distance) -> None:
    with pytest.raises(ValueError, match="'l2'.*known"):
        distance(NETWORK.layout, "l2")
