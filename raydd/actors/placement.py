"""How an actor asks for its share of the cluster."""

import os
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy


def actor_options(cpus: float, gpus: float, placement_group: PlacementGroup | None, bundle: int) -> dict[str, Any]:
    """Options of an actor in a bundle of a placement group, or anywhere when there is none.

    Ray itself never restarts these actors: the driver does, which is quicker and knows why (`specs/ray.md` section 3).
    """
    options: dict[str, Any] = {"num_cpus": cpus, "num_gpus": gpus, "max_restarts": 0, "max_task_retries": 0}
    if placement_group is not None:
        options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(placement_group, placement_group_bundle_index=bundle)
    return options


def about_this_process() -> dict[str, Any]:
    """Who an actor is, for fault texts: process id and host address."""
    return {"pid": os.getpid(), "host": ray.util.get_node_ip_address()}
