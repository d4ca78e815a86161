"""What a later stage begins with, trained on Ray against one network after another on the same cores.

The start networks of stage 2 and its experts, for MTT on digits with 5 images per class: in this process with one thread, and on Ray
with a worker of one thread for each core; `--threaded` adds this process with a thread for each core. They take turns, so that they
meet the same machine, each with an empty store. Ray's workers get the priority of this process; by themselves they have a low one, and
beside other work they would be starved. The wall time on Ray counts the starts of its actors, twice: they are most of what the mean
worker did not spend in jobs, which is given too. Equal bits of one thread and of Ray are checked.

    python benchmarks/transition.py [--workers 2] [--networks 8] [--epochs 200] [--repeats 3] [--json benchmarks/results/transition.json]
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import ray
import torch
from rich.console import Console
from rich.table import Table

from raydd.actors.cluster import connect, disconnect
from raydd.actors.options import WorkerOptions
from raydd.actors.services import RayServices
from raydd.config import Config, Execution, override
from raydd.plan_stages import transitions
from raydd.rng import stream
from raydd.services import InlineServices, Services
from raydd.setup import Setup, prepare
from raydd.transition import stage_resources
from raydd.types import SyntheticSet

STAGE, IPC = 2, 5


@dataclass(frozen=True)
class Way:
    """Where the networks are trained: `services` makes the place, `threads` are those of each process."""

    name: str
    services: Callable[[], Services]
    threads: int
    workers: int


class Counted:
    """Services that note how long each job took, as its result says."""

    def __init__(self, services: Services):
        self._services, self.jobs, self.seconds = services, 0, 0.0

    def run_jobs(
        self,
        make_worker: Callable[[], Callable[[Any], Any]],
        jobs: Sequence[Any],
        on_result: Callable[[Any], None],
        on_wait: Callable[[], None] = lambda: None,
    ) -> None:
        def keep(result: Any) -> None:
            self.jobs += 1
            self.seconds += result.seconds
            on_result(result)

        self._services.run_jobs(make_worker, jobs, keep, on_wait)


def settings(networks: int, epochs: int, width: int) -> Config:
    """MTT on digits, two stages."""
    return override(
        Config(),
        {
            "model.width": width,
            "ipc": IPC,
            "stages.count": STAGE,
            "stages.transition_epochs": epochs,
            "experts.count": networks,
            "mtt.max_start_epoch": 3,
            "mtt.expert_epochs": 2,
            "evaluation.at_end": False,
        },
    )


def finished(setup: Setup) -> list[SyntheticSet]:
    """Images after stage 1; what they show decides no time."""
    labels = torch.arange(10).repeat_interleave(IPC)
    images = torch.randn(len(labels), *setup.model.shape, generator=stream(0, 0, "benchmark"))
    return [SyntheticSet(images, labels, torch.tensor(0.01), torch.ones_like(labels))]


def once(setup: Setup, way: Way) -> tuple[dict[str, float], list[str]]:
    """Seconds of one beginning of a stage, and the sha-256 of its experts."""
    torch.set_num_threads(way.threads)
    services = Counted(way.services())
    with tempfile.TemporaryDirectory() as folder:
        placed = replace(setup, execution=Execution(store=folder, threads=way.threads))
        started = time.perf_counter()
        found = stage_resources(placed, STAGE, finished(setup), services, lambda report: None)
        wall = time.perf_counter() - started
        digests = [found.experts.metadata(expert)["sha256"] for expert in range(setup.config.experts.count)]
    return {"wall": wall, "in_jobs": services.seconds, "outside": wall - services.seconds / way.workers}, digests


def measure(setup: Setup, workers: int, repeats: int, threaded: bool) -> list[dict[str, Any]]:
    """A row for each way: medians and all repeats, in seconds."""
    ways = [
        Way("one after another", lambda: InlineServices(setup.device), 1, 1),
        Way(f"Ray, {workers} workers", lambda: RayServices(workers, WorkerOptions()), 1, workers),
    ]
    if threaded:
        ways.append(Way(f"one after another, {workers} threads", lambda: InlineServices(setup.device), workers, 1))
    found: dict[str, list[dict[str, float]]] = {way.name: [] for way in ways}
    bits: dict[str, list[str]] = {}
    for _ in range(repeats):
        for way in ways:
            seconds, bits[way.name] = once(setup, way)
            found[way.name].append(seconds)
    torch.set_num_threads(1)
    if bits[ways[0].name] != bits[ways[1].name]:
        raise SystemExit("The networks trained on Ray differ from those trained in this process: this is a bug.")
    return [
        {
            "way": name,
            "workers": way.workers,
            "threads": way.threads,
            **{f"{part}_seconds": round(statistics.median(run[part] for run in runs), 3) for part in runs[0]},
            "walls": [round(run["wall"], 3) for run in runs],
        }
        for way, (name, runs) in zip(ways, found.items(), strict=True)
    ]


def hardware() -> dict[str, Any]:
    names = [line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.machine(),
        "cores": len(psutil.Process().cpu_affinity()),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load_at_start": round(os.getloadavg()[0], 2),
        "device": "cpu",
    }


def table(rows: list[dict[str, Any]], predicted: dict[int, float]) -> Table:
    result = Table("", "wall s", "in jobs s", "outside jobs s", "times as fast", "predicted s", title=f"The beginning of stage {STAGE}")
    for row in rows:
        result.add_row(
            row["way"],
            f"{row['wall_seconds']:.1f}",
            f"{row['in_jobs_seconds']:.1f}",
            f"{row['outside_seconds']:.1f}",
            f"{rows[0]['wall_seconds'] / row['wall_seconds']:.2f}",
            f"{predicted[row['workers']]:.1f}" if row["threads"] == 1 else "",
        )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("workers", 2), ("networks", 8), ("epochs", 200), ("width", 32), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--threaded", action="store_true")
    parser.add_argument("--notes", default="", help="what else ran on the machine, for the file")
    parser.add_argument("--json", default=str(Path(__file__).parent / "results" / "transition.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = {
        "question": "How much sooner does a later stage begin when its networks are trained in parallel?",
        "measured": time.strftime("%Y-%m-%d"),
        "hardware": hardware(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "ray": ray.__version__},
        "notes": arguments.notes,
        "settings": {name: getattr(arguments, name) for name in ("workers", "networks", "epochs", "width", "repeats")},
    }
    setup = prepare(settings(arguments.networks, arguments.epochs, arguments.width), Execution())
    images = len(setup.dataset.train)
    predicted = {
        workers: round(transitions(setup.config, Execution(workers=workers), setup.model, images)[0].seconds, 3)
        for workers in (1, arguments.workers)
    }
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
    connection = connect(num_cpus=1 + arguments.workers)
    try:
        rows = measure(setup, arguments.workers, arguments.repeats, arguments.threaded)
    finally:
        disconnect(connection)
    Console().print(table(rows, predicted))
    Path(arguments.json).write_text(json.dumps(found | {"predicted_seconds": predicted, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
