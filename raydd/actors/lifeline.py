"""Whether the Ray processes behind this one are still there.

Where they are gone, Ray's own calls wait: for ever when the node of this process has died, and when the head has, for a minute, after
which Ray ends the process without a word that a user could read.
"""

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import psutil
import ray

from raydd.errors import WorkerError

# Ray itself ends a process 60 s after it has last heard of the head. A head that this process started does not come back.
_PATIENCE_SECONDS, _OWN_PATIENCE_SECONDS = 30.0, 5.0
_EVERY_SECONDS = 2.0


class ClusterGone(WorkerError):
    """The head of the cluster, or the node of this process, is dead: no call to Ray may be made any more."""


@dataclass
class Lifeline:
    """Looks now and then whether the cluster lives. `how` tells the user how to carry on; `head` and `node` are for tests.

    head  host:port of the head
    node  the id of this process's node
    """

    how: str = "Start it again to resume."
    patience: float = field(default_factory=lambda: _OWN_PATIENCE_SECONDS if _head_is_own() else _PATIENCE_SECONDS)
    every: float = _EVERY_SECONDS
    head: str = field(default_factory=lambda: ray.get_runtime_context().gcs_address)
    node: str = field(default_factory=lambda: ray.get_runtime_context().get_node_id())
    nodes: Callable[[], list[dict]] = ray.nodes
    _looked: float = field(default_factory=time.monotonic)
    _answered: float = field(default_factory=time.monotonic)

    def check(self) -> None:
        """Return at once if it was looked at less than `every` seconds ago. Raises `ClusterGone`: when the head has not answered
        for `patience` seconds, or says that the node of this process is dead.
        """
        if time.monotonic() - self._looked < self.every:
            return
        self._looked = time.monotonic()
        if self._head_answers():
            self._answered = time.monotonic()
            self._refuse_dead_node()
        elif time.monotonic() - self._answered > self.patience:
            raise ClusterGone(
                f"The head of the Ray cluster at {self.head} has not answered for {self.patience:g} s: it was killed, or cannot be "
                f"reached. The run stands at its last checkpoint. Start the cluster again, or use --workers=0. {self.how}"
            )

    def _head_answers(self) -> bool:
        host, _, port = self.head.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=2.0).close()
        except OSError:
            return False
        return True

    def _refuse_dead_node(self) -> None:
        if any(node["NodeID"] == self.node and not node["Alive"] for node in self.nodes()):
            raise ClusterGone(
                "Ray's own process on this machine (the raylet) was killed, perhaps for lack of memory, or the cluster has taken this "
                f"machine for dead. The run stands at its last checkpoint. {self.how}"
            )


def _head_is_own() -> bool:
    return any(child.name() == "gcs_server" for child in psutil.Process().children())
