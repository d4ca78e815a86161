"""What a run folder says, as arrays: the only place where the report reads files. Whatever is not there yet is empty or None."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from raydd import artifact
from raydd.artifact import Artifact
from raydd.config import Config, Execution
from raydd.errors import CheckpointError
from raydd.files import check_fields, read_json, read_lines, read_object
from raydd.report.full_data import FullData, full_data
from raydd.runfolder import RunFolder

_STEP = {"step": int, "candidates": list, "seconds": dict}
_EVALUATION = {"step": int, "accuracy_mean": float, "accuracy_std": float}
_FAULT = {"step": int, "kind": str, "text": str}
_RESULT = {"steps": int, "seconds": (int, float), "images_sha256": str}
PARTS = ("score", "prepare", "update", "train", "transfer", "total")


@dataclass(frozen=True)
class Steps:
    """metrics.jsonl as arrays over the n recorded steps; nan stands for null.

    `score`, `probability` are (n, M) in candidate order; `chosen` (n,) is the place of the winner, -1 for a skipped step;
    `expert`, `epoch` int (n, M), -1 beyond a step's candidates; `seconds` maps each of `PARTS` to (n,).
    """

    step: np.ndarray
    loss: np.ndarray
    step_size: np.ndarray
    entropy: np.ndarray
    attempt: np.ndarray
    skipped: np.ndarray
    chosen: np.ndarray
    expert: np.ndarray
    epoch: np.ndarray
    score: np.ndarray
    seconds: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.step)


@dataclass(frozen=True)
class RunData:
    """Everything that a report shows.

    `objective` names the method, or the rule by which `raydd select` chose the images. `evaluations` holds the last record of each
    step, in order of steps; `random` that of random real images; `problems` says what could not be read. Of runs with several stages,
    `curriculum` is what each uses of the real images and `full` what experts on all of these came to, where there are such.
    """

    path: Path
    objective: str
    config: Config
    execution: Execution
    environment: dict[str, Any]
    steps: Steps
    evaluations: list[dict[str, Any]]
    random: dict[str, Any] | None
    faults: list[dict[str, Any]]
    result: dict[str, Any] | None
    artifact: Artifact | None
    problems: list[str]
    curriculum: dict[str, Any] | None
    full: FullData | None


def read_run(path: Path | str) -> RunData:
    """Read a run folder, finished or not. Raises `ConfigError` when it is none, `CheckpointError` when its records are damaged."""
    run = RunFolder.view(path)
    config, execution = run.settings()
    problems: list[str] = []
    evaluations = [check_fields(run.evaluations, record, _EVALUATION) for record in read_lines(run.evaluations)]
    # A resumed run may evaluate a step again; the later record counts.
    synthetic = {record["step"]: record for record in evaluations if record.get("kind", "synthetic") == "synthetic"}
    random = [record for record in evaluations if record.get("kind") == "random"]
    environment, curriculum = run.path / "environment.json", run.path / "curriculum.json"
    found, staged = _artifact(run, problems), config.stages.count > 1
    return RunData(
        path=run.path,
        objective=read_json(selected)["method"] if (selected := run.path / "selected.json").exists() else config.method,
        config=config,
        execution=execution,
        environment=_environment(environment) if environment.exists() else {},
        steps=steps_of([_step(run.metrics, record) for record in read_lines(run.metrics)]),
        evaluations=[synthetic[step] for step in sorted(synthetic)],
        random=random[-1] if random else None,
        faults=[check_fields(run.faults, record, _FAULT) for record in read_lines(run.faults)],
        result=check_fields(run.result, read_object(run.result), _RESULT) if run.result.exists() else None,
        artifact=found,
        problems=problems,
        curriculum=read_json(curriculum) if staged and curriculum.exists() else None,
        full=full_data(config, execution, found) if staged and found is not None else None,
    )


def _environment(path: Path) -> dict[str, Any]:
    found = read_object(path)
    check_fields(path, {"resumed": [], "versions": {}, **found}, {"resumed": list, "versions": dict})
    for entry in found.get("resumed", []):
        check_fields(path, {"entry": entry}, {"entry": dict})
    return found


def _step(path: Path, record: dict[str, Any]) -> dict[str, Any]:
    check_fields(path, {"seconds": {}, **record}, _STEP)
    for candidate in record["candidates"]:
        check_fields(path, {"candidate": candidate}, {"candidate": dict})
    return record


def steps_of(records: list[dict[str, Any]]) -> Steps:
    """Records of metrics.jsonl as arrays; records without a field count as null there."""
    count = len(records)
    most = max((len(record["candidates"]) for record in records), default=0)

    def numbers(name: str) -> np.ndarray:
        return np.array([_number(record.get(name)) for record in records])

    def table(name: str, fill: float, kind: type) -> np.ndarray:
        values = np.full((count, most), fill, dtype=kind)
        for row, record in enumerate(records):
            for place, candidate in enumerate(record["candidates"]):
                value = candidate.get(name)
                values[row, place] = fill if value is None else value
        return values

    return Steps(
        step=np.array([record["step"] for record in records], dtype=np.int64),
        loss=numbers("loss"),
        step_size=numbers("step_size"),
        entropy=numbers("entropy"),
        attempt=np.array([record.get("attempt", 0) for record in records], dtype=np.int64),
        skipped=np.array([bool(record.get("skipped")) for record in records], dtype=bool),
        chosen=np.array([-1 if record.get("chosen") is None else record["chosen"] for record in records], dtype=np.int64),
        expert=table("expert", -1, np.int64),
        epoch=table("epoch", -1, np.int64),
        score=table("score", np.nan, np.float64),
        seconds={part: np.array([float(record.get("seconds", {}).get(part) or 0.0) for record in records]) for part in PARTS},
    )


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _artifact(run: RunFolder, problems: list[str]) -> Artifact | None:
    if not run.synthetic.exists():
        return None
    try:
        return artifact.read(run.synthetic)
    except CheckpointError as error:
        # The rest of the report is still worth having; it names the damaged file at its head.
        problems.append(str(error))
        return None
