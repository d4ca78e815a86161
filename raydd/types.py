"""The nouns that every part of raydd shares: synthetic set, candidate, score, update. Plain data, no behaviour beyond copies."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class SyntheticSet:
    """The images being distilled, in training space (normalised or whitened), and what is learned with them.

    images     float32 (N, C, H, W), unconstrained; N = classes x ipc, class-major (label = index // ipc)
    labels     int64 (N,)
    step_size  float32 (), the learned positive step size of the student
    stages     int64 (N,), the PDD stage of each image, from 1
    """

    images: Tensor
    labels: Tensor
    step_size: Tensor
    stages: Tensor

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
class Candidate:
    """What one step may match against.

    index   its place among the step's candidates, 0..M-1; every list of candidates is in this order
    expert  which expert (MTT) or which network slot (IDC, DREAM)
    epoch   the start epoch of the matched segment (MTT) or the age of the slot
    """

    index: int
    expert: int
    epoch: int


@dataclass(frozen=True)
class Score:
    """The matching loss of a candidate on the current synthetic set, first order only, and the seconds it took."""

    loss: float
    seconds: float


@dataclass(frozen=True)
class Update:
    """The exact gradient of the same loss: images (N, C, H, W), step size (), and the seconds it took."""

    loss: float
    grad_images: Tensor
    grad_step_size: Tensor
    seconds: float
