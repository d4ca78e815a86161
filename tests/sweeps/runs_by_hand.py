"""Run folders as a trial leaves them, written by hand: no network is trained and no Ray is started."""

from pathlib import Path
from typing import Any

from raydd.config import Config, Execution, override
from raydd.files import append_line, atomic_write_json
from raydd.recipes import load_recipe
from raydd.runfolder import RunFolder

CONFIG = override(load_recipe("digits-mtt-ipc1").config, {"steps": 4, "evaluation.every": 2})


def record(step: int, candidates: int = 3, skipped: bool = False, seconds: float = 0.5) -> dict[str, Any]:
    """A line of metrics.jsonl."""
    scored = [{"expert": index, "epoch": 0, "score": 1.0, "probability": 1 / candidates} for index in range(candidates)]
    chosen = None if skipped else 0
    return {
        "step": step, "stage": 1, "attempt": 0, "skipped": skipped, "candidates": scored, "chosen": chosen, "loss": 0.9 - step / 10,
        "grad_norm": 1.0, "entropy": 1.0986, "seconds": {"total": seconds, "evaluation": 7.0},
    }  # fmt: skip


def evaluation(step: int, accuracy: float, kind: str = "synthetic") -> dict[str, Any]:
    """A line of evaluations.jsonl."""
    return {"step": step, "kind": kind, "accuracy_mean": accuracy, "accuracy_std": 0.02, "protocol": {}}


def a_run(
    path: Path, steps: int, accuracies: dict[int, float], complete: bool = True, config: Config = CONFIG, workers: int = 0
) -> RunFolder:
    """A run of so many steps, with the accuracies of its evaluations by step."""
    folder = RunFolder.create(path, config, Execution(run=str(path), workers=workers))
    for step in range(steps):
        folder.append(record(step))
    for step, accuracy in accuracies.items():
        folder.append_evaluation(evaluation(step, accuracy))
    if complete:
        folder.append_evaluation(evaluation(steps, 0.3, "random"))
        final = {"accuracy_mean": accuracies[steps], "accuracy_std": 0.02, "random_accuracy_mean": 0.3}
        folder.write_result({"images_sha256": "abc", "steps": steps, "complete": True, "evaluation": final, "seconds": 9.0})
    folder.close()
    return folder


def resumed(path: Path, times: int) -> None:
    atomic_write_json(path / "environment.json", {"resumed": [{"step": 2}] * times})


def fault(path: Path) -> None:
    append_line(path / "faults.jsonl", {"step": 1, "kind": "worker", "text": "worker 0 died"})
