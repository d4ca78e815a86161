"""The numbers of continual learning: seen-class accuracy and forgetting from accuracy matrices, and the tables that show them.

Row t of a matrix has the accuracies (0..1) after phase t on the classes of the phases 1..t, among all classes seen.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.table import Table

Matrix = Sequence[Sequence[float]]


def seen_accuracy(matrix: Matrix, images: Sequence[int]) -> list[float]:
    """After each phase the accuracy on the test images of all classes seen: the row, weighted by `images` of each phase."""
    return [float(np.average(row, weights=images[: len(row)])) for row in matrix]


def forgetting(matrix: Matrix) -> list[float]:
    """After each phase, the mean over the earlier ones of the best accuracy that was reached on them before, minus that of now.

    0 after the first, negative where earlier classes got better. Source: Chaudhry et al. 2018, `Riemannian Walk`, section 4.
    """
    found = [0.0]
    for now in range(1, len(matrix)):
        lost = [max(matrix[then][phase] for then in range(phase, now)) - matrix[now][phase] for phase in range(now)]
        found.append(float(np.mean(lost)))
    return found


def summary(matrices: Sequence[Matrix], images: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Means and standard deviations (of the population) over networks: their matrices, and for each the test images of every phase."""
    seen = np.array([seen_accuracy(matrix, own) for matrix, own in zip(matrices, images, strict=True)])
    lost = np.array([forgetting(matrix) for matrix in matrices])
    rows = [np.array([matrix[phase] for matrix in matrices]) for phase in range(len(matrices[0]))]
    return {
        "networks": len(matrices),
        "seen_mean": seen.mean(0).tolist(),
        "seen_std": seen.std(0).tolist(),
        "average_mean": seen.mean(1).mean().item(),
        "average_std": seen.mean(1).std().item(),
        "forgetting_mean": lost.mean(0).tolist(),
        "forgetting_std": lost.std(0).tolist(),
        "matrix_mean": [row.mean(0).tolist() for row in rows],
        "matrix_std": [row.std(0).tolist() for row in rows],
    }


def seen_table(result: dict[str, Any]) -> Table:
    """By phase and by what was kept: accuracy on all classes seen; its mean over the phases, forgetting at the end, memory."""
    sources = result["sources"]
    table = Table("test accuracy", *sources, box=None, header_style="bold")
    for phase in range(result["phases"]):
        cells = [f"{own['seen_mean'][phase]:.1%} ± {own['seen_std'][phase]:.1%}" for own in sources.values()]
        table.add_row(f"after phase {phase + 1}", *cells)
    table.add_row("mean", *(f"{own['average_mean']:.1%} ± {own['average_std']:.1%}" for own in sources.values()))
    table.add_row("forgetting", *(f"{own['forgetting_mean'][-1]:.1%} ± {own['forgetting_std'][-1]:.1%}" for own in sources.values()))
    table.add_row("images kept", *(f"{own['memory']['images'][-1]:,}" for own in sources.values()))
    table.add_row("bytes kept", *(f"{own['memory']['bytes'][-1]:,}" for own in sources.values()))
    return table


def matrix_table(result: dict[str, Any], source: str) -> Table:
    """After each phase the accuracy on the classes of every phase so far."""
    phases = range(1, result["phases"] + 1)
    table = Table(f"{source}, classes of phase", *map(str, phases), box=None, header_style="bold")
    for phase, row in zip(phases, result["sources"][source]["matrix_mean"], strict=True):
        table.add_row(f"after phase {phase}", *(f"{value:.1%}" for value in row))
    return table
