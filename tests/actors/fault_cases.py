"""The fault matrix: runs on a cluster of several nodes on this machine, each struck once at one exact place.

python -m tests.actors.fault_cases STORE FOLDER serves cases by name (`tests.actors.case_process`). The cluster is shared by all: a head,
on which nothing runs, and three nodes of one CPU, for the driver and two workers.
"""

import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import ray
import torch
from ray.cluster_utils import Cluster

from raydd.actors.cluster import connect, disconnect
from raydd.actors.driver import drive
from raydd.actors.hosting import HostedRun
from raydd.actors.options import WorkerOptions
from raydd.config import Config
from raydd.errors import ResourceError
from raydd.files import read_json
from raydd.runfolder import RunFolder
from tests.actors.case_process import serve
from tests.actors.haunting import HauntedRun, Place
from tests.runs import CONFIG, assert_equal_runs, but, execution, faults, go, with_networks

# A killed node is noticed after about a second and a half, one that does not answer after some six.
ALERT = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 3,
    "health_check_timeout_ms": 1500,
}
NODES, NODE = 3, {"num_cpus": 1, "num_gpus": 1, "object_store_memory": 80 * 2**20}
STAGED = but(stages__count=2, stages__transition_epochs=2, steps=3)
EVALUATED = but(evaluation__every=4)
FROZEN_SECONDS = 9.0


class Nodes:
    """The cluster, and what can happen to a node of it."""

    def __init__(self) -> None:
        # Without what only a cluster that grows, or somebody who looks at it, needs. Above all the agents of the dashboard take their time
        # to start, and Ray has a node die whose agents are not there after fifteen seconds.
        ray._private.utils.get_dashboard_dependency_error = lambda: ImportError("not wanted")
        # Nodes are added in a thread, which may not handle signals; and it has to stay, since a node dies with the thread that made it.
        ray._private.utils.set_sigterm_handler = lambda handler: None
        self._hands = ThreadPoolExecutor(1)
        plain = {"include_dashboard": False, "include_log_monitor": False, "no_monitor": True}
        head = {"num_cpus": 0, "object_store_memory": NODE["object_store_memory"], "_system_config": ALERT, **plain}
        self.cluster = self._hands.submit(_persistently, lambda: Cluster(initialize_head=True, head_node_args=head)).result()
        self.complete().result()

    @contextmanager
    def connected(self) -> Iterator[None]:
        """This process is connected to the head, and at the end the cluster is ended."""
        connection = connect(self.cluster.address)
        try:
            yield
        finally:
            disconnect(connection)
            self.cluster.shutdown()

    def complete(self) -> Future:
        """As many nodes as there were at first, also where one has died by itself; soon."""
        return self._hands.submit(self._complete)

    def _complete(self) -> None:
        for node in [node for node in self.cluster.worker_nodes if node.all_processes["raylet"][0].process.poll() is not None]:
            self.cluster.remove_node(node, allow_graceful=False)
        while len(self.cluster.worker_nodes) < NODES:
            _persistently(lambda: self.cluster.add_node(**NODE))

    def lose_node_of(self, pid: int) -> None:
        """Kill the node on which this process lives, without warning."""
        raylet = psutil.Process(pid).ppid()
        (node,) = [node for node in self.cluster.worker_nodes if node.all_processes["raylet"][0].process.pid == raylet]
        self.cluster.remove_node(node, allow_graceful=False)

    def actors(self, classes: tuple[str, ...]) -> list[psutil.Process]:
        """The processes of actors of these classes (as Ray names them, such as ray::Worker), on all nodes."""
        raylets = [psutil.Process(node.all_processes["raylet"][0].process.pid) for node in self.cluster.worker_nodes]
        found = []
        for process in (child for raylet in raylets for child in raylet.children()):
            with suppress(psutil.Error):
                if process.cmdline() and process.cmdline()[0].split(".")[0] in classes:
                    found.append(process)
        return found


