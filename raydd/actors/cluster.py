"""Starting or joining a Ray cluster, and asking it for room: what can never be had is refused before anything starts."""

import os
import secrets
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import psutil
import ray
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group

from raydd import plan
from raydd.actors import _compat
from raydd.actors.growth import Bundle, Growth, growth
from raydd.errors import ResourceError

GIBIBYTE = 2**30
_POLL_SECONDS, _REMIND_SECONDS = 1.0, 60.0
# Telemetry and the re-creation of uv environments in every worker are off; actors without a GPU see what the machine has.
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


@dataclass(frozen=True)
class Connection:
    """A connection to a cluster. `own` is whether it was made here, `dashboard` the address to open ("" for none) and
    `token` what the dashboard asks for ("" for nothing)."""

    own: bool
    address: str
    dashboard: str = ""
    token: str = field(default="", repr=False)
    variables: tuple[str, ...] = ()
    """Environment variables that were set for it."""


@dataclass(frozen=True)
class Cluster:
    """Resources of every living node, and what an autoscaler may make of them, if there is one."""

    nodes: tuple[Bundle, ...]
    growth: Growth | None = None

    def total(self, resource: str) -> float:
        """Amount of a resource over all nodes, or the autoscaler's limit."""
        here = self.now(resource)
        return max(here, self.growth.total.get(resource, 0.0)) if self.growth else here

    def now(self, resource: str) -> float:
        """Amount of a resource over the nodes that live."""
        return sum(node.get(resource, 0.0) for node in self.nodes)

    def largest(self, resource: str) -> float:
        """Amount on the node that has most of it, or could be started with it."""
        here = max((node.get(resource, 0.0) for node in self.nodes), default=0.0)
        return max(here, self.growth.node.get(resource, 0.0)) if self.growth else here

    def workers(self, threads: int, gpus: float) -> int:
        """How many workers of so many CPUs and GPUs there is room for beside a driver, counting what may be started; at least 1."""
        by_cpu = (self.total("CPU") - 1) // max(1, threads)
        return max(1, int(min(by_cpu, self.total("GPU") // gpus) if gpus else by_cpu))


def connect(
    address: str = "local",
    num_cpus: int = 1,
    num_gpus: int | None = None,
    dashboard: bool = False,
    object_store_memory: int | None = None,
    timeout: float = 15.0,
) -> Connection:
    """Start a cluster on this machine (`local`), or join the one at `address` (`auto` or host:port).

    A local cluster has max(cores, `num_cpus`) logical CPUs and the GPUs that are there; `num_gpus` replaces their number.
    Only this process tree can use it: it listens on the loopback alone, and gets a secret token of its own, unless RAY_AUTH_MODE says
    otherwise. Where Ray runs
    already in this process, that cluster is used. `timeout` is how many seconds another cluster has to answer. Raises
    `ResourceError`.
    """
    if ray.is_initialized():
        return Connection(own=False, address=ray.get_runtime_context().gcs_address)
    if address == "local":
        return _start(num_cpus, num_gpus, dashboard, object_store_memory)
    return _join(address, timeout)


def disconnect(connection: Connection) -> None:
    """Leave the cluster, and end it if it was started here. Nothing happens to one that was there before `connect`."""
    if not connection.own:
        return
    ray.shutdown()
    for name in connection.variables:
        os.environ.pop(name, None)
    if connection.token:
        _compat.refresh_authentication()


def _start(num_cpus: int, num_gpus: int | None, dashboard: bool, object_store_memory: int | None) -> Connection:
    wanted, token = dict(_QUIET), ""
    if not any(name in os.environ for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")):
        token = secrets.token_hex(32)
        wanted |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    variables = _set_missing(wanted)
    if token:
        _compat.refresh_authentication()
    memory = object_store_memory or min(GIBIBYTE, int(0.3 * psutil.virtual_memory().total))
    try:
        with _compat.on_loopback() as alone:
            context = _init(
                address="local",
                num_cpus=max(plan.cores(), num_cpus),
                num_gpus=num_gpus,
                include_dashboard=dashboard,
                object_store_memory=memory,
                **alone,
            )
    except Exception as error:
        disconnect(Connection(own=True, address="", token=token, variables=variables))
        raise ResourceError(
            f"--address=local: no Ray cluster could be started here ({_first_line(error)}). Use --workers=0, which needs none, or "
            "free memory and processes."
        ) from error
    return Connection(True, context.address_info["gcs_address"], _url(context) if dashboard else "", token, variables)


def _join(address: str, timeout: float) -> Connection:
    variables = _set_missing(_QUIET)
    try:
        found = _answering(address, timeout)
        context = _init(address=found)
    except ResourceError:
        raise
    except Exception as error:
        raise ResourceError(
            f"--address={address}: the Ray cluster there cannot be joined from this machine ({_first_line(error)}). Start the "
            "command on one of its nodes, with the same versions of Ray and Python, or submit it with `ray job submit`."
        ) from error
    return Connection(True, found, _url(context), "", variables)


def _init(**arguments: object) -> ray.runtime_context.RuntimeContext:
    _compat.messages_to_log()
    with warnings.catch_warnings():
        # What Ray plans to change in later versions is no concern of the user of a command.
        warnings.simplefilter("ignore", FutureWarning)
        return ray.init(log_to_driver=False, logging_level="ERROR", **arguments)


def _answering(address: str, timeout: float) -> str:
    """host:port of the cluster at `address`, once its head has answered."""
    advice = "Give host:port of a running head (`ray start --head` prints it), or --address=local to start a cluster here."
    if "://" in address:
        raise ResourceError(f"--address={address}: Ray Client is not supported. {advice}")
    try:
        found = _compat.resolve_address(address)
    except (ValueError, OSError) as error:
        raise ResourceError(f"--address={address} is no address ({_first_line(error)}). {advice}") from error
    if found is None:
        raise ResourceError(f"--address={address}: no Ray cluster runs on this machine. {advice}")
    try:
        probe = subprocess.run([sys.executable, "-c", _compat.PROBE, found], capture_output=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired as error:
        raise ResourceError(f"--address={address}: no Ray cluster answered at {found} within {timeout:g} s. {advice}") from error
    if probe.returncode:
        told = probe.stderr.decode(errors="replace").strip().splitlines() or [""]
        raise ResourceError(f"--address={address}: no usable Ray cluster at {found} ({told[-1][:300]}). {advice}")
    return found


def _set_missing(values: dict[str, str]) -> tuple[str, ...]:
    missing = tuple(name for name in values if name not in os.environ)
    os.environ.update({name: values[name] for name in missing})
    return missing


def _url(context: object) -> str:
    url = getattr(context, "dashboard_url", "") or ""
    return f"http://{url}" if url else ""


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


def describe() -> Cluster:
    """The cluster that this process is connected to."""
    nodes = tuple(dict(node["Resources"]) for node in ray.nodes() if node["Alive"])
    return Cluster(nodes, growth(ray.get_runtime_context().gcs_address))


def bundles(workers: int, threads: int, gpus: float, cluster: Cluster) -> list[Bundle]:
    """One bundle of one CPU for the driver, then one of `threads` CPUs and `gpus` GPUs for each worker.

    Where nodes offer the custom resource `driver` (see cluster.yaml: nodes that are not taken back), the driver goes there.
    """
    driver = {"CPU": 1.0} | ({"driver": 0.01} if cluster.total("driver") else {})
    worker = {name: float(amount) for name, amount in (("CPU", threads), ("GPU", gpus)) if amount}
    return [driver, *(dict(worker) for _ in range(workers))]


def preflight(wanted: list[Bundle], cluster: Cluster) -> None:
    """Refuse what the cluster can never give: a bundle larger than every node, or more in all than there is.

    `wanted` is the driver's bundle and then the workers'. Raises `ResourceError` naming both numbers.
    """
    workers = len(wanted) - 1
    flags = {"CPU": "--threads", "GPU": "the GPU share of a worker"}
    for resource in dict.fromkeys(name for bundle in wanted for name in bundle):
        each, largest = wanted[-1].get(resource, 0.0), cluster.largest(resource)
        total, there = sum(bundle.get(resource, 0.0) for bundle in wanted), cluster.total(resource)
        grows = " even when it has grown to its limit" if cluster.growth else ""
        if total > there + 1e-6:
            driver = f"{wanted[0][resource]:g} for the driver, " if resource in wanted[0] else ""
            raise ResourceError(
                f"--workers={workers} asks for {total:g} {_plural(resource)} ({driver}{workers} x {each:g} for the workers); the cluster "
                f"has {there:g}{grows}. Lower --workers{' or --threads' if resource == 'CPU' else ''}, or add nodes."
            )
        if each > largest + 1e-6:
            has = "that can be started has" if cluster.growth else "has"
            raise ResourceError(
                f"Each worker asks for {each:g} {_plural(resource)} on one node; the largest node {has} {largest:g}. "
                f"Lower {flags.get(resource, resource)}, or add a larger node."
            )


def reserve(
    wanted: list[Bundle], strategy: str = "PACK", timeout: float = 60.0, on_wait: Callable[[str], None] = lambda text: None
) -> PlacementGroup:
    """A placement group of these bundles: PACK keeps them near each other, SPREAD apart, so that one lost node costs least.

    Raises `ResourceError` with the bundles, what the cluster has and has free, and Ray's state after `timeout` seconds. A cluster that
    can grow is waited for without end: the group is what its autoscaler starts nodes for. `on_wait` hears what is missing, when that
    changes and once a minute.
    """
    group = placement_group(wanted, strategy=strategy)
    try:
        started, told, told_at = time.monotonic(), "", 0.0
        while not group.wait(_POLL_SECONDS if timeout > _POLL_SECONDS else timeout):
            cluster, now = describe(), time.monotonic()
            if cluster.growth is None and now - started >= timeout:
                break
            text = _missing(wanted, cluster) if cluster.growth else ""
            if text and (text != told or now - told_at >= _REMIND_SECONDS):
                told, told_at = text, now
                on_wait(text)
        else:
            return group
        state = placement_group_table(group)["stats"]["scheduling_state"]
    except BaseException:
        remove_placement_group(group)
        raise
    remove_placement_group(group)
    raise ResourceError(
        f"No room for --workers={len(wanted) - 1} within {timeout:g} s: asked for {_shown(wanted)}; the cluster has "
        f"{_amounts(ray.cluster_resources())}, of which {_amounts(ray.available_resources())} are free (Ray says {state}). Wait for other "
        "work to end, lower --workers, or add nodes."
    )


def _missing(wanted: list[Bundle], cluster: Cluster) -> str:
    """What a cluster that can grow has to have and has not, or who has it."""
    free = ray.available_resources()
    parts = []
    for resource in dict.fromkeys(name for bundle in wanted for name in bundle):
        total = sum(bundle.get(resource, 0.0) for bundle in wanted)
        there, may = cluster.now(resource), cluster.total(resource)
        if total > there + 1e-6:
            parts.append(f"{total:g} {_plural(resource)}, {there:g} there now, up to {may:g} possible")
        elif total > free.get(resource, 0.0) + 1e-6:
            parts.append(f"{total:g} {_plural(resource)}, {free.get(resource, 0.0):g} of {there:g} free")
    what = "; ".join(parts) or f"nodes with room for {_shown(wanted)}"
    return f"waiting for the cluster to grow: --workers={len(wanted) - 1} asks for {what}"


def release(group: PlacementGroup) -> None:
    """Give the room back; what still runs in it is ended."""
    remove_placement_group(group)


def _plural(resource: str) -> str:
    return {"CPU": "CPUs", "GPU": "GPUs"}.get(resource, f"of the resource {resource!r}")


def _amounts(resources: Bundle) -> str:
    named = [f"{resources.get(name, 0):g} {_plural(name)}" for name in ("CPU", "GPU")]
    return " and ".join(named)


def _shown(wanted: list[Bundle]) -> str:
    kinds: dict[str, int] = {}
    for bundle in wanted:
        text = ", ".join(f"{amount:g} {name}" for name, amount in bundle.items()) or "nothing"
        kinds[text] = kinds.get(text, 0) + 1
    return " + ".join(f"{count} x ({text})" for text, count in kinds.items())
