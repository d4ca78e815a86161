"""A whole run on Ray: connect, refuse what cannot be had, host the run in a driver actor and follow it."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from ray.util.placement_group import PlacementGroup

from raydd import plan
from raydd.actors.cluster import Cluster, Connection, bundles, connect, describe, disconnect, preflight, release, reserve
from raydd.actors.driver import drive
from raydd.actors.options import WorkerOptions, worker_options
from raydd.actors.services import RayServices
from raydd.config import Config, Execution
from raydd.errors import ResourceError
from raydd.run import Report, run
from raydd.runfolder import RunFolder


@dataclass(frozen=True)
class HostedRun:
    """What the driver actor calls: the run in its folder, with workers in the bundles after its own."""

    config: Config
    execution: Execution
    workers: int
    options: WorkerOptions

    def __call__(self, placement_group: PlacementGroup, should_stop: Callable[[], bool], report: Report, attempt: int) -> dict[str, Any]:
        before = [("driver", f"the driver died; attempt {attempt} carries on from the last checkpoint")] if attempt > 1 else []

        def tell(text: str) -> None:
            report({"phase": "note", "text": text})

        services = RayServices(self.workers, self.options, placement_group, before)
        with _reopened(self.execution.run) if attempt > 1 else RunFolder.open(self.execution.run, tell) as folder:
            return run(folder, self.config, self.execution, services, should_stop, report)


def _reopened(path: str, patience: float = 20.0) -> RunFolder:
    """The folder of a run whose driver has just died; its process may take a moment to let go of the lock."""
    end = time.monotonic() + patience
    while True:
        try:
            return RunFolder.open(path)
        except ResourceError:
            if time.monotonic() > end:
                raise
            time.sleep(0.5)


def run_on_ray(config: Config, execution: Execution, report: Report) -> dict[str, Any]:
    """The run of `execution.run` on Ray; returns the content of its result.json.

    `execution.run` is absolute and reachable from every node. Ctrl-C stops at the next step, see `drive`. Raises
    `ResourceError` before anything starts when the cluster cannot hold it, and the errors of the run.
    """
    with _connected(execution, plan.worker_count(config, execution)) as (cluster, options):
        workers = workers_on(cluster, config, execution, options)
        execution = replace(execution, workers=workers)
        wanted = bundles(workers, options.threads, options.gpus, cluster)
        # Fast machines near each other; but on a cluster a lost node should take one worker, not all.
        strategy = "PACK" if execution.address == "local" else "SPREAD"
        hosted = HostedRun(config, execution, workers, options)
        return drive(hosted, wanted, report, strategy=strategy, stop_timeout=max(120.0, execution.answer_timeout), resume=options.resume)


def workers_on(cluster: Cluster, config: Config, execution: Execution, options: WorkerOptions) -> int:
    """Worker actors K of a run: as asked for, else one for each device of the cluster that is joined, up to one for each candidate."""
    if execution.workers is not None or execution.address == "local":
        return plan.worker_count(config, execution)
    return min(config.selection.candidates, cluster.workers(options.threads, options.gpus))


@contextlib.contextmanager
def ray_services(config: Config, execution: Execution, report: Report = lambda progress: None) -> Iterator[RayServices]:
    """Services on a cluster for the duration, for jobs alone: as many workers as there are devices, unless --workers says.

    A cluster that has to grow for them is waited for; `report` hears of it.
    """
    with _connected(execution, execution.workers or plan.cores()) as (cluster, options):
        # A cluster that was started here has a logical CPU more than there are cores.
        there = max(1, plan.cores() // max(1, options.threads)) if execution.address == "local" else cluster.workers(options.threads, 0)
        workers = execution.workers or (max(1, int(cluster.total("GPU"))) if options.gpus else there)
        wanted = bundles(workers, options.threads, options.gpus, cluster)
        if cluster.growth is None:
            preflight(wanted[1:], cluster)  # jobs alone have no driver
            yield RayServices(workers, options)
            return
        preflight(wanted, cluster)
        group = reserve(wanted, "SPREAD", on_wait=lambda text: report({"phase": "waiting", "text": text}))
        try:
            yield RayServices(workers, options, group)
        finally:
            release(group)


@contextlib.contextmanager
def _held_interrupts() -> Iterator[None]:
    """Ctrl-C counts once this is over: Ray loses it while it starts."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: asked.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if asked:
        raise KeyboardInterrupt


@contextlib.contextmanager
def _connected(execution: Execution, workers: int) -> Iterator[tuple[Cluster, WorkerOptions]]:
    """A cluster with at least the logical CPUs that so many workers and a driver ask for, when it is started here."""
    connection: Connection | None = None
    try:
        with _held_interrupts():
            connection = connect(execution.address, num_cpus=1 + workers * execution.threads)
        cluster = describe()
        here = torch.cuda.is_available() if execution.address == "local" else cluster.total("GPU") > 0
        gpus = 1.0 if execution.device == "cuda" or (execution.device == "auto" and here) else 0.0
        resume = f"raydd distill --resume {execution.run}" if execution.run else ""
        yield cluster, worker_options(execution, execution.device, gpus, resume)
    finally:
        if connection is not None:
            disconnect(connection)
