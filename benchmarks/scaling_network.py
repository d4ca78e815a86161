"""What a step costs over a network: the trips to another node and back that a round of calls takes, and what bytes add.

Two network namespaces on this machine, each with its own Ray node, joined by two TUN devices and a process that holds every packet back
for as long as it is told. The driver is on one node, the workers of a method without work on the other; a step scores M = K candidates
and updates one. Linux and root are needed. The machine's own network is not touched.

    python benchmarks/scaling_network.py [--steps 20] [--json benchmarks/results/scaling_network.json]
"""

import argparse
import ctypes
import fcntl
import heapq
import json
import multiprocessing
import os
import select
import shutil
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("RAY_AUTH_MODE", "disabled")

import ray
import torch
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group
from ray_overhead import FixedWork, hardware, step, summary, synthetic_set

from raydd.actors.executor import RayExecutor
from raydd.actors.options import WorkerOptions
from raydd.environment import versions
from raydd.types import Candidate

TRIPS_MS = (0.0, 2.0, 10.0, 40.0)
"""Milliseconds to the other node and back that are added to what the way through the process takes."""
SIZES, WORKERS = (0.1, 3.0, 12.0), (1, 3)
ADDRESSES = ("10.77.0.1", "10.77.0.2")
_NEWNET, _TUNSETIFF, _TUN_NO_PI = 0x40000000, 0x400454CA, 0x1001


@dataclass(frozen=True)
class Side:
    """A network namespace and its TUN device, as file descriptors."""

    namespace: int
    device: int

    def enter(self) -> None:
        """Have what this thread starts from now on be here."""
        _checked(ctypes.CDLL(None, use_errno=True).setns(self.namespace, _NEWNET))


def _checked(code: int) -> None:
    if code:
        raise SystemExit(f"network namespaces need root on Linux: {os.strerror(ctypes.get_errno())}")


def side(address: str) -> Side:
    """A new namespace with this address; this thread is in it afterwards."""
    _checked(ctypes.CDLL(None, use_errno=True).unshare(_NEWNET))
    device = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH", b"tun0", _TUN_NO_PI))
    for words in (
        "link set lo up",
        f"addr add {address}/24 dev tun0",
        "link set tun0 mtu 60000 txqueuelen 10000 up",
        "route add default dev tun0",
    ):
        subprocess.run(["ip", *words.split()], check=True)
    return Side(os.open("/proc/self/ns/net", os.O_RDONLY), device)


def carry(devices: tuple[int, int], held: Any) -> None:
    """Pass packets from each device to the other, `held.value` seconds after they came; never returns."""
    waiting: list[tuple[float, int, int, bytes]] = []
    count, other = 0, {devices[0]: devices[1], devices[1]: devices[0]}
    while True:
        now = time.monotonic()
        while waiting and waiting[0][0] <= now:
            _, _, device, packet = heapq.heappop(waiting)
            os.write(device, packet)
        pause = max(0.0, waiting[0][0] - time.monotonic()) if waiting else 1.0
        for device in select.select(devices, [], [], pause)[0]:
            count += 1
            heapq.heappush(waiting, (time.monotonic() + held.value, count, other[device], os.read(device, 65536)))


@contextmanager
def two_nodes() -> Iterator[Any]:
    """A Ray cluster whose second node, with the resource `far`, is across the network; yields the seconds that packets are held."""
    near, far = (side(address) for address in ADDRESSES)
    held = multiprocessing.Value("d", 0.0)
    carrier = multiprocessing.get_context("fork").Process(target=carry, args=((near.device, far.device), held), daemon=True)
    carrier.start()
    near.enter()
    folder = tempfile.mkdtemp(prefix="raydd-network-")  # apart from other clusters of this machine, whose address Ray notes there
    arguments = {"num_cpus": 4, "object_store_memory": 400 * 2**20, "temp_dir": folder}
    cluster = Cluster(initialize_head=True, head_node_args={**arguments, "node_ip_address": ADDRESSES[0], "include_dashboard": False})
    try:
        far.enter()
        cluster.add_node(**arguments, node_ip_address=ADDRESSES[1], resources={"far": 4})
        near.enter()
        ray.init(address=cluster.address, _node_ip_address=ADDRESSES[0], log_to_driver=False, logging_level="ERROR")
        yield held
    finally:
        ray.shutdown()
        cluster.shutdown()
        carrier.terminate()
        shutil.rmtree(folder, ignore_errors=True)


def measure(held: Any, workers: int, steps: int) -> list[dict[str, Any]]:
    """Sizes and trips in turn, so that all meet the same machine."""
    group = placement_group([{"CPU": 1.0}, *[{"CPU": 1.0, "far": 1.0}] * workers])
    ray.get(group.ready(), timeout=60)
    executor = RayExecutor(FixedWork(), workers, WorkerOptions(), group)
    candidates = [Candidate(index, index, 0) for index in range(workers)]
    found: dict[tuple[float, float], list[float]] = {}
    try:
        for megabytes in SIZES:
            synthetic = synthetic_set(megabytes)
            for number in range(steps + 3):
                for trip in TRIPS_MS:
                    held.value = trip / 2e3
                    _, outside, synthetic = step(executor, synthetic, candidates)
                    if number >= 3:
                        found.setdefault((megabytes, trip), []).append(outside)
    finally:
        held.value = 0.0
        executor.close()
        ray.util.remove_placement_group(group)
    return [
        {"megabytes": size, "workers": workers, "trip_ms": trip, "n": steps, "overhead_ms": summary(costs)}
        for (size, trip), costs in found.items()
    ]


def trips(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each size and K: trips of a step, the slope of its overhead over the time of a trip. Of lower quartiles: other work waits too."""
    found = []
    for place in sorted({(row["megabytes"], row["workers"]) for row in rows}):
        own = [row for row in rows if (row["megabytes"], row["workers"]) == place]
        slope, start = np.polyfit([row["trip_ms"] for row in own], [row["overhead_ms"]["q25"] for row in own], 1)
        found.append({"megabytes": place[0], "workers": place[1], "trips": round(float(slope), 2), "without_ms": round(float(start), 1)})
    return found


def model(found: list[dict[str, Any]]) -> dict[str, float]:
    """`trips` of a round and `window` of `raydd.step_time.Transport`: a step has two rounds, and sends a set out and a gradient back."""
    slope, start = np.polyfit([2e6 * row["megabytes"] for row in found], [row["trips"] for row in found], 1)
    return {"trips": round(float(start) / 2, 2), "window": float(f"{1 / slope:.3g}")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--json", default=str(Path(__file__).parent / "results" / "scaling_network.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {
        "question": "What does a step cost beyond the work when its workers are on another node? Packets are held back by a process.",
        "measured": time.strftime("%Y-%m-%d"),
        "hardware": hardware(),
        "versions": versions(),
    }
    with two_nodes() as held:
        rows = [row for workers in WORKERS for row in measure(held, workers, arguments.steps)]
    slopes = trips(rows)
    found |= {"load_after": round(os.getloadavg()[0], 2), "model": model(slopes), "trips": slopes, "rows": rows}
    Path(arguments.json).write_text(json.dumps(found, indent=1) + "\n")
    for row in rows:
        print(row)
    for row in slopes:
        print(row)
    print(found["model"])


if __name__ == "__main__":
    main()
