"""Greedy choices in feature space: herding follows the mean of a class, k-center covers it.

Both take the features (n, F) of one class and return places in the order of the choice, so that the first k of a longer choice are
the choice of k. Distances are Euclidean, in float64 on centred features, and need memory for one copy of the features alone.
"""

import torch
from torch import Tensor

from raydd.errors import DataError


def herding(features: Tensor, count: int) -> Tensor:
    """Greedy mean matching: places int64 (count,) among features (n, F), all different.

    With mu the mean of all, pick t takes the x that is not yet chosen and minimises ||t mu - sum of the chosen - x||, the lowest place
    among equals. Source: specs/dc_dsa_dm_cafe_selection_cl.md section 8, the definition of the authors of DatasetCondensation and
    IDC's `herding_select`. DeepCore maximises that distance instead, which is not herding. Raises `DataError` for a `count` that
    is not 1 to n, or features that are not finite.
    """
    centred = _centred(features, count)
    squares, excess = centred.square().sum(1), torch.zeros_like(centred[0])
    left = torch.ones(len(centred), dtype=torch.bool, device=centred.device)
    chosen = []
    for _ in range(count):
        # Centred, the distance is ||excess + x||, of which ||excess|| is the same for all.
        scores = torch.addmv(squares, centred, excess, alpha=2.0)
        place = torch.where(left, scores, torch.inf).argmin()
        excess = excess + centred[place]
        left[place] = False
        chosen.append(place)
    return torch.stack(chosen)


def k_center(features: Tensor, count: int, start: int | None = None) -> Tensor:
    """Greedy covering: places int64 (count,) among features (n, F), all different.

    The first is the one nearest to the mean, or `start`; each further one is the farthest from its nearest chosen centre, the lowest
    place among equals. Source: specs/dc_dsa_dm_cafe_selection_cl.md section 8, the definition of the authors of DatasetCondensation.
    DeepCore starts at random. Raises `DataError` for a `count` that is not 1 to n, or features that are not finite.
    """
    centred = _centred(features, count)
    squares = centred.square().sum(1)
    place = squares.argmin() if start is None else torch.tensor(start, device=centred.device)
    nearest = torch.full_like(squares, torch.inf)
    chosen = [place]
    for _ in range(count - 1):
        distances = torch.addmv(squares + squares[place], centred, centred[place], alpha=-2.0).clamp_min(0.0)
        nearest = torch.minimum(nearest, distances)
        # Below every distance: copies of a centre are taken last, itself never again.
        nearest[place] = -1.0
        place = nearest.argmax()
        chosen.append(place)
    return torch.stack(chosen)


def _centred(features: Tensor, count: int) -> Tensor:
    """Features minus their mean, float64 (n, F)."""
    if not 1 <= count <= len(features):
        raise DataError(f"{count} images are to be chosen among {len(features)}; allowed: 1 to {len(features)}. Lower --ipc.")
    values = features.detach().to(torch.float64)
    mean = values.mean(0)
    if not torch.isfinite(mean).all():
        raise DataError("the features of some image are not finite: the network diverged. Lower --select.lr.")
    return values - mean
