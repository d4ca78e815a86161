"""A state of the loop as the tensors and values of a checkpoint, and back."""

from typing import Any

from torch import Tensor

from raydd.distill import State
from raydd.slots import Pool
from raydd.types import SyntheticSet

_EARLIER = "earlier."


def state_tensors(state: State) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors by name, JSON-ready values); `state_from` is the way back."""
    synthetic = state.synthetic
    tensors, pool = state.pool.state() if state.pool else ({}, None)
    tensors |= {
        **_images(synthetic, ""),
        "step_size": synthetic.step_size,
        "velocity_images": state.velocity_images,
        "velocity_step_size": state.velocity_step_size,
    }
    if state.pending is not None:
        tensors["pending"] = state.pending
    if state.earlier is not None:
        tensors |= _images(state.earlier, _EARLIER)
    values = {"skips": state.skips, "pool": pool, "stage": state.stage, "step_sizes": list(state.step_sizes)}
    return tensors, values


def state_from(tensors: dict[str, Tensor], values: dict[str, Any], step: int) -> State:
    """The state after `step` steps that `state_tensors` gave."""
    step_size = tensors["step_size"]
    return State(
        synthetic=_set(tensors, "", step_size),
        velocity_images=tensors["velocity_images"],
        velocity_step_size=tensors["velocity_step_size"],
        step=step,
        skips=values["skips"],
        pending=tensors.get("pending"),
        pool=Pool.from_state(tensors, values["pool"]) if values["pool"] else None,
        stage=values["stage"],
        # What step size the frozen images were found with is in `step_sizes`; as a set they only ever serve together with the newer ones.
        earlier=_set(tensors, _EARLIER, step_size) if f"{_EARLIER}images" in tensors else None,
        step_sizes=tuple(values["step_sizes"]),
    )


def _images(synthetic: SyntheticSet, prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{name}": getattr(synthetic, name) for name in ("images", "labels", "stages")}


def _set(tensors: dict[str, Tensor], prefix: str, step_size: Tensor) -> SyntheticSet:
    images, labels, stages = (tensors[f"{prefix}{name}"] for name in ("images", "labels", "stages"))
    return SyntheticSet(images, labels, step_size, stages)
