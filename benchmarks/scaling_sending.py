"""What calling workers costs: steps of a method without work, and rounds of calls on as many slots as a large cluster would have."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray_overhead import FixedWork, step, summary, synthetic_set

from raydd.actors.crew import Call, Crew
from raydd.actors.executor import RayExecutor
from raydd.actors.options import WorkerOptions
from raydd.types import Candidate

SIZES = (0.1, 3.0, 12.0)
SHAPES = ((1, 1), (3, 1), (8, 1), (2, 2), (8, 2), (3, 3), (8, 3), (8, 6), (32, 6))
"""(M, K)."""
CROWDS, PROCESSES = (8, 64, 512), 3


def calibrate(turns: int, warm: int) -> dict[str, Any]:
    """Steps of a method that does next to nothing: what each round, call and byte costs, by least squares of relative errors.

    The first `warm` do not count: until Ray's store has been filled once, every page that it touches is a new one.
    """
    rows = []
    for workers in sorted({workers for _, workers in SHAPES}):
        executor = RayExecutor(FixedWork(), workers, WorkerOptions())
        try:
            for megabytes in SIZES:
                synthetic = synthetic_set(megabytes)
                for candidates in (m for m, k in SHAPES if k == workers):
                    asked, costs = [Candidate(index, index, 0) for index in range(candidates)], []
                    for number in range(turns + warm):
                        _, cost, synthetic = step(executor, synthetic, asked)
                        costs += [cost] if number >= warm else []
                    size = 2 * synthetic.images.numel() * 4
                    rows.append({"candidates": candidates, "workers": workers, "bytes": size, "n": turns, "ms": summary(costs)})
        finally:
            executor.close()
    return {"rows": rows} | fitted(rows)


def fitted(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The constants of `raydd.step_time.Transport`, none below 0, and how far the fit is off."""
    counts = np.array([[2, one["candidates"] + 1, one["bytes"]] for one in rows], dtype=float)
    costs = np.array([one["ms"]["median"] / 1e3 for one in rows])
    scaled, kept = counts / costs[:, None], [0, 1, 2]
    found = np.zeros(3)
    while True:
        own = np.linalg.lstsq(scaled[:, kept], np.ones(len(rows)), rcond=None)[0]
        if (own >= 0).all():
            break
        kept.pop(int(own.argmin()))
    found[kept] = own
    errors = counts @ found / costs - 1
    names = dict(zip(("round", "call", "byte"), (float(f"{value:.3g}") for value in found), strict=True))
    return {
        "transport": names,
        "median_error": round(float(np.median(np.abs(errors))), 3),
        "largest_error": round(float(np.abs(errors).max()), 3),
    }


def on_idle_machine() -> list[dict[str, Any]]:
    """What `ray_overhead.py` found while nothing else was running, in the form of `calibrate`."""
    found = json.loads((Path(__file__).parent / "results" / "ray_overhead.json").read_text())["rows"]
    return [{**row, "bytes": 2 * row["megabytes"] * 1e6, "ms": row["overhead_ms"]} for row in found]


@ray.remote(num_cpus=0)
class StandIn:
    """Answers for many workers at once."""

    def ready(self) -> dict[str, Any]:
        return {}

    def answer(self, parcel: Any, candidate: bytes) -> tuple[float, float, float]:
        return 0.0, 0.0, 1.0


def crowds(turns: int) -> list[dict[str, Any]]:
    """Rounds of one call for each of K slots, which a few processes stand in for: the driver's own time grows as with K real workers.

    The processes share this machine's cores, so the wall time holds their work too; the driver's processor time does not.
    """
    rows = []
    parcel = ray.put(np.zeros(30_000, dtype=np.float32))
    for slots in CROWDS:
        actors = [StandIn.remote() for _ in range(PROCESSES)]
        crew = Crew(lambda index, own=actors: own[index % PROCESSES], slots, WorkerOptions(), depth=2)
        try:
            crew.wait_ready()
            walls, own = [], []
            for number in range(turns + 2):
                calls = [Call(index, lambda actor: actor.answer.remote(parcel, bytes(200)), index) for index in range(slots)]
                started, busy = time.perf_counter(), time.process_time()
                answers = list(crew.run(calls))
                if len(answers) != slots:
                    raise SystemExit(f"{len(answers)} answers of {slots}")
                if number >= 2:
                    walls.append(time.perf_counter() - started)
                    own.append(time.process_time() - busy)
        finally:
            crew.close()
        rows.append({"workers": slots, "n": turns, "round_ms": summary(walls), "driver_ms": summary(own)})
    return rows
