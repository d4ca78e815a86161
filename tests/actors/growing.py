"""A cluster that can grow: a run waits for the nodes that it needs. test_growing.py runs this in a process of its own.

python -m tests.actors.growing grow|interrupt FOLDER
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group_table

from raydd.actors.cluster import connect, disconnect
from raydd.actors.driver import drive
from raydd.actors.growth import LIMIT
from tests.actors.ray_toys import ToyRun

WANTED = [{"CPU": 1.0}, {"CPU": 1.0}, {"CPU": 1.0}]
STORE = 80 * 2**20
MISSING = "waiting for the cluster to grow: --workers=2 asks for 3 CPUs, 1 there now, up to 3 possible"


@contextmanager
def head() -> Iterator[Cluster]:
    """A head of one CPU on this machine, and this process connected to it."""
    settings = {"num_cpus": 1, "resources": {"driver": 1}, "include_dashboard": False, "object_store_memory": STORE}
    cluster = Cluster(initialize_head=True, head_node_args=settings)
    connection = connect(cluster.address)
    try:
        yield cluster
    finally:
        disconnect(connection)
        cluster.shutdown()


def grow(folder: Path) -> None:
    """Two nodes join, one after the other, once the run has said that it waits."""
    with head() as cluster:
        told: list[str] = []

        def follow(status: dict[str, Any]) -> None:
            if status.get("phase") == "waiting":
                told.append(status["text"])
                if len(told) < 3:
                    cluster.add_node(num_cpus=1, object_store_memory=STORE)

        result = drive(ToyRun(str(folder / "count"), steps=3), WANTED, follow, reserve_timeout=1.0)
        assert result["count"] == 3 and told[0] == MISSING, (result, told)
        assert told[1] == MISSING.replace("1 there", "2 there"), told


def interrupt(folder: Path) -> None:
    """Ctrl-C ends the waiting, and nothing is asked of the cluster any more."""
    with head():

        def follow(status: dict[str, Any]) -> None:
            threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()

        try:
            drive(ToyRun(str(folder / "count"), steps=3), WANTED, follow)
        except KeyboardInterrupt:
            states = {group["state"] for group in placement_group_table().values()}
            assert states == {"REMOVED"} and ray.available_resources()["CPU"] == 1, states
        else:
            raise AssertionError("nobody interrupted it")


if __name__ == "__main__":
    os.environ[LIMIT] = '{"CPU": 3}'
    {"grow": grow, "interrupt": interrupt}[sys.argv[1]](Path(sys.argv[2]))
    print("done")
