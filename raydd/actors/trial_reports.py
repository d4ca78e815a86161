"""What a trial tells Tune: every n steps, at every evaluation, and once at the end.

    step, timesteps_total  steps done; progress: 0..100, how much of the run lay behind the last evaluation
    stage, loss, grad_norm, entropy (of the candidates' chances, in nats), step_seconds (mean since the last report)
    accuracy, accuracy_std (over networks), best_accuracy (so far), evaluated_step: nan and 0 before the first evaluation
    device_seconds  what the steps so far cost: their seconds times the workers, evaluations left out
    passes          matching losses computed so far: scored candidates and updates
    run             where the run lies; picture: a PNG file of the synthetic images, when they are new
    finished        whether the run has done everything; failure: why it never will

Sums go over the whole run, also over the part before it was taken up again: they are made from its own records.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from raydd import artifact, pictures
from raydd.config import Config
from raydd.errors import RayddError
from raydd.files import read_lines, write_bytes
from raydd.progressive import total_steps
from raydd.runfolder import RunFolder

PICTURE = "images.png"
_CLASSES, _PER_CLASS, _SCALE = 20, 10, 4


class ObservedFolder(RunFolder):
    """A run folder that remembers the last step's record, `None` before the first."""

    last: dict[str, Any] | None = None

    def append(self, record: dict[str, Any]) -> None:
        """Add the record of a step, as `RunFolder` does."""
        super().append(record)
        self.last = record


@dataclass
class Cost:
    """What steps have cost: seconds of wall time, and matching losses computed."""

    seconds: float = 0.0
    passes: int = 0
    steps: int = 0

    def add(self, record: dict[str, Any]) -> None:
        """Count the record of one step."""
        scored = len(record["candidates"]) if len(record["candidates"]) > 1 else 0
        self.seconds += record["seconds"]["total"]
        self.passes += scored + (record["chosen"] is not None)
        self.steps += 1


@dataclass
class TrialReports:
    """The `report` of a run (`raydd.run`): passes on to Tune what a sweep wants to know.

    `workers` is K, 0 for a run inside the trial; `tell` sends metrics to Tune, and may end the trial by an exception.
    """

    folder: ObservedFolder
    config: Config
    workers: int
    every: int
    tell: Callable[[dict[str, Any]], None]
    _cost: Cost = field(default_factory=Cost)
    _recent: Cost = field(default_factory=Cost)
    _counted: bool = False
    _accuracy: dict[str, Any] = field(default_factory=dict)
    _pictured: int = -1

    def __post_init__(self) -> None:
        """Take up the evaluations that the run has done before."""
        for record in sorted(self.folder.read_evaluations(), key=lambda record: record["step"]):
            self._evaluated(record)

    def __call__(self, status: dict[str, Any]) -> None:
        """Receive the progress of the run."""
        phase = status["phase"]
        if phase == "distill":
            self._count(self.folder.last)
            if status["done"] % self.every == 0:
                self._tell(finished=False)
        elif phase == "evaluation" and self._evaluated(status) and self.folder.last is not None:
            self._tell(finished=False)
        elif phase in ("warning", "note"):
            print(status["text"], flush=True)  # in the trial's log

    def finished_run(self, result: dict[str, Any]) -> None:
        """Take the final evaluation from the content of result.json."""
        found = result.get("evaluation")
        if found:
            self._evaluated({"kind": "synthetic", "step": result["steps"], **found})

    def last(self, finished: bool, failure: str = "", models: dict[str, float] | None = None) -> None:
        """The last report of this trial."""
        self._tell(finished=finished, failure=failure, **{f"accuracy_{name}": value for name, value in (models or {}).items()})

    def _count(self, record: dict[str, Any] | None) -> None:
        """Add the record of a step that was just taken; at first also those of the steps before it."""
        if not self._counted:  # the session has put the records back to its checkpoint, and added one
            before = read_lines(self.folder.metrics)
            for earlier in before[:-1] if record else before:
                self._cost.add(earlier)
            self._counted = True
        if record:
            self._cost.add(record)
            self._recent.add(record)

    def _evaluated(self, record: dict[str, Any]) -> bool:
        """Remember the newest evaluation of the synthetic images; whether this is one."""
        if record["kind"] != "synthetic" or record["step"] < self._accuracy.get("evaluated_step", 0):
            return False
        best = max(record["accuracy_mean"], self._accuracy.get("best_accuracy", 0.0))
        self._accuracy = {
            "accuracy": record["accuracy_mean"],
            "accuracy_std": record["accuracy_std"],
            "best_accuracy": best,
            "evaluated_step": record["step"],
            "progress": 100 * record["step"] // max(1, total_steps(self.config)),
        }
        return True

    def _tell(self, **more: Any) -> None:
        record = self.folder.last or (read_lines(self.folder.metrics) or [{}])[-1]
        step = record.get("step", -1) + (not record.get("skipped", False))
        self._count(None)
        recent, self._recent = self._recent, Cost()
        measured = {name: _number(record.get(name)) for name in ("loss", "grad_norm", "entropy")}
        step_seconds = recent.seconds / recent.steps if recent.steps else math.nan
        nothing = {"accuracy": math.nan, "accuracy_std": math.nan, "best_accuracy": math.nan, "evaluated_step": 0, "progress": 0}
        self.tell(
            {
                "step": step,
                "timesteps_total": step,
                "stage": record.get("stage", 1),
                **measured,
                "step_seconds": step_seconds,
                **nothing,
                **self._accuracy,
                "device_seconds": self._cost.seconds * max(1, self.workers),
                "passes": self._cost.passes,
                "run": self.folder.location,
                **self._picture(),
                **more,
            }
        )

    def _picture(self) -> dict[str, str]:
        """The synthetic images as a file beside the run, when an evaluation has seen new ones."""
        step = self._accuracy.get("evaluated_step", -1)
        if step <= self._pictured or not self.folder.synthetic.exists():
            return {}
        self._pictured = step
        try:
            write_bytes(self.folder.path / PICTURE, picture(artifact.read(self.folder.synthetic)))
        except RayddError as error:
            print(f"no picture: {error}", flush=True)
            return {}
        return {"picture": str(self.folder.path / PICTURE)}


def picture(result: artifact.Artifact) -> bytes:
    """A PNG file: the first images of the first classes, a column for each class, so that one image for each fills a line."""
    labels, classes = result.synthetic.labels, range(min(_CLASSES, len(result.classes)))
    columns = [pictures.pixels(result.pixels(result.synthetic.images[labels == label][:_PER_CLASS])) for label in classes]
    rows = [np.stack([column[place] for column in columns if place < len(column)]) for place in range(max(map(len, columns)))]
    return pictures.png(pictures.grid(rows, _SCALE, _SCALE))


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
