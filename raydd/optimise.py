"""How the gradient moves the images: SGD with momentum, as torch does it or in the order of the classes.

IDC steps its optimiser once for every class, always on the whole tensor: while the other classes have their turn, a class goes on
moving by its momentum, and so does in the next step until its own turn comes. With C classes, momentum m and class c,

    a_c = (1 - m^(C-c)) / (1 - m)        b_c = (1 - m^C) / (1 - m) - a_c

one step on all classes at once is   X <- X - P;  g at X;  B <- m B + g;  X <- X - lr a_c B;  P <- lr b_c B;  B <- m^(C-1) B.
Exact, clamps and snapshots included; B is `velocity`, P is `pending`. Source: specs/idc_dream_pdd.md section 1.9.
"""

from dataclasses import replace

import torch
from torch import Tensor

from raydd.methods.base import Optimiser
from raydd.types import SyntheticSet, Update


def seen(synthetic: SyntheticSet, pending: Tensor | None) -> SyntheticSet:
    """The set at which a step's gradient is taken: pending movement done."""
    return synthetic if pending is None else replace(synthetic, images=synthetic.images - pending)


def begun(synthetic: SyntheticSet, optimiser: Optimiser) -> SyntheticSet:
    """The set as a network lifetime begins with it."""
    return replace(synthetic, images=synthetic.images.clamp(0, 1)) if optimiser.clamp else synthetic


def moved(
    images: Tensor, velocity: Tensor, gradient: Tensor, labels: Tensor, classes: int, optimiser: Optimiser
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(images, velocity, pending) after the gradient (N, C, H, W) at `images`, which have their pending movement behind them."""
    momentum, lr = optimiser.momentum, optimiser.lr_images * (classes if optimiser.class_sum else 1)
    if optimiser.rates is not None:
        lr = lr * optimiser.rates
    velocity = momentum * velocity + gradient
    if not optimiser.class_order:
        return images - lr * velocity, velocity, None
    own, later = (weights.to(velocity.dtype) for weights in class_weights(labels, classes, momentum))
    return images - lr * own * velocity, momentum ** (classes - 1) * velocity, lr * later * velocity


def class_weights(labels: Tensor, classes: int, momentum: float) -> tuple[Tensor, Tensor]:
    """a_c and b_c of every image, each float64 (N, 1, 1, 1): how far a gradient carries it in this step, and in the next."""
    turns = classes - labels.to(torch.float64)
    own = (1 - momentum**turns) / (1 - momentum)
    later = (1 - momentum**classes) / (1 - momentum) - own
    return own[:, None, None, None], later[:, None, None, None]


def step_size_moved(synthetic: SyntheticSet, velocity: Tensor, update: Update, optimiser: Optimiser) -> tuple[Tensor, Tensor]:
    """(step size, velocity): SGD too, with a floor.

    A step size that would fall below its floor stays there and loses its momentum, so that it can rise again.
    """
    velocity = optimiser.momentum * velocity + update.grad_step_size
    step_size = synthetic.step_size - optimiser.lr_step_size * velocity
    if step_size < optimiser.min_step_size:
        return torch.full_like(step_size, optimiser.min_step_size), torch.zeros_like(velocity)
    return step_size, velocity