def _persistently(start: Callable[[], Any]) -> Any:
    """Start a node. Ray gives its agents fifteen seconds, which may be too few on a busy machine."""
    for _ in range(5):
        with suppress(Exception):
            return start()
    return start()


# What is done to the process that got to the place.
Strike = Callable[[Nodes, int, Place], None]


def node_lost(nodes: Nodes, pid: int, place: Place) -> None:
    process = psutil.Process(pid)
    nodes.lose_node_of(pid)
    psutil.wait_procs([process], timeout=60)
    if place.part == "between":  # it is the driver that waits there
        place.release()


def node_lost_and_replaced(nodes: Nodes, pid: int, place: Place) -> None:
    node_lost(nodes, pid, place)
    nodes.complete().result()


def slow(nodes: Nodes, pid: int, place: Place) -> None:
    """The process does not get on for three seconds."""
    os.kill(pid, signal.SIGSTOP)
    time.sleep(3.0)
    place.release()
    os.kill(pid, signal.SIGCONT)


def silent(nodes: Nodes, pid: int, place: Place) -> None:
    """The process never gets on."""
    os.kill(pid, signal.SIGSTOP)


def node_frozen(nodes: Nodes, pid: int, place: Place) -> None:
    """The whole node answers nothing, until after the cluster has taken it for dead; then it wakes."""
    raylet = psutil.Process(pid).parent()
    frozen = [raylet, *raylet.children(recursive=True)]
    for process in frozen:
        process.suspend()
    time.sleep(FROZEN_SECONDS)
    for process in frozen:
        if process.is_running():
            process.resume()
    _, alive = psutil.wait_procs(frozen, timeout=60)
    assert not alive, f"the node that was taken for dead lives on: {alive}"
    (node,) = [node for node in nodes.cluster.worker_nodes if node.all_processes["raylet"][0].process.pid == raylet.pid]
    nodes.cluster.remove_node(node, allow_graceful=False)


@dataclass(frozen=True)
class Case:
    """A place, what happens there, and what is expected of it.

    kinds    the faults that the run must tell of, in any order
    company  wait in the run until every worker is there again
    store    the experts: `shared`, a `copy` that nobody else adds to, or an `empty` store
    full     what finds the disk full: the `run` folder or the `store`
    """

    part: str
    strike: Strike | None
    kinds: frozenset[str] = frozenset({"death"})
    config: Config = CONFIG
    options: WorkerOptions = field(default_factory=lambda: WorkerOptions(pause=0.2))
    company: bool = False
    store: str = "shared"
    full: str = ""


# Evaluations run beside the driver, but on GPUs beside the first worker.
BESIDE_A_WORKER = WorkerOptions(pause=0.2, gpus=1.0)
CASES = {
    "score": Case("score", node_lost),
    "update": Case("update", node_lost),
    "between": Case("between", node_lost),
    "advance": Case("advance", node_lost, config=with_networks("dreamplus", steps=7, dc__outer=3)),
    "experts": Case("experts", node_lost, store="empty"),
    "transition": Case("transition", node_lost, config=STAGED, store="copy"),
    "evaluation": Case("evaluation", node_lost_and_replaced, config=EVALUATED, options=BESIDE_A_WORKER),
    "driver": Case("driver", node_lost_and_replaced, frozenset({"driver"})),
    "driver-evaluating": Case("evaluation", node_lost_and_replaced, frozenset({"driver"}), EVALUATED),
    "late": Case("score", node_lost_and_replaced, frozenset({"death", "respawn"}), company=True),
    "slow": Case("score", slow, frozenset()),
    "silent": Case("score", silent, frozenset({"silence"}), options=WorkerOptions(pause=0.2, answer_timeout=3.0)),
    "frozen": Case("score", node_frozen),
    "run-disk": Case("", None, frozenset(), full="run"),
    "store-disk": Case("", None, frozenset(), store="empty", full="store"),
}
DEFAULTS = WorkerOptions(pause=0.2)


