"""The methods and sizes that `scaling.py` steps, on random images and with random trajectories in place of trained experts."""

import math
import time
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from raydd.config import Config, override
from raydd.data import RealData, Resident, Transform
from raydd.devices import resolve
from raydd.methods import method
from raydd.methods.base import Resources
from raydd.models import FlatModel, build
from raydd.recipes import load_recipe
from raydd.rng import stream
from raydd.step_time import Traffic, expert_traffic, network_traffic
from raydd.types import Candidate, Score, SyntheticSet, Update

CANDIDATES = (1, 3, 5, 8)
CLASSES = 10
EXPERTS = 8


@dataclass(frozen=True)
class Walks:
    """Random walks from random initialisations, made when asked for: near enough to training for a finite loss."""

    model: FlatModel

    def theta(self, expert: int, epoch: int) -> Tensor:
        theta = self.model.init(stream(expert, 0, "scaling-start"))
        generator = stream(expert, 1, "scaling-walk")
        for _ in range(epoch):
            theta = theta + 0.01 * torch.randn(theta.shape, generator=generator)
        return theta


@dataclass(frozen=True)
class Kept:
    """The same, each made once: as a store would have them at hand."""

    walks: Walks
    known: dict[tuple[int, int], Tensor]

    def theta(self, expert: int, epoch: int) -> Tensor:
        place = (expert, epoch)
        if place not in self.known:
            self.known[place] = self.walks.theta(expert, epoch)
        return self.known[place]


class Counted:
    """A method whose seconds are those of the processor: what a step computes, however many others want the cores."""

    def __init__(self, method: Any):
        self._method = method

    def score(self, synthetic: SyntheticSet, candidate: Candidate, draws: Any) -> Score:
        started = time.process_time()
        found = self._method.score(synthetic, candidate, draws)
        return replace(found, seconds=time.process_time() - started)

    def update(self, synthetic: SyntheticSet, candidate: Candidate, draws: Any) -> Update:
        started = time.process_time()
        found = self._method.update(synthetic, candidate, draws)
        return replace(found, seconds=time.process_time() - started)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._method, name)


@dataclass(frozen=True)
class Factory:
    """Builds the method in whichever process calls it."""

    config: Config
    shape: tuple[int, int, int]

    def __call__(self) -> Counted:
        model, device, entry = build(self.config.model, self.shape, CLASSES), resolve("cpu"), method(self.config.method)
        torch.set_num_threads(1)
        if entry.networks is None:
            kept = Kept(Walks(model), {})
            for expert in range(EXPERTS):
                for epoch in range(self.config.mtt.max_start_epoch + self.config.mtt.expert_epochs + 1):
                    kept.theta(expert, epoch)
            return Counted(entry.build(self.config, Resources(model, kept, device)))
        labels = torch.arange(CLASSES).repeat_interleave(64)
        images = torch.randn(len(labels), *self.shape, generator=stream(0, 0, "scaling-real"))
        transform = Transform.standard(self.shape, (0.5,) * self.shape[0], (0.25,) * self.shape[0])
        rows = tuple(torch.nonzero(labels == label).squeeze(1) for label in range(CLASSES))
        real = RealData(Resident(images, labels, transform), rows)
        return Counted(entry.build(self.config, Resources(model, None, device, real)))


@dataclass(frozen=True)
class Case:
    """One method at one size; `turns` multiplies the turns of short steps."""

    name: str
    what: str
    recipe: str
    settings: dict[str, Any]
    shape: tuple[int, int, int]
    turns: int = 1

    @cached_property
    def config(self) -> Config:
        return override(load_recipe(self.recipe).config, {"experts.count": EXPERTS, **self.settings})

    @property
    def factory(self) -> Factory:
        return Factory(self.config, self.shape)

    @cached_property
    def synthetic(self) -> SyntheticSet:
        """Random images and the method's start of the step size."""
        labels = torch.arange(CLASSES).repeat_interleave(self.config.ipc)
        images = torch.randn(len(labels), *self.shape, generator=stream(0, 0, "scaling-synthetic"))
        return SyntheticSet(images, labels, torch.tensor(method(self.config.method).step_size(self.config)), torch.ones_like(labels))

    def with_candidates(self, candidates: int) -> Config:
        policy = "dynadistill" if candidates > 1 else "uniform"
        return override(self.config, {"selection.candidates": candidates, "selection.policy": policy})

    def traffic(self, candidates: int) -> Traffic:
        """What a step sends, as `raydd plan` counts it."""
        set_bytes = self.synthetic.images.numel() * 4
        if method(self.config.method).networks is None:
            return expert_traffic(candidates, set_bytes)
        parameters = build(self.config.model, self.shape, CLASSES).size
        return network_traffic(candidates, set_bytes, 8 * parameters, 1, trains=False)

    @property
    def megabytes(self) -> float:
        return 4 * CLASSES * self.config.ipc * math.prod(self.shape) / 1e6


_SHORT = {"mtt.syn_steps": 5, "mtt.lr_img": 1.0}
_LARGE = {**_SHORT, "ipc": 25, "mtt.batch_syn": 10}
CIFAR, DIGITS = (3, 32, 32), (1, 8, 8)
_ALL = (
    Case("mtt-digits", "MTT, digits, ten images per class", "digits-mtt-ipc10", {"mtt.lr_img": 1.0}, DIGITS, 2),
    Case("mtt-cifar10", "MTT, CIFAR-10 size, one image per class, 5 inner steps", "cifar10-mtt-ipc1", _SHORT, CIFAR),
    Case("mtt-3mb", "the same with 25 images per class in batches of 10", "cifar10-mtt-ipc1", _LARGE, CIFAR),
    Case("dm-cifar10", "DM, CIFAR-10 size, one image per class, 32 real ones", "cifar10-dm-ipc1", {"dm.batch_real": 32}, CIFAR),
)
CASES = {case.name: case for case in _ALL}
