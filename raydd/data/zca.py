"""ZCA whitening: z = (x - mean) W with W = U diag((s + eps)^-1/2) U^T of the pixels' covariance U diag(s) U^T.

As in the reference of MTT (utils.py get_dataset, which calls kornia's ZCAWhitening): pixels in [0, 1], covariance over
n - 1, eps inside the root. The reference fits in float32 at every start; here the covariance is exact and W is kept.
"""

from dataclasses import dataclass

import numpy as np
import psutil
import torch
from torch import Tensor

from raydd.errors import ResourceError

# Integers from -128 to 127: at most 1024 products of 2^14 are added before leaving float32, which holds every integer up
# to 2^24. So the sums are exact for any order of addition, any device and TF32, at float32 speed.
_ROWS = 1024
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
    """Mean (D,) and covariance (D, D) over n - 1 of pixels / 255, float64, from exact integer sums."""
    count, dimension = len(images), int(np.prod(images.shape[1:]))
    products = torch.zeros(dimension, dimension, dtype=torch.float64, device=device)
    total = torch.zeros(dimension, dtype=torch.float64, device=device)
    for start in range(0, count, _ROWS):
        rows = images[start : start + _ROWS].reshape(-1, dimension).astype(np.float32) - 128
        chunk = torch.from_numpy(rows).to(device)
        products += chunk.T @ chunk
        total += chunk.sum(0, dtype=torch.float64)
    mean = total / count
    covariance = (products - torch.outer(total, mean)) / ((count - 1) * 255**2)
    return (mean + 128) / 255, covariance


def _require_memory(dimension: int, device: torch.device) -> None:
    needed = _SQUARES * 8 * dimension**2
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    if needed > free:
        raise ResourceError(
            f"--data.zca on images of {dimension} values needs {needed / 2**30:.1f} GiB for its matrices; {device.type} has "
            f"{free / 2**30:.1f} GiB free. Leave --data.zca out, lower --data.size, or use a machine with more memory."
        )
