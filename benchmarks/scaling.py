"""How a step gets faster with workers: M = 1, 3, 5, 8 candidates on K = 1, 2, 3 workers of one thread, beside one process without Ray.

Real methods on random images: MTT at the size of CIFAR-10 and of the digits, MTT with 3 MB of images, DM at the size of CIFAR-10, whose
networks travel. All sides of a cell take a step in turn, in an order that turns with them, and end with the same images.

The cores of this machine are shared, so next to the clock stands the path of a step in seconds of the processor: the busiest worker's
scores, the update, the driver. That is its length where every worker has a core. What sending costs is told by a method without work
(`scaling_sending.py`); from that and from the seconds of one process `raydd.step_time` predicts every cell.

    python benchmarks/scaling.py [--turns 6] [--toys 40] [--cases mtt-digits,dm-cifar10] [--json benchmarks/results/scaling.json]
"""

import argparse
import json
import os
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from ray_overhead import hardware, summary
from scaling_cases import CANDIDATES, CASES, Case
from scaling_sending import calibrate, crowds, fitted, on_idle_machine
from scaling_tables import print_tables

from raydd.actors.cluster import connect, disconnect
from raydd.actors.executor import RayExecutor
from raydd.actors.options import WorkerOptions
from raydd.distill import State, take_step
from raydd.environment import versions
from raydd.executor import Executor, InlineExecutor
from raydd.methods import method
from raydd.plan import cores
from raydd.runfolder import images_sha256
from raydd.step_time import Transport, Work, step_time
from raydd.types import Candidate, Network, Score, SyntheticSet, Update

WORKERS = (0, 1, 2, 3)
"""0 is one process without Ray."""
WARM = 1
PARTS = ("begin", "score", "update", "driver", "path")


@dataclass
class Timed:
    """An executor that notes what the calls of a step computed, in seconds of the processor: of the busiest worker for scores."""

    executor: Executor
    workers: int = 0
    parts: dict[str, float] = field(default_factory=dict)

    @property
    def transfer_seconds(self) -> float:
        return self.executor.transfer_seconds

    def score(self, synthetic: SyntheticSet, candidates: list[Candidate], draws: Any) -> list[Score]:
        started = time.perf_counter()
        found = self.executor.score(synthetic, candidates, draws)
        # The executor's own account: its wall time less the longest time that one worker computed.
        busiest = time.perf_counter() - started - self.executor.transfer_seconds
        self.parts["score"] = busiest if self.workers else sum(score.seconds for score in found)
        return found

    def update(self, synthetic: SyntheticSet, candidate: Candidate, draws: Any) -> Update:
        found = self.executor.update(synthetic, candidate, draws)
        self.parts["update"] = found.seconds
        return found

    def begin(self, births: list[int]) -> list[Network]:
        started, busy = time.perf_counter(), time.process_time()
        found = self.executor.begin(births)
        wall = time.perf_counter() - started - self.executor.transfer_seconds
        self.parts["begin"] = wall if self.workers else time.process_time() - busy
        return found

    def taken(self, wall: float, processor: float) -> dict[str, float]:
        """Seconds by part of a step that took `wall`, this process `processor` of it; and a clean sheet for the next.

        `path` is what has to be computed one after the other: with a core for each worker no step is shorter.
        """
        found = {part: self.parts.get(part, 0.0) for part in ("begin", "score", "update")}
        work, self.parts = sum(found.values()), {}
        driver = processor if self.workers else processor - work
        return found | {"driver": driver, "path": work + driver, "total": wall}


def executors(case: Case) -> dict[int, Timed]:
    """One process, and K workers for every K."""
    made = {0: Timed(InlineExecutor(case.factory()))}
    made |= {workers: Timed(RayExecutor(case.factory, workers, WorkerOptions()), workers=workers) for workers in WORKERS[1:]}
    return made


