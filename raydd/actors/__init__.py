"""Everything that runs on Ray: workers and their pool, independent jobs, the driver actor, the cluster itself.

With `sweeps/` this is the only code that imports ray. Results never depend on it: the same numbers come out of
`raydd.executor.InlineExecutor`. `run_on_ray` and `ray_services` are the two entries for the rest of raydd.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raydd.actors.hosting import ray_services as ray_services
    from raydd.actors.hosting import run_on_ray as run_on_ray


def __getattr__(name: str) -> Any:
    # Worker processes import this package too, and start sooner without what only the client needs.
    if name in ("ray_services", "run_on_ray"):
        from raydd.actors import hosting

        return getattr(hosting, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
