"""Scores of single images under a trained network, and the choice of the highest.

Source: specs/dc_dsa_dm_cafe_selection_cl.md section 8; GraNd and EL2N are those of Paul et al. 2021, `Deep Learning on a Data Diet`.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from raydd.errors import DataError


def errors(logits: Tensor, labels: Tensor) -> Tensor:
    """softmax(logits) - onehot(labels), (B, C): the gradient of each image's own cross-entropy with respect to its logits."""
    return logits.softmax(-1) - F.one_hot(labels, logits.shape[-1]).to(logits.dtype)


def el2n(logits: Tensor, labels: Tensor) -> Tensor:
    """The norm of the error, (B,), in 0..sqrt(2)."""
    return errors(logits, labels).norm(dim=-1)


def grand(logits: Tensor, labels: Tensor, features: Tensor) -> Tensor:
    """The norm of each image's gradient with respect to weight and bias of the last layer, (B,): ||g|| sqrt(1 + ||h||^2).

    g is the error (B, C), h the features (B, F) that the last layer reads. Every image has its own gradient; DeepCore takes rows
    of a batch mean, which scales the images of a short last batch up.
    """
    return el2n(logits, labels) * (1 + features.square().sum(-1)).sqrt()


def highest(scores: Tensor, count: int, second: Tensor | None = None) -> Tensor:
    """Places int64 (count,) of the highest scores (n,), highest first; equal ones by the highest `second` (n,), then by place.

    Infinite scores are allowed. Raises `DataError` for a `count` that is not 1 to n, or scores that are no numbers.
    """
    if not 1 <= count <= len(scores):
        raise DataError(f"{count} images are to be chosen among {len(scores)}; allowed: 1 to {len(scores)}. Lower --ipc.")
    keys = [-part.detach().cpu().double().numpy() for part in (second, scores) if part is not None]
    if any(np.isnan(key).any() for key in keys):
        raise DataError("the score of some image is not a number: the network diverged. Lower --select.lr.")
    # The last key counts most; the sort is stable, so that equal ones stay in order.
    return torch.from_numpy(np.lexsort(keys)[:count].copy())
