"""Every private part of Ray that raydd uses, each with a test, so that a new Ray breaks one file and says so."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
import ray._private.ray_constants
import ray._private.worker
from ray._private.services import canonicalize_bootstrap_address
from ray._raylet import AuthenticationTokenLoader, Config

PROBE = "import sys; from ray._raylet import GcsClient; GcsClient(address=sys.argv[1])"
"""A program that succeeds when a Ray head answers at its argument. A process of its own, because Ray itself waits for minutes."""


def refresh_authentication() -> None:
    """Have this process read RAY_AUTH_MODE and RAY_AUTH_TOKEN again, which Ray caches."""
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def resolve_address(address: str) -> str | None:
    """`host:port` of a cluster given as `auto` or as an address; None when `auto` finds none. Raises `ValueError`."""
    return canonicalize_bootstrap_address(address)


@contextmanager
def on_loopback() -> Iterator[dict[str, str]]:
    """Arguments of `ray.init` for a cluster that listens on this machine's loopback only, with Ray's own setting for that.

    Ray listens on the loopback when the address of the node is one, and takes every loopback address for the machine's own unless this
    constant is off, as it is on macOS (`ray._private.services.resolve_ip_for_localhost`).
    """
    constants = ray._private.ray_constants
    before, constants.ENABLE_RAY_CLUSTER = constants.ENABLE_RAY_CLUSTER, False
    try:
        yield {"_node_ip_address": "127.0.0.1"}
    finally:
        constants.ENABLE_RAY_CLUSTER = before


def autoscaler_maximum() -> tuple[dict[str, float], dict[str, float]] | None:
    """What the cluster can grow to, by resource, in all and on one node; None without an autoscaler that says so, as Ray's own does not."""
    total = ray._private.state.state.get_max_resources_from_cluster_config()
    if total is None:
        return None
    groups = [group for group in ray._private.state.state.get_cluster_config().node_group_configs if group.max_count]
    return total, {name: max((float(group.resources.get(name, 0)) for group in groups), default=0.0) for name in total}


def messages_to_log() -> None:
    """Have Ray's messages about dead processes logged under "ray" instead of printed among the output of a command.

    They tell of faults that raydd mends and records itself.
    """

    def log(data: dict[str, Any], ignore_prefix: bool) -> None:
        logging.getLogger("ray").info("\n".join(map(str, data["lines"])))

    ray._private.worker.print_to_stdstream = log