class Matrix:
    """All cases on one cluster, and the undisturbed runs that theirs have to equal."""

    def __init__(self, store: Path, folder: Path):
        self.store, self.folder, self.count = store, folder, 0
        self.nodes, self.undisturbed = Nodes(), dict[str, Path]()

    def expected(self, config: Config) -> Path:
        name = repr(config)
        if name not in self.undisturbed:
            path = self.folder / f"undisturbed-{len(self.undisturbed)}"
            go(path, self._copied(path.with_name(f"{path.name}-store")), config)
            self.undisturbed[name] = path
        return self.undisturbed[name]

    def _copied(self, path: Path) -> Path:
        return Path(shutil.copytree(self.store, path))

    def go(self, name: str) -> dict[str, Any]:
        """Run a case; {"seconds": from the strike to the answer that it had kept back, "total": of the whole run, "faults": kinds}."""
        case, self.count = CASES[name], self.count + 1
        expected = self.expected(case.config)
        self.nodes.complete().result()
        folder = self.folder / f"{self.count}-{name}"
        place, path = Place(folder / "place", case.part), folder / "run"
        place.arm()
        store = {"shared": self.store, "empty": folder / "store"}.get(case.store) or self._copied(folder / "store")
        started = time.monotonic()
        with self._striking(case, place) as struck:
            said = self._refused(case, path, store, place) if case.full else self._run(case, path, store, place)
        total = time.monotonic() - started
        assert_equal_runs(path, expected)
        kinds = {fault["kind"] for fault in faults(path)}
        assert case.kinds <= kinds and (case.kinds or not kinds), (sorted(kinds), faults(path))
        answered = place.folder / "answered"
        seconds = answered.stat().st_mtime - struck[0] if struck and answered.exists() else None
        assert seconds is None or seconds > 0
        return {"seconds": seconds, "total": total, "faults": sorted(kinds), "said": said}

    def _run(self, case: Case, path: Path, store: Path, place: Place, full: str = "") -> str:
        how = execution(path, store, workers=2)
        if not (path / "config.json").exists():
            RunFolder.create(path, case.config, how).close()
        share = {"GPU": case.options.gpus} if case.options.gpus else {}
        bundles = [{"CPU": 1.0}, *({"CPU": 1.0, **share} for _ in range(2))]
        hosted = HostedRun(case.config, how, 2, case.options)
        result = drive(HauntedRun(hosted, place, case.company, full), bundles, strategy="SPREAD")
        assert result["complete"], result
        return ""

    def _refused(self, case: Case, path: Path, store: Path, place: Place) -> str:
        """A run that stops with an error that tells why, and then is carried on with."""
        try:
            self._run(case, path, store, place, case.full)
        except ResourceError as error:
            said = str(error)
        else:
            raise AssertionError("the full disk was not noticed")
        assert "No space left for " in said or "No space left on device" in said, said
        assert not read_json(path / "result.json")["complete"] if (path / "result.json").exists() else True
        self._run(case, path, store, place)
        return said

    @contextmanager
    def _striking(self, case: Case, place: Place) -> Iterator[list[float]]:
        """Strike in a thread once somebody is at the place; yields the time at which that was."""
        struck: list[float] = []
        failed: list[BaseException] = []

        def watch() -> None:
            while place.struck is None:
                if over.wait(0.01):
                    return
            struck.append(time.time())
            try:
                case.strike(self.nodes, place.struck["pid"], place)
            except BaseException as error:
                traceback.print_exc()
                failed.append(error)

        over = threading.Event()
        thread = threading.Thread(target=watch, daemon=True)
        if case.strike is not None:
            thread.start()
        try:
            yield struck
        finally:
            over.set()
            if case.strike is not None:
                thread.join(120)
        if failed:
            raise failed[0]
        assert struck or case.strike is None, "nobody was struck"


if __name__ == "__main__":
    torch.set_num_threads(1)
    matrix = Matrix(*map(Path, sys.argv[1:]))
    with matrix.nodes.connected():
        serve(matrix.go)
