"""What a cluster can grow to: the limits of its autoscaler, where it has one.

Ray's own autoscaler tells nobody its limits, so they are read where it reads them itself: in the file that the autoscaler's process on
this machine, the head, was started with (`ray up`). Where there is no such process, as on Kubernetes, RAYDD_CLUSTER_LIMIT says them.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from raydd.actors import _compat
from raydd.errors import ResourceError

Bundle = dict[str, float]
LIMIT = "RAYDD_CLUSTER_LIMIT"
_PROGRAM, _FLAG = "monitor.py", "--autoscaling-config="


@dataclass(frozen=True)
class Growth:
    """The most that a cluster can have, by resource: in all, and on one node."""

    total: Bundle
    node: Bundle


def growth(address: str) -> Growth | None:
    """The limits of the autoscaler of the cluster at `address` (host:port of its head); None where none is known.

    Raises `ResourceError` when RAYDD_CLUSTER_LIMIT is set and is no limit.
    """
    if address.startswith("127.0.0.1:"):  # nobody else reaches it (`raydd.actors.cluster.connect`)
        return None
    if os.environ.get(LIMIT):
        return _stated(os.environ[LIMIT])
    reported = _compat.autoscaler_maximum()
    if reported is not None:
        return Growth(*reported)
    path = _config_file(address)
    return _of_file(path) if path else None


def _stated(text: str) -> Growth:
    """A limit such as {"CPU": 64, "GPU": 8}; nodes of any size within it."""
    try:
        total = {str(name): float(amount) for name, amount in json.loads(text).items()}
    except (ValueError, AttributeError, TypeError) as error:
        text = f'{LIMIT}={text!r} must say what the cluster may grow to, for example {{"CPU": 64, "GPU": 8}}.'
        raise ResourceError(text) from error
    return Growth(total, total)


def _config_file(address: str) -> Path | None:
    """The file that the autoscaler of this cluster was started with, if it runs on this machine."""
    for process in psutil.process_iter():
        try:
            command = process.cmdline()
        except psutil.Error:
            continue
        files = [argument.removeprefix(_FLAG) for argument in command if argument.startswith(_FLAG)]
        if files and f"--gcs-address={address}" in command and any(Path(part).name == _PROGRAM for part in command[:4]):
            return Path(files[0]).expanduser()
    return None


def _of_file(path: Path) -> Growth | None:
    try:
        values = yaml.safe_load(path.read_text())
        return limits(values)
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError):
        return None  # a kind of file that is not known: as without an autoscaler, what is there counts


def limits(values: dict[str, Any]) -> Growth:
    """The limits in the content of a cluster file: of every node type so many as may be, and the head once.

    `max_workers` of the whole cluster bounds the number of workers; the largest ones are counted then.
    """
    head, kinds = values["head_node_type"], values["available_node_types"]
    whole = int(values.get("max_workers", 2))
    nodes = {name: {key: float(amount) for key, amount in kind.get("resources", {}).items()} for name, kind in kinds.items()}
    most = {name: min(whole, int(kind.get("max_workers", whole))) for name, kind in kinds.items() if name != head}
    total = {}
    for resource in {key for node in nodes.values() for key in node}:
        each = sorted((nodes[name].get(resource, 0.0) for name, count in most.items() for _ in range(count)), reverse=True)
        total[resource] = nodes[head].get(resource, 0.0) + sum(each[:whole])
    possible = [nodes[name] for name in nodes if name == head or most[name]]
    return Growth(total, _largest(possible))


def _largest(nodes: Iterable[Bundle]) -> Bundle:
    largest: Bundle = {}
    for node in nodes:
        for name, amount in node.items():
            largest[name] = max(amount, largest.get(name, 0.0))
    return largest