def measure(case: Case, candidates: int, sides: dict[int, Timed], turns: int) -> list[dict[str, Any]]:
    """A row for each side: medians and quartiles of its steps by part."""
    config = case.with_candidates(candidates)
    states = {workers: State.start(case.synthetic) for workers in sides}
    taken: dict[int, list[dict[str, float]]] = {workers: [] for workers in sides}
    load = []
    for turn in range(turns + WARM):
        load.append(os.getloadavg()[0])
        for place in range(len(WORKERS)):
            workers = WORKERS[(place + turn) % len(WORKERS)]
            started, busy = time.perf_counter(), time.process_time()
            states[workers], _ = take_step(config, method(config.method), states[workers], sides[workers])
            parts = sides[workers].taken(time.perf_counter() - started, time.process_time() - busy)
            if turn >= WARM:
                taken[workers].append(parts)
    if len({images_sha256(state.synthetic.images) for state in states.values()}) != 1:
        raise SystemExit(f"{case.name}, M = {candidates}: the sides end with different images")
    return [row(case, candidates, workers, found, load) for workers, found in taken.items()]


def row(case: Case, candidates: int, workers: int, found: list[dict[str, float]], load: list[float]) -> dict[str, Any]:
    parts = {name: [one[name] for one in found] for name in PARTS}
    walls = [one["total"] for one in found]
    return {
        "case": case.name,
        "candidates": candidates,
        "workers": workers,
        "n": len(found),
        "step_ms": summary(walls) | {"mean": round(1e3 * statistics.mean(walls), 2), "min": round(1e3 * min(walls), 2)},
        "parts_ms": {name: round(1e3 * statistics.median(values), 2) for name, values in parts.items()},
        "path_ms": summary(parts["path"]),
        "load": round(statistics.mean(load), 1),
    }


# What was predicted


def predict(rows: list[dict[str, Any]], transport: Transport) -> None:
    """Add to every row of a case what the seconds of one process, and what sending costs, let expect on free cores."""
    case = CASES[rows[0]["case"]]
    alone = {row["candidates"]: row["parts_ms"] for row in rows if row["workers"] == 0}
    most = max(alone)
    each = {part: alone[most][part] / 1e3 / most for part in ("begin", "score")}
    for row in rows:
        m, workers = row["candidates"], row["workers"]
        work = Work(each["score"], alone[most]["update"] / 1e3, alone[1]["update"] / 1e3, m, begin=each["begin"])
        found = step_time(work, max(1, workers), None, case.traffic(m) if workers else None, transport)
        shared = step_time(work, max(1, workers), cores(), case.traffic(m) if workers else None, transport)
        row["predicted_ms"] = round(1e3 * found.total + alone[m]["driver"], 2)
        row["predicted_here_ms"] = round(1e3 * shared.total + alone[m]["driver"], 2)
        row["predicted_parts_ms"] = {name: round(1e3 * getattr(found, name), 2) for name in ("score", "update", "transport")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--toys", type=int, default=40, help="steps without work for each size and shape")
    parser.add_argument("--cases", default="", help="measure these anew, with what sending costs as it was found before")
    parser.add_argument("--json", default=str(Path(__file__).parent / "results" / "scaling.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    place = Path(arguments.json)
    found = json.loads(place.read_text()) if arguments.cases and place.exists() else {"rows": []}
    names = [name for name in arguments.cases.split(",") if name] or list(CASES)
    found |= {
        "question": "How long is a step of M candidates on K workers, and where does the time go? K = 0 is one process without Ray.",
        "measured": time.strftime("%Y-%m-%d"),
        "hardware": hardware(),
        "versions": versions(),
        "rows": [row for row in found["rows"] if row["case"] not in names],
    }
    connection = connect(num_cpus=1 + sum(WORKERS))
    try:
        if not arguments.cases:
            found["calibration"] = calibrate(arguments.toys, arguments.toys // 2)
            found["crowds"] = crowds(arguments.toys)
        found["idle"] = fitted(on_idle_machine())
        for name in names:
            sides = executors(CASES[name])
            try:
                for candidates in CANDIDATES:
                    found["rows"] += measure(CASES[name], candidates, sides, CASES[name].turns * arguments.turns)
                    predict([row for row in found["rows"] if row["case"] == name], Transport(**found["idle"]["transport"]))
                    place.write_text(json.dumps(found, indent=1) + "\n")
            finally:
                for side in sides.values():
                    side.executor.close()
    finally:
        disconnect(connection)
    print_tables(found)


if __name__ == "__main__":
    main()
