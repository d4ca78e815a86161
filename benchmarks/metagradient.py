"""The exact trajectory gradient against plain automatic differentiation through the unrolled inner loop: time and peak memory.

    python benchmarks/metagradient.py                       # CIFAR-10 shapes: ipc 1 with N = 50, ipc 10 with N = 30; needs 14 GB
    python benchmarks/metagradient.py --cases 1:10 --repeats 3 --memory-cases 1:5,1:10 --candidate-cases 1:5

A case is `ipc:N`. Both sides get the same float32 inputs in one process and take turns, because a shared machine drifts.
Ratios of minima and of medians are reported, of wall time and of processor time, which waiting for a busy core does not enter.
Peak memory is the growth of the resident set in a fresh process per side. The plain side is written here with torch alone.
Inputs are noise images and a noise target: time and memory do not depend on values.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from raydd import metagrad
from raydd.config import ModelConfig
from raydd.models import FlatModel, build

RESULT = Path(__file__).parent / "results" / "metagradient.json"
CLASSES, SHAPE, MODEL = 10, (3, 32, 32), ModelConfig(width=128, depth=3)
TARGETS = {"time 1": 0.9, "time 10": 0.7, "candidates": 0.6, "memory 10": 0.125}


class Case:
    """Inputs of one comparison: `ipc` images per class, N inner steps on all of them, `experts` start and target vectors."""

    def __init__(self, ipc: int, steps: int, experts: int = 1, dtype: torch.dtype = torch.float32):
        generator = torch.Generator().manual_seed(0)
        self.model: FlatModel = build(MODEL, SHAPE, CLASSES)
        self.images = torch.randn(CLASSES * ipc, *SHAPE, generator=generator).to(dtype)
        self.labels = torch.arange(CLASSES).repeat_interleave(ipc)
        self.step_size, self.steps = torch.tensor(0.01, dtype=dtype), steps
        self.starts = [self.model.init(generator).to(dtype) for _ in range(experts)]
        self.targets = [start + 0.01 * torch.randn(self.model.size, generator=generator).to(dtype) for start in self.starts]
        self.batches = [metagrad.InnerBatch(torch.arange(len(self.labels)), None)] * steps


def plain_network(theta: list[Tensor], images: Tensor) -> Tensor:
    """Logits of the ConvNet from its parameter tensors, in ordinary torch."""
    *blocks, weight, bias = theta
    for block in range(0, len(blocks), 4):
        images = F.conv2d(images, blocks[block], blocks[block + 1], padding=1)
        images = F.avg_pool2d(F.relu(F.group_norm(images, len(blocks[block]), blocks[block + 2], blocks[block + 3])), 2)
    return F.linear(images.flatten(1), weight, bias)


def plain_losses(case: Case, images: Tensor, step_size: Tensor) -> list[Tensor]:
    """Matching loss of every candidate with the graph of its whole unroll."""
    sizes = [view.shape for view in case.model.views(case.starts[0]).values()]
    losses = []
    for start, target in zip(case.starts, case.targets, strict=True):
        theta = start.detach().requires_grad_()
        for _ in range(case.steps):
            parts = [part.view(size) for part, size in zip(theta.split([size.numel() for size in sizes]), sizes, strict=True)]
            loss = F.cross_entropy(plain_network(parts, images), case.labels)
            (grad,) = torch.autograd.grad(loss, theta, create_graph=True)
            theta = theta - step_size * grad
        losses.append((theta - target).square().sum() / (start - target).square().sum())
    return losses


def plain(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """Unroll every candidate with its graph, differentiate the one of lowest loss: loss, image gradient, step-size gradient."""
    images, step_size = case.images.clone().requires_grad_(), case.step_size.clone().requires_grad_()
    winner = min(plain_losses(case, images, step_size), key=Tensor.item)
    return winner.detach(), *torch.autograd.grad(winner, [images, step_size])


def ours(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """Walk every candidate without a graph, walk back the one of lowest loss."""
    derivatives = metagrad.derivatives_of(case.model)
    place = (case.images, case.labels, case.step_size, case.batches)
    walks = [metagrad.walk(derivatives, start, *place) for start in case.starts]
    losses = [float(metagrad.matching_loss(thetas[-1], thetas[0], target)) for thetas, target in zip(walks, case.targets, strict=True)]
    winner = losses.index(min(losses))
    return metagrad.adjoint(derivatives, walks[winner], case.targets[winner], *place)


SIDES: dict[str, Callable[[Case], tuple[Tensor, Tensor, Tensor]]] = {"plain": plain, "ours": ours}


def compare_time(ipc: int, steps: int, experts: int, repeats: int) -> dict:
    """Seconds of both sides in turns after one warm-up each, and how near their answers are."""
    case, warm_up, clocks = Case(ipc, steps, experts), Case(ipc, 1, experts), {"wall": time.perf_counter, "processor": time.process_time}
    seconds: dict[str, dict[str, list[float]]] = {clock: {side: [] for side in SIDES} for clock in clocks}
    for side in SIDES.values():
        side(warm_up)
    for _ in range(repeats):
        answers = {}
        for name, side in SIDES.items():
            starts = {clock: now() for clock, now in clocks.items()}
            answers[name] = side(case)
            for clock, now in clocks.items():
                seconds[clock][name].append(now() - starts[clock])
    return {
        "ipc": ipc, "steps": steps, "candidates": experts, "repeats": repeats,
        "target": TARGETS["candidates"] if experts > 1 else TARGETS.get(f"time {ipc}"),
        **{clock: _ratios(sides) for clock, sides in seconds.items()},
        "difference_of_sides": _difference(answers["ours"], answers["plain"]),
    }  # fmt: skip


def exactness(ipc: int, steps: int) -> dict:
    """Both float32 sides against the plain side in float64, and ours in float64 too."""
    exact = plain(Case(ipc, steps, dtype=torch.float64))
    found = {"ours_float64": ours(Case(ipc, steps, dtype=torch.float64))} | {name: side(Case(ipc, steps)) for name, side in SIDES.items()}
    return {"ipc": ipc, "steps": steps} | {name: _difference(answer, exact) for name, answer in found.items()}


def compare_memory(ipc: int, steps: int) -> dict:
    """Peak growth of the resident set in MiB, each side in a process of its own."""
    peaks = {}
    for side in SIDES:
        command = [sys.executable, __file__, "--child", side, "--cases", f"{ipc}:{steps}"]
        peaks[side] = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    kept = (steps + 1) * build(MODEL, SHAPE, CLASSES).size * 4 / 2**20
    return {
        "ipc": ipc, "steps": steps, **{f"{side}_mib": peak for side, peak in peaks.items()}, "kept_thetas_mib": kept,
        "ratio": peaks["ours"] / peaks["plain"], "target": TARGETS.get(f"memory {ipc}"),
    }  # fmt: skip


def child(side: str, ipc: int, steps: int) -> None:
    """Print the growth of the peak resident set, after a one-image warm-up has loaded the libraries."""
    warm_up, case = Case(1, 1), Case(ipc, steps)
    warm_up.images, warm_up.labels, warm_up.batches = case.images[:1], case.labels[:1], [metagrad.InnerBatch(torch.arange(1), None)]
    SIDES[side](warm_up)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    SIDES[side](case)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


def _ratios(seconds: dict[str, list[float]]) -> dict:
    sides = {name: _summary(values) for name, values in seconds.items()}
    return sides | {f"ratio_of_{kind}": sides["ours"][kind] / sides["plain"][kind] for kind in ("min", "median")}


def _summary(seconds: list[float]) -> dict[str, float]:
    return {
        "n": len(seconds), "median": statistics.median(seconds), "min": min(seconds), "max": max(seconds),
        "spread": (max(seconds) - min(seconds)) / statistics.median(seconds),
    }  # fmt: skip


def _difference(answer: tuple[Tensor, ...], exact: tuple[Tensor, ...]) -> dict[str, float]:
    pairs = zip(("loss", "images", "step_size"), answer, exact, strict=True)
    return {name: ((mine.double() - value.double()).norm() / value.double().norm()).item() for name, mine, value in pairs}


def _hardware() -> dict:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "memory_gib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30,
        "load_average": os.getloadavg()[0], "system": platform.platform(),
    }  # fmt: skip


def _tables(report: dict) -> None:
    console = Console(width=140)
    table = Table("ipc", "N", "M", "n", "clock", "plain min s", "ours min s", "ratio of minima", "of medians", "target", title="Time")
    for row in report["time"]:
        for clock in ("wall", "processor"):
            sides = row[clock]
            numbers = [sides["plain"]["min"], sides["ours"]["min"], sides["ratio_of_min"], sides["ratio_of_median"]]
            head = [row["ipc"], row["steps"], row["candidates"], row["repeats"], clock]
            table.add_row(*map(str, head), *(f"{number:.3f}" for number in numbers), str(row["target"] or ""))
    console.print(table)
    table = Table("ipc", "N", "plain MiB", "ours MiB", "of which thetas", "ratio", "target", title="Peak memory above the inputs")
    for row in report["memory"]:
        numbers = [f"{row[name]:.0f}" for name in ("plain_mib", "ours_mib", "kept_thetas_mib")]
        table.add_row(str(row["ipc"]), str(row["steps"]), *numbers, f"{row['ratio']:.3f}", str(row["target"] or ""))
    console.print(table)
    table = Table("ipc", "N", "side", "loss", "images", "step size", title="Relative difference from plain float64")
    for row in report["exactness"]:
        for side in ("plain", "ours", "ours_float64"):
            table.add_row(str(row["ipc"]), str(row["steps"]), side, *(f"{value:.1e}" for value in row[side].values()))
    console.print(table)


def _cases(text: str) -> list[tuple[int, int]]:
    return [tuple(map(int, case.split(":"))) for case in text.split(",") if case]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default="1:50,10:30", help="ipc:N of the time comparison")
    parser.add_argument("--candidate-cases", default="1:50", help="ipc:N with three candidates, of which the winner is differentiated")
    parser.add_argument("--memory-cases", default="1:10,1:20,1:50,10:5,10:30", help="ipc:N of the memory comparison")
    parser.add_argument("--exactness-cases", default="1:1,1:10,1:50", help="ipc:N compared with float64")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each side")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--child", choices=list(SIDES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.child:
        child(options.child, *_cases(options.cases)[0])
        return
    report = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": _hardware(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "network": {"model": "convnet", "width": MODEL.width, "depth": MODEL.depth, "shape": SHAPE, "classes": CLASSES},
        "memory": [compare_memory(*case) for case in _cases(options.memory_cases)],
        "exactness": [exactness(*case) for case in _cases(options.exactness_cases)],
        "time": [compare_time(*case, experts=1, repeats=options.repeats) for case in _cases(options.cases)]
        + [compare_time(*case, experts=3, repeats=options.repeats) for case in _cases(options.candidate_cases)],
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=2) + "\n")
    _tables(report)


if __name__ == "__main__":
    main()
