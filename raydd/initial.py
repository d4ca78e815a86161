"""What synthetic images start from: noise, real images, or several shrunk real images in one (IDC), by lot or by k-means (DREAM).

Source: specs/idc_dream_pdd.md sections 1.2 and 2. Which real images are taken is decided apart from what is made of them.
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from raydd.errors import ConfigError
from raydd.kmeans import ITERATIONS, representatives
from raydd.rng import stream


def noise(shape: tuple[int, ...], space: Literal["training", "pixels"], generator: Generator) -> Tensor:
    """Noise of a shape (N, C, H, W): standard normal in training space; in pixel space a quarter of that around grey, within [0, 1]."""
    values = torch.randn(shape, generator=generator)
    return values if space == "training" else (values / 4 + 0.5).clamp(0, 1)


def mix(images: Tensor, factor: int) -> Tensor:
    """Real images (C, ipc f^2, ch, H, W) of each class, f x f of them in each stored image: (C x ipc, ch, H, W), class-major.

    Patch k (row by row) of stored image m of a class is image k ipc + m of that class, shrunk by taking the nearest pixels, as the
    reference does. With H mod f = r the first r rows and columns of patches are one pixel longer. Decoding reads every patch back
    whole when r is 0 or f - 1; else the later ones are read from up to f - 2 pixels too far, in the reference too.
    """
    classes, count, channels, side, _ = images.shape
    sizes = [side // factor + (place < side % factor) for place in range(factor)]
    patches = images.view(classes, factor, factor, count // factor**2, channels, side, side)
    rows = []
    for y, height in enumerate(sizes):
        shrunk = [F.interpolate(patches[:, y, x].flatten(0, 1), size=(height, width), mode="nearest") for x, width in enumerate(sizes)]
        rows.append(torch.cat(shrunk, dim=-1))
    return torch.cat(rows, dim=-2)


def class_rows(labels: Tensor, names: tuple[str, ...], count: int, setting: str) -> list[Tensor]:
    """All rows of each class in data order, one int64 tensor for each of the class `names`.

    Raises `ConfigError` naming `setting`, which asks for `count` images, for every class that has fewer.
    """
    rows = [torch.nonzero(labels == label).squeeze(1) for label in range(len(names))]
    short = [f"{name} ({len(own)})" for name, own in zip(names, rows, strict=True) if len(own) < count]
    if short:
        listed = ", ".join(short[:5]) + (f" and {len(short) - 5} more" if len(short) > 5 else "")
        raise ConfigError([f"{setting} needs {count} training images of each class; too few has: {listed}. Lower it."])
    return rows


def first_rows(rows: list[Tensor], count: int) -> Tensor:
    """The first `count` rows of each class in data order, as IDC's reference takes them: int64 (classes, count)."""
    return torch.stack([own[:count] for own in rows])


def random_rows(rows: list[Tensor], count: int, seed: int, purpose: str) -> Tensor:
    """`count` different rows of each class by lot: int64 (classes, count)."""
    orders = (torch.randperm(len(own), generator=stream(seed, 0, purpose, label)) for label, own in enumerate(rows))
    return torch.stack([own[order[:count]] for own, order in zip(rows, orders, strict=True)])


def central_rows(
    rows: list[Tensor],
    count: int,
    embed: Callable[[Tensor], Tensor],
    seed: int,
    purpose: str,
    iterations: int = ITERATIONS,
    reseed: bool = True,
) -> Tensor:
    """The rows of each class nearest to the centres of `count` clusters of its features: int64 (classes, count) on the CPU.

    `embed(rows (n,)) -> (n, F)` gives the features. The order is that of the clusters, which is arbitrary; an image that is nearest
    to two centres comes twice, as in the reference. `iterations` and `reseed` are those of `raydd.kmeans`.
    """
    chosen = []
    for label, own in enumerate(rows):
        places = representatives(embed(own), count, stream(seed, 0, purpose, label), iterations=iterations, reseed=reseed)
        chosen.append(own[places.cpu()])
    return torch.stack(chosen)
