"""Checkpoints of a run: atomic, checked, and refused with a reason when they are not this run's.

A checkpoint is one sealed safetensors file `step_00000060.safetensors`, where 60 is the number of steps done. It holds tensors
(images, optimiser state, network slots), a JSON state, and the identity of the run that it belongs to.
"""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from raydd import sealed
from raydd.errors import CheckpointError
from raydd.schema import flatten

KIND = "raydd-checkpoint"
FORMAT = 2
_NAME = re.compile(r"step_(\d{8,})\.safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """A usable checkpoint, and why newer ones were refused (one sentence each, newest first)."""

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]
    path: Path
    warnings: list[str] = field(default_factory=list)


def save(folder: Path | str, step: int, tensors: dict[str, Tensor], state: dict[str, Any], identity: dict[str, Any], keep: int = 3) -> Path:
    """Write the checkpoint after `step` steps, then delete all but the newest `keep` up to this step.

    `tensors` may be on any device; `state` and `identity` are JSON-ready with finite numbers. Raises `ResourceError` naming the
    path and the bytes when it cannot be written; earlier checkpoints are then intact.
    """
    path = Path(folder) / f"step_{step:08d}.safetensors"
    sealed.write(path, KIND, FORMAT, tensors, {"step": step, "state": state, "identity": identity})
    # Later steps are refused files of an abandoned line; they are replaced when the run gets there.
    for old in [file for number, file in _files(folder) if number <= step][max(keep, 1) :]:
        old.unlink(missing_ok=True)
    return path


def load_latest(folder: Path | str, identity: dict[str, Any]) -> Checkpoint:
    """The newest checkpoint that is whole and belongs to `identity`; tensors are on the CPU.

    Raises `CheckpointError` when there is none; it lists each file with the reason for which it was refused.
    """
    folder = Path(folder)
    refused: list[str] = []
    for step, path in _files(folder):
        try:
            tensors, metadata = sealed.read(path, KIND, FORMAT)
            _check(path, step, metadata, identity)
        except CheckpointError as error:
            refused.append(str(error))
            continue
        return Checkpoint(step, tensors, metadata["state"], path, refused)
    if not refused:
        raise CheckpointError(f"{folder}: holds no checkpoint. Start the run anew, under another --run.")
    raise CheckpointError(f"{folder}: no usable checkpoint. Restore one, or start anew under another --run.\n" + "\n".join(refused))


def _files(folder: Path | str) -> list[tuple[int, Path]]:
    """Every checkpoint file of a folder with the step of its name, newest first."""
    files = Path(folder).glob("step_*.safetensors")
    return sorted(((int(match[1]), path) for path in files if (match := _NAME.fullmatch(path.name))), reverse=True)


def _check(path: Path, step: int, metadata: dict[str, Any], identity: dict[str, Any]) -> None:
    if not all(isinstance(metadata.get(name), dict) for name in ("state", "identity")) or "step" not in metadata:
        raise CheckpointError(f"{path}: does not hold the state of a run.")
    if metadata["step"] != step:
        raise CheckpointError(f"{path}: was renamed; it holds step {metadata['step']}.")
    # Through JSON, so that a tuple equals the list that it became in the file.
    ours, theirs = flatten(json.loads(json.dumps(identity))), flatten(metadata["identity"])
    different = [name for name in sorted(ours.keys() | theirs.keys()) if ours.get(name) != theirs.get(name)]
    if different:
        shown = "; ".join(f"{name} is {_brief(theirs.get(name))} there, {_brief(ours.get(name))} here" for name in different[:4])
        raise CheckpointError(f"{path}: belongs to another run ({shown}).")


def _brief(value: Any) -> str:
    text = "absent" if value is None else str(value)
    return text if len(text) <= 24 else f"{text[:21]}..."
