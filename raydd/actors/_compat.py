"""Every private part of Ray that raydd uses, each with a test, so that a new Ray breaks one file and says so."""

import logging
from typing import Any

import ray
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


def autoscaler_maximum() -> dict[str, float] | None:
    """What the cluster can grow to, by resource; None without an autoscaler that says so."""
    return ray._private.state.state.get_max_resources_from_cluster_config()


def messages_to_log() -> None:
    """Have Ray's messages about dead processes logged under "ray" instead of printed among the output of a command.

    They tell of faults that raydd mends and records itself.
    """

    def log(data: dict[str, Any], ignore_prefix: bool) -> None:
        logging.getLogger("ray").info("\n".join(map(str, data["lines"])))

    ray._private.worker.print_to_stdstream = log
