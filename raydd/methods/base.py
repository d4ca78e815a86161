"""What a matching objective must offer, and the registry of those that exist.

A method turns (synthetic set, candidate, draws) into a score or an exact gradient. It is pure: equal arguments give equal
bits on one kind of device, so that a lost answer can simply be asked for again on another worker.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from raydd.config import Config
from raydd.errors import ConfigError
from raydd.models import FlatModel
from raydd.types import Candidate, Score, SyntheticSet, Update


class Trajectories(Protocol):
    """Expert snapshots by place: float32 (P,) on the method's device."""

    def theta(self, expert: int, epoch: int) -> torch.Tensor: ...


@dataclass(frozen=True)
class Resources:
    """What a worker holds for its method: the network and the expert snapshots, on one device."""

    model: FlatModel
    experts: Trajectories
    device: torch.device


class Method(Protocol):
    """One matching objective.

    `score` is first order and builds no graph over the inner steps; `update` is the exact gradient of the same loss and may
    reuse what `score` kept for the same candidate and draws.
    """

    def score(self, synthetic: SyntheticSet, candidate: Candidate, draws: Any) -> Score: ...

    def update(self, synthetic: SyntheticSet, candidate: Candidate, draws: Any) -> Update: ...


@dataclass(frozen=True)
class Optimiser:
    """How the driver applies a gradient: SGD with momentum, and a floor that keeps the step size positive."""

    lr_images: float
    lr_step_size: float
    momentum: float
    min_step_size: float


@dataclass(frozen=True)
class MethodEntry:
    """A registered method.

    build(config, resources) makes it on a worker.
    draw(config, count, side, step, attempt) returns all randomness of one step, drawn before use and shared by the step's
    candidates; `count` synthetic images of `side` pixels, `attempt` counts redraws of the same step.
    start_epochs(config) bounds the start epoch of a candidate, exclusive.
    optimiser(config) is what the driver steps with; step_size(config) the start value of the learned step size.
    """

    name: str
    build: Callable[[Config, Resources], Method]
    draw: Callable[[Config, int, int, int, int], Any]
    start_epochs: Callable[[Config], int]
    optimiser: Callable[[Config], Optimiser]
    step_size: Callable[[Config], float]


_METHODS: dict[str, MethodEntry] = {}


def register(entry: MethodEntry) -> MethodEntry:
    """Add a method to the registry; its name becomes a value of `--method`."""
    _METHODS[entry.name] = entry
    return entry


def method(name: str) -> MethodEntry:
    """The registered method of this name. Raises `ConfigError` with the names that exist."""
    if name not in _METHODS:
        raise ConfigError([f"--method={name} is not a method; known: {', '.join(sorted(_METHODS))}."])
    return _METHODS[name]
