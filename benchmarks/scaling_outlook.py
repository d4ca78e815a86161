"""What the measured model of a step lets expect of 8, 64 and 512 devices: extrapolation from two cores and a held-back network.

One run with as many candidates as devices, or many runs of eight, on devices as fast as one core here, or a hundred times as fast.

    python benchmarks/scaling_outlook.py        # reads results/scaling.json and results/scaling_network.json
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from scaling_cases import CASES

from raydd.step_time import StepTime, Traffic, Transport, Work, step_time

RESULTS = Path(__file__).parent / "results"
DEVICES, SPEEDS, PER_NODE = (8, 64, 512), (1, 100), 8
CASE = "mtt-cifar10"
TRIP, BANDWIDTH = 0.5e-3, 1.25e9
"""Assumed: half a millisecond to another node and back, 10 Gbit/s out of the driver's node."""


def work(found: dict[str, Any], candidates: int, speed: float) -> Work:
    """A step of the case on a device so many times as fast as one core here."""
    rows = {row["candidates"]: row["parts_ms"] for row in found["rows"] if row["case"] == CASE and row["workers"] == 0}
    score, update = rows[8]["score"] / 8e3 / speed, rows[8]["update"] / 1e3 / speed
    return Work(score, update, rows[1]["update"] / 1e3 / speed, candidates)


def transport(found: dict[str, Any], network: dict[str, Any], devices: int) -> tuple[Transport, Traffic]:
    """Over a network, where every node fetches the images from the driver's: the slowest way that there is."""
    local, nodes = Transport(**found["idle"]["transport"]), devices // PER_NODE
    traffic = CASES[CASE].traffic(devices)
    over = replace(local, trip=TRIP, **network["model"], byte=local.byte + (nodes + 1) / 2 / BANDWIDTH)
    return over, traffic


def expected(found: dict[str, Any], network: dict[str, Any], candidates: int, speed: float) -> tuple[StepTime, float]:
    """A step with a device for each candidate, and the share of its time that devices compute."""
    own, (over, traffic) = work(found, candidates, speed), transport(found, network, candidates)
    step = step_time(own, candidates, None, traffic, over)
    return step, (candidates * own.score + own.update) / candidates / step.total


def main() -> None:
    found, network = (json.loads((RESULTS / name).read_text()) for name in ("scaling.json", "scaling_network.json"))
    print(f"{CASE}; {network['model']['trips']} trips for each round, one more for every {network['model']['window'] / 1e6:.1f} MB\n")
    print("| devices | speed of one | one run, M = K | of it calls | devices busy | runs of M = K = 8 | a step of each | devices busy |")
    print("|" + "---|" * 8)
    for speed in SPEEDS:
        small, small_busy = expected(found, network, 8, speed)
        for devices in DEVICES:
            whole, busy = expected(found, network, devices, speed)
            cells = [devices, f"{speed} x", f"{whole.total:.3g} s", f"{whole.transport:.3g} s", f"{busy:.0%}"]
            cells += [devices // 8, f"{small.total:.3g} s", f"{small_busy:.0%}"]
            print("| " + " | ".join(map(str, cells)) + " |")
    print("\ncalls by the model, and the driver's own time as measured with stand-ins for so many workers (one round):")
    for row in found["crowds"]:
        calls = found["idle"]["transport"]["call"] * row["workers"] * 1e3
        print(f"  {row['workers']:4d}: {calls:7.1f} ms; {row['driver_ms']['median']:7.1f} ms of {row['round_ms']['median']:7.1f} ms")


if __name__ == "__main__":
    main()
