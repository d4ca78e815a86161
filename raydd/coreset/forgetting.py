"""Forgetting: how often a network in training goes from right to wrong on each image.

Source: specs/dc_dsa_dm_cafe_selection_cl.md sections 8 and 9; Toneva et al. 2019, `An Empirical Study of Example Forgetting`.
The counts serve the selection baseline, and any curriculum that orders real images from easy to hard.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from raydd import sealed
from raydd.errors import CheckpointError, ConfigError
from raydd.files import atomic_write_bytes
from raydd.models import FlatModel
from raydd.training import Batches, Networks, Phase, Recipe, Streams, augmented, initial, sgd_

KIND = "raydd-forgetting"
FORMAT = 1


@dataclass(frozen=True)
class Forgetting:
    """What a training showed of n images, on the CPU, in the order of the training split.

    counts  int64 (n,), changes from right to wrong
    never   bool (n,), never right at any visit; their count is 0
    loss    float64 (n,), mean cross-entropy over the visits, which tells images of equal counts apart
    """

    counts: Tensor
    never: Tensor
    loss: Tensor

    def ranking(self, never_learnt: str) -> Tensor:
        """The counts as float64 (n,) with never learnt images as `never_learnt` says: "zero" as counted, "most" infinite."""
        return torch.where(self.never, torch.inf if never_learnt == "most" else 0.0, self.counts.double())


class Counter:
    """Watches the predictions for n images visit by visit. Before the first visit every image counts as wrong."""

    def __init__(self, count: int, device: torch.device | str = "cpu"):
        self._counts = torch.zeros(count, dtype=torch.int64, device=device)
        self._visits = torch.zeros_like(self._counts)
        self._right, self._learnt = torch.zeros(2, count, dtype=torch.bool, device=device)
        self._loss = torch.zeros(count, dtype=torch.float64, device=device)

    def see(self, rows: Tensor, right: Tensor, losses: Tensor | None = None) -> None:
        """A visit of different rows (B,): whether each was predicted rightly, bool (B,), and its cross-entropy (B,)."""
        self._counts[rows] += self._right[rows] & ~right
        self._right[rows] = right
        self._learnt[rows] |= right
        self._visits[rows] += 1
        if losses is not None:
            self._loss[rows] += losses.double()

    def found(self) -> Forgetting:
        """What was seen so far."""
        mean = self._loss / self._visits.clamp_min(1)
        return Forgetting(self._counts.cpu().clone(), ~self._learnt.cpu(), mean.cpu())


def forgetting_scores(
    model: FlatModel,
    data: Batches,
    phases: Sequence[Phase],
    recipe: Recipe,
    streams: Streams,
    device: torch.device | str,
    on_epoch: Callable[[int, float, float], None] = lambda number, loss, accuracy: None,
) -> Forgetting:
    """Train one network on all of `data` and count how often it forgets each image.

    A visit is the prediction for the image as it stands in its (augmented) minibatch, in training mode, before the update that
    the batch makes. The network is that of `raydd.training.fit` with the same arguments, to the bit. `on_epoch(number, mean loss,
    accuracy)` is called after every epoch, counted from 1. Raises `ConfigError` for a recipe with CutMix, whose images have no one
    right label.
    """
    if recipe.cutmix:
        raise ConfigError([f"cutmix={recipe.cutmix:g}: a mixed image has no one right label to forget; count without CutMix."])
    networks, counter = initial(model, streams, device), Counter(len(data.labels), device)
    epoch = 0
    for phase in phases:
        if not phase.carries:
            networks.velocity = None
        for _ in range(phase.epochs):
            loss, accuracy = _epoch(model, data, networks, phase.lr, recipe, streams, epoch, counter)
            epoch += 1
            on_epoch(epoch, loss, accuracy)
    return counter.found()


def _epoch(
    model: FlatModel, data: Batches, networks: Networks, lr: float, recipe: Recipe, streams: Streams, epoch: int, counter: Counter
) -> tuple[float, float]:
    """One pass of the first network, seen by the counter; its mean loss and accuracy."""
    count, device = len(data.labels), networks.thetas.device
    order = torch.randperm(count, generator=streams.generators(epoch, "order")[0]).to(device)
    augment = streams.generators(epoch, "augment")[0]
    total, hits = torch.zeros(2, device=device)
    for rows in order.split(recipe.batch_size):
        images, labels = augmented(data, rows, augment, recipe)
        theta = networks.thetas[0].detach().requires_grad_()
        logits = model(theta, images)
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, labels), theta)
        losses, right = F.cross_entropy(logits.detach(), labels, reduction="none"), logits.argmax(-1) == labels
        counter.see(rows, right, losses)
        total += losses.sum()
        hits += right.sum()
        before = None if networks.velocity is None else networks.velocity[0]
        velocity = sgd_(theta.detach(), gradient, before, lr, recipe)
        networks.velocity = None if velocity is None else velocity[None]
    return (total / count).item(), (hits / count).item()


def combined(parts: Sequence[Forgetting]) -> Forgetting:
    """Several trainings as one: counts added, never learnt in none of them, mean loss."""
    return Forgetting(
        counts=torch.stack([part.counts for part in parts]).sum(0),
        never=torch.stack([part.never for part in parts]).all(0),
        loss=torch.stack([part.loss for part in parts]).mean(0),
    )


def save(path: Path | str, found: Forgetting, details: dict[str, Any]) -> None:
    """Keep it in one sealed file with JSON-ready details, such as the fingerprint of the data. Raises `ResourceError`."""
    atomic_write_bytes(path, packed(found, details))


def load(path: Path | str) -> tuple[Forgetting, dict[str, Any]]:
    """What `save` kept, and its details. Raises `CheckpointError` naming the file when it is absent, damaged or something else."""
    return _checked(path, *sealed.read(path, KIND, FORMAT))


def packed(found: Forgetting, details: dict[str, Any]) -> bytes:
    """The content of the file that `save` writes."""
    return sealed.packed(KIND, FORMAT, {"counts": found.counts, "never": found.never, "loss": found.loss}, details)


def unpacked(data: bytes, path: Path | str) -> tuple[Forgetting, dict[str, Any]]:
    """What such content holds; `path` is where it lies. Raises `CheckpointError` as `load` does."""
    return _checked(path, *sealed.unpacked(data, path, KIND, FORMAT))


def _checked(path: Path | str, tensors: dict[str, Tensor], details: dict[str, Any]) -> tuple[Forgetting, dict[str, Any]]:
    if set(tensors) != {"counts", "never", "loss"} or len({tensor.shape for tensor in tensors.values()}) != 1:
        raise CheckpointError(f"{path}: does not hold counts, never and loss of the same images.")
    return Forgetting(**tensors), details
