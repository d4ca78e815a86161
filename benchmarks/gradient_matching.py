"""Matching the gradients of all classes against the plain loop of double backward: time, and how near the answers are.

    python benchmarks/gradient_matching.py                                # CIFAR shapes, one and two threads; best on an idle machine
    python benchmarks/gradient_matching.py --cases idc:10:1 --repeats 2 --threads 1 --output matching.json

A case is `form:classes:ipc`. Form idc matches 64 real with min(4 ipc, 128) decoded images of each class by squared differences of
convolution gradients; form dc matches 256 real with ipc images by cosines of rows. Images are 32 x 32 in colour, the network is the
ConvNet of the papers. One step is the gradients of all real batches, those of all synthetic ones and the image gradient; decoding,
augmentation and the network's own update are left out.

The plain side is written here with torch alone, as the reference programs do it: class after class, backward into the images and,
needlessly, into the network, and one wait for the loss. Both sides get the same float32 inputs in one process and take turns, because
a shared machine drifts. Ratios of minima and of medians are reported, of wall time and of processor time. Inputs are noise.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from raydd.config import ModelConfig
from raydd.matching import gradients
from raydd.matching.distances import dc_distance, idc_distance
from raydd.models import build

RESULT = Path(__file__).parent / "results" / "gradient_matching.json"
SHAPE, MODEL = (3, 32, 32), ModelConfig(width=128, depth=3)
TARGETS = {("idc", 10, 10): 0.6, ("idc", 100, 10): 0.4}
Answer = tuple[Tensor, Tensor]


class Case:
    """Inputs of one comparison: real (C, n, ...) and synthetic (C, m, ...) images and a fresh network."""

    def __init__(self, form: str, classes: int, ipc: int, dtype: torch.dtype = torch.float32):
        generator = torch.Generator().manual_seed(0)
        self.form, self.model = form, build(MODEL, SHAPE, classes)
        real, synthetic = (64, min(4 * ipc, 128)) if form == "idc" else (256, ipc)
        self.theta = self.model.init(generator).to(dtype)
        self.real, self.images = (torch.randn(classes, n, *SHAPE, generator=generator).to(dtype) for n in (real, synthetic))
        self.labels = torch.arange(classes)
        self.distance = (idc_distance if form == "idc" else dc_distance)(self.model.layout)

    def parameters(self) -> list[Tensor]:
        """The network as tensors of its own, as a module holds it."""
        return [view.clone().requires_grad_() for view in self.model.views(self.theta).values()]


def plain_network(theta: list[Tensor], images: Tensor) -> Tensor:
    """Logits of the ConvNet from its parameter tensors, in ordinary torch."""
    *blocks, weight, bias = theta
    for block in range(0, len(blocks), 4):
        images = F.conv2d(images, blocks[block], blocks[block + 1], padding=1)
        images = F.avg_pool2d(F.relu(F.group_norm(images, len(blocks[block]), blocks[block + 2], blocks[block + 3])), 2)
    return F.linear(images.flatten(1), weight, bias)


def plain_distance(form: str, real: tuple[Tensor, ...], synthetic: tuple[Tensor, ...]) -> Tensor:
    """Sum over convolution weights of squared differences (idc), or over rows of weight tensors of 1 - cosine (dc)."""
    if form == "idc":
        return sum((x - y).pow(2).sum() for x, y in zip(real, synthetic, strict=True) if x.dim() == 4)
    pairs = [(x.flatten(1), y.flatten(1)) for x, y in zip(real, synthetic, strict=True) if x.dim() > 1]
    return sum((1 - (x * y).sum(-1) / (x.norm(dim=-1) * y.norm(dim=-1) + 1e-6)).sum() for x, y in pairs)


def plain(case: Case) -> Answer:
    """Double backward class by class: losses (C,) and image gradient (C, m, ...)."""
    theta, losses, towards = case.parameters(), [], []
    for real, images, label in zip(case.real, case.images, case.labels, strict=True):
        images = images.clone().requires_grad_()
        target = torch.autograd.grad(F.cross_entropy(plain_network(theta, real), label.expand(len(real))), theta)
        loss = F.cross_entropy(plain_network(theta, images), label.expand(len(images)))
        ours = torch.autograd.grad(loss, theta, create_graph=True)
        distance = plain_distance(case.form, tuple(part.detach() for part in target), ours)
        distance.backward()
        losses.append(distance.item())
        towards.append(images.grad)
        for part in theta:
            part.grad = None
    return torch.tensor(losses, dtype=case.theta.dtype), torch.stack(towards)


def ours(case: Case) -> Answer:
    """The same two by raydd."""
    real = gradients.class_gradients(case.model, case.theta, case.real, case.labels)
    return gradients.match(case.model, case.theta, real, case.images, case.labels, case.distance)


SIDES: dict[str, Callable[[Case], Answer]] = {"plain": plain, "ours": ours}


def compare(form: str, classes: int, ipc: int, threads: int, repeats: int) -> dict:
    """Seconds of both sides in turns after one warm-up each on two classes, and how near their answers are."""
    torch.set_num_threads(threads)
    case, warm_up, clocks = Case(form, classes, ipc), Case(form, 2, ipc), {"wall": time.perf_counter, "processor": time.process_time}
    seconds: dict[str, dict[str, list[float]]] = {clock: {side: [] for side in SIDES} for clock in clocks}
    loads = [os.getloadavg()[0]]
    for side in SIDES.values():
        side(warm_up)
    for _ in range(repeats):
        answers = {}
        for name, side in SIDES.items():
            starts = {clock: now() for clock, now in clocks.items()}
            answers[name] = side(case)
            for clock, now in clocks.items():
                seconds[clock][name].append(now() - starts[clock])
        loads.append(os.getloadavg()[0])
    return {
        "form": form, "classes": classes, "ipc": ipc, "real": case.real.shape[1], "synthetic": case.images.shape[1],
        "threads": threads, "repeats": repeats, "target": TARGETS.get((form, classes, ipc)),
        **{clock: _ratios(sides) for clock, sides in seconds.items()},
        "difference_of_sides": _difference(answers["ours"], answers["plain"]), "load_average": loads,
    }  # fmt: skip


def exactness(form: str, classes: int, ipc: int) -> dict:
    """Both float32 sides against the plain side in float64, and ours in float64 too, on at most four classes."""
    classes = min(classes, 4)
    exact = plain(Case(form, classes, ipc, torch.float64))
    found = {"ours_float64": ours(Case(form, classes, ipc, torch.float64))} | {
        n: side(Case(form, classes, ipc)) for n, side in SIDES.items()
    }
    return {"form": form, "classes": classes, "ipc": ipc} | {name: _difference(answer, exact) for name, answer in found.items()}


def _ratios(seconds: dict[str, list[float]]) -> dict:
    sides = {name: _summary(values) for name, values in seconds.items()}
    return sides | {f"ratio_of_{kind}": sides["ours"][kind] / sides["plain"][kind] for kind in ("min", "median")}


def _summary(seconds: list[float]) -> dict[str, float]:
    return {
        "n": len(seconds), "median": statistics.median(seconds), "min": min(seconds), "max": max(seconds),
        "spread": (max(seconds) - min(seconds)) / statistics.median(seconds),
    }  # fmt: skip


def _difference(answer: Answer, exact: Answer) -> dict[str, float]:
    pairs = zip(("losses", "images"), answer, exact, strict=True)
    return {name: ((mine.double() - value.double()).norm() / value.double().norm()).item() for name, mine, value in pairs}


def _hardware() -> dict:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(), "cores": os.cpu_count(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "memory_gib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30,
        "load_average": os.getloadavg()[0], "system": platform.platform(),
    }  # fmt: skip


def _tables(report: dict) -> None:
    console = Console(width=140)
    head = ("form", "classes", "ipc", "threads", "n", "clock", "plain min s", "ours min s", "ratio of minima", "of medians", "target")
    table = Table(*head, title="One matching step of all classes")
    for row in report["time"]:
        for clock in ("wall", "processor"):
            sides = row[clock]
            numbers = [sides["plain"]["min"], sides["ours"]["min"], sides["ratio_of_min"], sides["ratio_of_median"]]
            names = [str(row[name]) for name in ("form", "classes", "ipc", "threads", "repeats")]
            table.add_row(*names, clock, *(f"{number:.3f}" for number in numbers), str(row["target"] or ""))
    console.print(table)
    table = Table("form", "classes", "ipc", "side", "losses", "images", title="Relative difference from plain float64")
    for row in report["exactness"]:
        for side in ("plain", "ours", "ours_float64"):
            table.add_row(*(str(row[name]) for name in ("form", "classes", "ipc")), side, *(f"{value:.1e}" for value in row[side].values()))
    console.print(table)


def _cases(text: str) -> list[tuple[str, int, int]]:
    parts = [case.split(":") for case in text.split(",") if case]
    return [(form, int(classes), int(ipc)) for form, classes, ipc in parts]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--cases", default="idc:10:1,idc:10:10,idc:10:50,idc:100:10,dc:10:10", help="form:classes:ipc of the time comparison"
    )
    parser.add_argument("--exactness-cases", default="idc:10:1,idc:10:10,dc:10:10", help="form:classes:ipc compared with float64")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each side")
    parser.add_argument("--threads", default="1,2", help="numbers of threads to measure with")
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    report = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": _hardware(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "network": {"model": "convnet", "width": MODEL.width, "depth": MODEL.depth, "shape": SHAPE},
        "exactness": [exactness(*case) for case in _cases(options.exactness_cases)],
        "time": [
            compare(*case, threads, options.repeats) for case in _cases(options.cases) for threads in map(int, options.threads.split(","))
        ],
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=2) + "\n")
    _tables(report)


if __name__ == "__main__":
    main()
