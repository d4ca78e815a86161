"""ZCA whitening: z = (x - mean) W with W = U diag((s + eps)^-1/2) U^T of the pixels' covariance U diag(s) U^T.

As in the reference of MTT (utils.py get_dataset, which calls kornia's ZCAWhitening): pixels in [0, 1], covariance over
n - 1, eps inside the root. The reference fits in float32 at every start; here it is float64, once.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import psutil
import torch
from torch import Tensor

from raydd.errors import ResourceError

_ROWS = 1024  # images converted to float64 at a time
_SQUARES = 6  # float64 D x D matrices alive at the peak: covariance, eigenvectors and workspace


@dataclass(frozen=True)
class Zca:
    """Fitted whitening, float64: mean (D,), matrix and inverse (D, D), with D = C x H x W in that order."""

    mean: Tensor
    matrix: Tensor
    inverse: Tensor


def fit_zca(images: np.ndarray, eps: float, device: torch.device | str = "cpu") -> Zca:
    """Fit on uint8 images (n, C, H, W), n >= 2, as pixels / 255.

    Raises `ResourceError` where the matrices would not fit into memory.
    """
    dimension = int(np.prod(images.shape[1:]))
    _require_memory(dimension, torch.device(device))
    mean, covariance = covariance_of(images, device)
    spectrum, basis = torch.linalg.eigh(covariance)
    del covariance
    root = (spectrum.clamp(min=0) + eps).sqrt()
    return Zca(mean, (basis / root) @ basis.T, (basis * root) @ basis.T)


def covariance_of(images: np.ndarray, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Mean (D,) and covariance (D, D) over n - 1 of the pixels that `Transform.forward` sees: float32(x / 255), in float64."""
    dimension = int(np.prod(images.shape[1:]))
    total = torch.zeros(dimension, dtype=torch.float64, device=device)
    for chunk in _chunks(images, device):
        total += chunk.sum(0)
    mean = total / len(images)
    products = torch.zeros(dimension, dimension, dtype=torch.float64, device=device)
    for chunk in _chunks(images, device):
        chunk -= mean
        products.addmm_(chunk.T, chunk)
    return mean, products.div_(len(images) - 1)


def _chunks(images: np.ndarray, device: torch.device | str) -> Iterator[Tensor]:
    """Rows as float64 (k, D) in [0, 1]."""
    for start in range(0, len(images), _ROWS):
        rows = torch.from_numpy(images[start : start + _ROWS].astype(np.float32)).to(device)
        yield rows.flatten(1).div_(255).double()


def _require_memory(dimension: int, device: torch.device) -> None:
    needed = _SQUARES * 8 * dimension**2
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    if needed > free:
        raise ResourceError(
            f"--data.zca on images of {dimension} values needs {needed / 2**30:.1f} GiB for its matrices; {device.type} has "
            f"{free / 2**30:.1f} GiB free. Leave --data.zca out, lower --data.size, or use a machine with more memory."
        )
