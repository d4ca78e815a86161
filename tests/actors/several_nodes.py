"""Programs that lose a whole node; test_multinode.py runs them in processes of their own.

python -m tests.actors.several_nodes score|driver FOLDER
"""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from ray.cluster_utils import Cluster

from raydd.actors.cluster import bundles, connect, describe, disconnect, reserve
from raydd.actors.driver import drive
from raydd.actors.executor import RayExecutor
from raydd.actors.options import WorkerOptions
from raydd.executor import InlineExecutor
from tests.actors.ray_toys import ToyFactory, ToyMethod, ToyRun
from tests.actors.test_executor import CANDIDATES, distil, start_set

# A lost node is noticed within a second, not within fifteen.
ALERT = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 300, "health_check_failure_threshold": 2}
STORE = 80 * 2**20


@contextmanager
def nodes(head_cpus: int, others: int) -> Iterator[Cluster]:
    """A head and so many nodes of one CPU on this machine, and this process connected to them."""
    # The driver's bundle asks for the resource `driver`, so that the workers' bundles are on the other nodes.
    head = {
        "num_cpus": head_cpus,
        "resources": {"driver": 1},
        "include_dashboard": False,
        "object_store_memory": STORE,
        "_system_config": ALERT,
    }
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(others):
        cluster.add_node(num_cpus=1, object_store_memory=STORE)
    connection = connect(cluster.address)
    try:
        yield cluster
    finally:
        disconnect(connection)
        cluster.shutdown()


def lose_node_of(cluster: Cluster, pid: int) -> None:
    """Kill the node on which this process lives, without warning."""
    raylet = psutil.Process(pid).ppid()
    (node,) = [node for node in cluster.list_all_nodes() if node.all_processes["raylet"][0].process.pid == raylet]
    assert node is not cluster.head_node
    cluster.remove_node(node, allow_graceful=False)


def when(path: Path, do: Any) -> None:
    """Call `do(text of the file)` once the file has a text."""

    def watch() -> None:
        end = time.monotonic() + 60
        while not (path.exists() and path.read_text()) and time.monotonic() < end:
            time.sleep(0.01)
        do(path.read_text())

    threading.Thread(target=watch, daemon=True).start()


def node_lost_in_the_middle_of_a_score(folder: Path) -> None:
    """Prints the digests of the inline and the Ray run, the kinds of faults, and whether the worker came back on a new node."""
    with nodes(head_cpus=1, others=2) as cluster:
        group = reserve(bundles(2, 1, 0, describe()), "STRICT_SPREAD", 30)
        executor = RayExecutor(ToyFactory(str(folder)), 2, WorkerOptions(pause=0.2), group)
        # Candidate 1 belongs to worker 0, and so to a node that is not the driver's.
        (folder / "score-1").touch()
        when(folder / "score-1.pid", lambda pid: lose_node_of(cluster, int(pid)))
        assert distil(executor) == distil(InlineExecutor(ToyMethod()))
        events = executor.drain_events()
        assert events and events[0][0] == "death", events
        cluster.add_node(num_cpus=1, object_store_memory=STORE)
        synthetic, draws, end = start_set(), torch.rand(3), time.monotonic() + 60
        while "respawn" not in [kind for kind, _ in events] and time.monotonic() < end:
            executor.score(synthetic, CANDIDATES, draws)
            events += executor.drain_events()
            time.sleep(0.1)
        assert "respawn" in [kind for kind, _ in events], events
        executor.close()


def node_of_the_driver_lost(folder: Path) -> None:
    """The run carries on on another node from where it stood."""
    with nodes(head_cpus=0, others=2) as cluster:
        pids = []

        def follow(status: dict[str, Any]) -> None:
            if status.get("done") == 3 and not pids:
                pids.append(status["pid"])
                threading.Thread(target=lose_node_of, args=(cluster, status["pid"]), daemon=True).start()

        slow = ToyRun(str(folder / "count"), steps=100)
        result = drive(slow, [{"CPU": 1.0}], follow)
        assert result["count"] == 100 and result["attempt"] == 2 and result["start"] >= 3, result


if __name__ == "__main__":
    torch.set_num_threads(1)
    {
        "score": node_lost_in_the_middle_of_a_score,
        "driver": node_of_the_driver_lost,
    }[sys.argv[1]](Path(sys.argv[2]))
    print("done")
