"""The nouns that every part of raydd shares: synthetic set, candidate, score, update. Plain data, no behaviour beyond copies."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class SyntheticSet:
    """The images being distilled, as stored (training space, or pixels: `raydd.decode`), and what is learned with them.

    images     float32 (N, C, H, W), unconstrained; class-major, the images of a class in the order of their stages
    labels     int64 (N,)
    step_size  float32 (), the learned positive step size of the student
    stages     int64 (N,), the PDD stage of each image, from 1
    frozen     how many images of each class, its first ones, are held fixed: they take part in the loss and get no gradient
    """

    images: Tensor
    labels: Tensor
    step_size: Tensor
    stages: Tensor
    frozen: int = 0

    def to(self, device: torch.device | str) -> "SyntheticSet":
        """The same set on another device."""
        return replace(
            self,
            images=self.images.to(device),
            labels=self.labels.to(device),
            step_size=self.step_size.to(device),
            stages=self.stages.to(device),
        )


@dataclass(frozen=True)
class Network:
    """The state of a network that trains between updates, as it travels between driver and workers. Never changed in place.

    theta, velocity  float32 (P,): parameters, and momentum of their optimiser (zeros before the first step)
    born             number of this network within the run; its initialisation depends on the seed and on this alone
    age              lifetimes (outer iterations) that it has served
    inner            updates of the network since this lifetime began
    memory           what the method notes with it, by name: DREAM's representatives, CAFE's query accuracies
    """

    theta: Tensor
    velocity: Tensor
    born: int
    age: int = 0
    inner: int = 0
    memory: dict[str, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device | str) -> "Network":
        """The same network on another device; what it remembers stays on the CPU."""
        return replace(self, theta=self.theta.to(device), velocity=self.velocity.to(device))


@dataclass(frozen=True)
class Candidate:
    """What one step may match against.

    index    its place among the step's candidates, 0..M-1; every list of candidates is in this order
    expert   which expert (MTT), or which network slot (every other method)
    epoch    the start epoch of the matched segment (MTT), or the age of the slot
    network  the slot's network; None for MTT, whose experts lie in the store
    """

    index: int
    expert: int
    epoch: int
    network: Network | None = field(default=None, compare=False)

    def to(self, device: torch.device | str) -> "Candidate":
        """The same candidate with its network on another device."""
        return self if self.network is None else replace(self, network=self.network.to(device))


@dataclass(frozen=True)
class Score:
    """The matching loss of a candidate on the current synthetic set, first order only, and the seconds it took.

    `size` is that of what is matched, for `selection.normalise = relative`: the squared norm of the real gradient or mean feature,
    1 for MTT, whose loss is relative already.
    """

    loss: float
    seconds: float
    size: float = 1.0


@dataclass(frozen=True)
class Update:
    """The exact gradient of the same loss: images, step size (), and the seconds it took.

    `grad_images` has the images that are not frozen, class-major: (N - classes x frozen, C, H, W).
    """

    loss: float
    grad_images: Tensor
    grad_step_size: Tensor
    seconds: float
