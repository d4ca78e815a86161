"""What a sweep folder says: the content of sweep.json, and the images of the best run. Nothing of Ray is needed to read it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raydd import artifact
from raydd.artifact import Artifact
from raydd.errors import CheckpointError, ConfigError
from raydd.files import read_json

SWEEP = "sweep.json"
FORMAT = 2
"""Of sweep.json, which `sweeps/sweeping/outcome.py` writes and explains."""


@dataclass(frozen=True)
class SweepData:
    """A sweep as a report shows it.

    path      the sweep folder
    found     the content of sweep.json; its `arms` are in order of their rank
    recipe    the text of best.toml, "" when there is none
    best      the trial of the best arm with the highest accuracy, None when no trial has one
    artifact  that trial's result file, None when it cannot be read
    problems  what could not be read, in sentences
    """

    path: Path
    found: dict[str, Any]
    recipe: str
    best: dict[str, Any] | None
    artifact: Artifact | None
    problems: list[str]

    @property
    def baseline(self) -> dict[str, Any] | None:
        """The arm that the others are compared with."""
        return next((arm for arm in self.found["arms"] if arm["baseline"]), None)

    def place(self, trial: dict[str, Any]) -> Path | None:
        """The run folder of a trial; None when it has none."""
        return None if trial["run"] is None else self.path / trial["run"]


def is_sweep(path: Path | str) -> bool:
    """Whether a folder is a sweep's: it has its sweep.json, or the `runs` and settings of a sweep that has not ended."""
    path = Path(path)
    return (path / SWEEP).exists() or _begun(path)


def read_sweep(path: Path | str) -> SweepData:
    """Read a sweep folder.

    Raises `ConfigError` when it is none, or one that has not ended; `CheckpointError` when sweep.json is damaged or of another format.
    """
    path = Path(path)
    if not (path / SWEEP).exists():
        if _begun(path):
            raise ConfigError([f"{path} is a sweep that has not ended: it has no {SWEEP}. Its script with --resume carries on with it."])
        raise ConfigError([f"{path} is no sweep folder: it has no {SWEEP}."])
    found = read_json(path / SWEEP)
    version = found.get("format") if isinstance(found, dict) else None
    if version != FORMAT:
        told = f"{path / SWEEP}: it has format {version}, this raydd reads {FORMAT}."
        raise CheckpointError(f"{told} Run the sweep's script with --resume: finished trials are not run again, and the file is new.")
    best, problems = _best(found), []
    recipe = path / "best.toml"
    return SweepData(
        path=path,
        found=found,
        recipe=recipe.read_text("utf-8") if recipe.exists() else "",
        best=best,
        artifact=_artifact(path, best, problems),
        problems=problems,
    )


def _begun(path: Path) -> bool:
    return (path / "runs").is_dir() and not (path / "config.json").exists()


def _best(found: dict[str, Any]) -> dict[str, Any] | None:
    if found["best"] is None:
        return None
    own = [trial for trial in found["trials"] if trial["arm"] == found["best"]["arm"] and trial["accuracy_mean"] is not None]
    return max(own, key=lambda trial: trial["accuracy_mean"], default=None)


def _artifact(path: Path, best: dict[str, Any] | None, problems: list[str]) -> Artifact | None:
    if best is None or best["run"] is None or not (file := path / best["run"] / "synthetic.safetensors").exists():
        return None
    try:
        return artifact.read(file)
    except CheckpointError as error:
        problems.append(str(error))
        return None
