"""Starting or joining a Ray cluster, and asking it for room: what can never be had is refused before anything starts."""

import os
import secrets
import subprocess
import sys
import warnings
from dataclasses import dataclass

import psutil
import ray
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group

from raydd import plan
from raydd.actors import _compat
from raydd.errors import ResourceError

Bundle = dict[str, float]
GIBIBYTE = 2**30
# Telemetry and the re-creation of uv environments in every worker are off; actors without a GPU see what the machine has.
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


@dataclass(frozen=True)
class Connection:
    """A connection to a cluster. `own` is whether it was made here, `dashboard` the address to open ("" for none) and
    `token` what the dashboard asks for ("" for nothing)."""

    own: bool
    address: str
    dashboard: str = ""
    token: str = ""
    variables: tuple[str, ...] = ()
    """Environment variables that were set for it."""


@dataclass(frozen=True)
class Cluster:
    """Resources of every living node, and the most that an autoscaler may add up to, if there is one."""

    nodes: tuple[Bundle, ...]
    maximum: Bundle | None = None

    def total(self, resource: str) -> float:
        """Amount of a resource over all nodes, or the autoscaler's limit."""
        here = sum(node.get(resource, 0.0) for node in self.nodes)
        return max(here, self.maximum.get(resource, 0.0)) if self.maximum else here

    def largest(self, resource: str) -> float:
        """Amount on the node that has most of it; with an autoscaler its limit, since it may start larger nodes."""
        return self.total(resource) if self.maximum else max((node.get(resource, 0.0) for node in self.nodes), default=0.0)


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
    Only this process tree can use it: it gets a secret token of its own, unless RAY_AUTH_MODE says otherwise. Where Ray runs
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
        context = _init(
            address="local",
            num_cpus=max(plan.cores(), num_cpus),
            num_gpus=num_gpus,
            include_dashboard=dashboard,
            object_store_memory=memory,
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
    return Cluster(nodes, _compat.autoscaler_maximum())


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
        grows = " even when it has grown to its limit" if cluster.maximum else ""
        if total > there + 1e-6:
            driver = f"{wanted[0][resource]:g} for the driver, " if resource in wanted[0] else ""
            raise ResourceError(
                f"--workers={workers} asks for {total:g} {_plural(resource)} ({driver}{workers} x {each:g} for the workers); the cluster "
                f"has {there:g}{grows}. Lower --workers{' or --threads' if resource == 'CPU' else ''}, or add nodes."
            )
        if each > largest + 1e-6:
            raise ResourceError(
                f"Each worker asks for {each:g} {_plural(resource)} on one node; the largest node has {largest:g}. "
                f"Lower {flags.get(resource, resource)}, or add a larger node."
            )


def reserve(wanted: list[Bundle], strategy: str = "PACK", timeout: float = 60.0) -> PlacementGroup:
    """A placement group of these bundles: PACK keeps them near each other, SPREAD apart, so that one lost node costs least.

    Raises `ResourceError` with the bundles, what the cluster has and has free, and Ray's state after `timeout` seconds.
    """
    group = placement_group(wanted, strategy=strategy)
    try:
        if group.wait(timeout):
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
