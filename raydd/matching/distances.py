"""Distances between the parameter gradients of real and of synthetic batches, with their derivative in the synthetic one.

Gradients are flat vectors in the order of a network's parameters, (P,) for one class or (C, P) for several; distances never mix
classes. Sources: specs/dc_dsa_dm_cafe_selection_cl.md section 4 (DC, DSA) and specs/idc_dream_pdd.md section 1.6 (IDC, DREAM).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Layout = Sequence[tuple[str, tuple[int, ...]]]
Rule = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]
EPS = 1e-6
"""Added to the product of two lengths under a cosine; the reference programs' value."""


@dataclass(frozen=True)
class Part:
    """One matched stretch of the flat vector: entries from `start` to `stop`, as `rows` equal rows."""

    start: int
    stop: int
    rows: int


@dataclass(frozen=True)
class Distance:
    """A distance of gradients: call it with (real, synthetic), both (P,) or both (C, P).

    It returns the loss () or (C,) and its derivative in the synthetic gradient, of that gradient's shape, zero where nothing is matched.
    `matched` says by name which parameter tensors count.
    """

    metric: str
    matched: frozenset[str]
    parts: tuple[Part, ...]
    eps: float = EPS

    def __call__(self, real: Tensor, synthetic: Tensor) -> tuple[Tensor, Tensor]:
        loss, derivative = synthetic.new_zeros(synthetic.shape[:-1]), torch.zeros_like(synthetic)
        for part in self.parts:
            place = (..., slice(part.start, part.stop))
            ours, theirs = (vector[place].unflatten(-1, (part.rows, -1)) for vector in (synthetic, real))
            term, towards = _RULES[self.metric](theirs, ours, self.eps)
            loss = loss + term
            derivative[place] = towards.flatten(-2)
        return loss, derivative


def dc_distance(layout: Layout, metric: str = "rows", eps: float = EPS) -> Distance:
    """The distance of DC and DSA. `layout` holds the names and shapes of the parameters in flat order.

    metric  rows: 1 - cosine of every row of every tensor of two or more dimensions (rows are its first dimension, so output
            channels), added up; mse: squared distance of all parameters; cos: 1 - the one cosine of all parameters

    Raises `ValueError` for another metric.
    """
    if metric == "rows":
        return _distance("cos", layout, lambda shape: len(shape) >= 2, eps)
    if metric not in ("mse", "cos"):
        raise ValueError(f"DC has no gradient distance {metric!r}; known: rows, mse, cos")
    size = sum(math.prod(shape) for _, shape in layout)
    return Distance(metric, frozenset(name for name, _ in layout), (Part(0, size, 1),), eps)


def idc_distance(layout: Layout, metric: str = "mse", bias: bool = False, fc: bool = False, eps: float = EPS) -> Distance:
    """The distance of IDC, DREAM and DREAM+: convolution weights (four dimensions) only.

    metric  mse: sum of squared differences; l1: sum of absolute differences; l1_mean: of their means over each output channel;
            cos: of 1 - cosine of each output channel. Nothing is divided by the number of parameters.
    bias    match biases and the scales and shifts of norms too
    fc      match the classifier's weight too

    Raises `ValueError` for another metric.
    """
    if metric not in ("mse", "l1", "l1_mean", "cos"):
        raise ValueError(f"IDC has no gradient distance {metric!r}; known: mse, l1, l1_mean, cos")
    return _distance(metric, layout, lambda shape: len(shape) == 4 or (fc if len(shape) == 2 else bias), eps)


def squared_norms(distance: Distance, gradients: Tensor) -> Tensor:
    """The squared norm (C,) of what the distance matches in gradients (C, P)."""
    return torch.stack([gradients[:, part.start : part.stop].square().sum(1) for part in distance.parts]).sum(0)


def _distance(metric: str, layout: Layout, counts: Callable[[tuple[int, ...]], bool], eps: float) -> Distance:
    """A distance over those tensors whose shape counts."""
    names, parts, start = [], [], 0
    for name, shape in layout:
        stop = start + math.prod(shape)
        if counts(shape):
            names.append(name)
            parts.append(Part(start, stop, shape[0]))
        start = stop
    return Distance(metric, frozenset(names), tuple(parts), eps)


def _mse(real: Tensor, synthetic: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    difference = synthetic - real
    return difference.square().sum((-2, -1)), 2 * difference


def _l1(real: Tensor, synthetic: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    difference = synthetic - real
    return difference.abs().sum((-2, -1)), difference.sign()


def _l1_mean(real: Tensor, synthetic: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    loss, derivative = _l1(real, synthetic, eps)
    return loss / real.shape[-1], derivative / real.shape[-1]


def _cos(real: Tensor, synthetic: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """With d = |r| |s| + eps: 1 - <r, s> / d, and -r / d + (<r, s> |r| / d^2) s / |s|, whose last factor is zero at s = 0."""
    dot, length, other = (synthetic * real).sum(-1, keepdim=True), _norm(synthetic), _norm(real)
    below = other * length + eps
    unit = torch.where(length > 0, synthetic / length, 0)
    return (1 - dot / below).sum((-2, -1)), unit * (dot * other / below.square()) - real / below


def _norm(rows: Tensor) -> Tensor:
    return torch.linalg.vector_norm(rows, dim=-1, keepdim=True)


_RULES: dict[str, Rule] = {"mse": _mse, "l1": _l1, "l1_mean": _l1_mean, "cos": _cos}
