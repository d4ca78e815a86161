"""What a distillation step costs on Ray beyond the work of its workers.

A toy method with a small fixed amount of work is stepped (score M = K candidates, update one) inline and on Ray, one after the
other in one process, so that both meet the same machine. The overhead of a step is its wall time on Ray less the longest time
that a worker spent in the method for the scores, less that for the update.

    python benchmarks/ray_overhead.py [--steps 100] [--json benchmarks/results/ray_overhead.json]
"""

import argparse
import json
import os
import platform
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import ray
import torch
from rich.console import Console
from rich.table import Table

from raydd.actors.cluster import connect, disconnect
from raydd.actors.executor import RayExecutor
from raydd.actors.options import WorkerOptions
from raydd.executor import Executor, InlineExecutor
from raydd.types import Candidate, Score, SyntheticSet, Update

SIZES = (0.1, 3.0, 30.0)
WORKERS = (1, 2, 3)


@dataclass(frozen=True)
class FixedWork:
    """A few matrix products whatever the set; the gradient is as large as the images."""

    def __call__(self) -> "FixedWork":
        return self

    def score(self, synthetic: SyntheticSet, candidate: Candidate, draws: Any) -> Score:
        started = time.perf_counter()
        return Score(_work(), time.perf_counter() - started)

    def update(self, synthetic: SyntheticSet, candidate: Candidate, draws: Any) -> Update:
        started = time.perf_counter()
        gradient = synthetic.images * 0.5
        return Update(_work(), gradient, torch.ones(()), time.perf_counter() - started)


def _work() -> float:
    product = torch.full((160, 160), 0.01)
    for _ in range(10):
        product = product @ product
    return float(product.sum())


def synthetic_set(megabytes: float) -> SyntheticSet:
    count = max(1, round(megabytes * 1e6 / (3 * 32 * 32 * 4)))
    return SyntheticSet(
        torch.randn(count, 3, 32, 32), torch.zeros(count, dtype=torch.int64), torch.tensor(0.01), torch.ones(count, dtype=torch.int64)
    )


def typical_draws() -> list[torch.Tensor]:
    """About what MTT draws for 20 inner steps: 80 tensors of indices and augmentation parameters, 50 kB."""
    return [torch.full((160,), 0.5) for _ in range(80)]


def step(executor: Executor, synthetic: SyntheticSet, candidates: list[Candidate]) -> tuple[float, float, SyntheticSet]:
    """(wall seconds, seconds outside the method, the next set) of one step."""
    draws = typical_draws()
    started = time.perf_counter()
    executor.score(synthetic, candidates, draws)
    outside = executor.transfer_seconds
    update = executor.update(synthetic, candidates[-1], draws)
    wall, outside = time.perf_counter() - started, outside + executor.transfer_seconds
    # A new set for every step, as the optimiser makes it.
    images = synthetic.images - update.grad_images * 1e-3
    return wall, outside, SyntheticSet(images, synthetic.labels, synthetic.step_size, synthetic.stages)


def measure(megabytes: float, workers: int, steps: int, warm: int = 120) -> dict[str, Any]:
    """The first `warm` steps are not counted: until Ray's store has been filled once, every page that it touches is a new one."""
    candidates = [Candidate(index, index, 0) for index in range(workers)]
    remote, inline = RayExecutor(FixedWork(), workers, WorkerOptions()), InlineExecutor(FixedWork())
    synthetic, overheads, walls, inline_walls = synthetic_set(megabytes), [], [], []
    try:
        for number in range(steps + warm):
            inline_wall, _, _ = step(inline, synthetic, candidates)
            wall, overhead, synthetic = step(remote, synthetic, candidates)
            if number >= warm:
                overheads.append(overhead)
                walls.append(wall)
                inline_walls.append(inline_wall)
    finally:
        remote.close()
    return {
        "megabytes": megabytes,
        "workers": workers,
        "candidates": workers,
        "n": steps,
        "overhead_ms": summary(overheads),
        "ray_step_ms": summary(walls),
        "inline_step_ms": summary(inline_walls),
    }


def summary(seconds: list[float]) -> dict[str, float]:
    """Median and quartiles in milliseconds."""
    low, middle, high = (1e3 * value for value in statistics.quantiles(seconds, n=4))
    return {"median": round(middle, 2), "q25": round(low, 2), "q75": round(high, 2)}


def hardware() -> dict[str, Any]:
    names = [line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.machine(),
        "cores": len(psutil.Process().cpu_affinity()),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load_at_start": round(os.getloadavg()[0], 2),
        "device": "cpu",
    }


def table(rows: list[dict[str, Any]]) -> Table:
    result = Table("images", "K = M", "overhead ms", "quartiles", "step on Ray ms", "step inline ms", title="Ray beyond the work of a step")
    for row in rows:
        cost = row["overhead_ms"]
        result.add_row(
            f"{row['megabytes']:g} MB",
            str(row["workers"]),
            f"{cost['median']:.1f}",
            f"{cost['q25']:.1f} to {cost['q75']:.1f}",
            f"{row['ray_step_ms']['median']:.1f}",
            f"{row['inline_step_ms']['median']:.1f}",
        )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--json", default=str(Path(__file__).parent / "results" / "ray_overhead.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = {
        "question": "What does a step on Ray cost beyond the work of its workers? The load at the start counts other work on the machine.",
        "measured": time.strftime("%Y-%m-%d"),
        "hardware": hardware(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "ray": ray.__version__},
    }
    connection = connect(num_cpus=1 + max(WORKERS))
    try:
        rows = [measure(megabytes, workers, arguments.steps) for megabytes in SIZES for workers in WORKERS]
    finally:
        disconnect(connection)
    Console().print(table(rows))
    Path(arguments.json).write_text(json.dumps(found | {"rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
