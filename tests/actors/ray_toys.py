"""Small methods, workers and runs that the tests of the Ray layer send to other processes."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch

from raydd.types import Candidate, Score, SyntheticSet, Update

# The module is no part of an installed package: send its objects whole.
ray.cloudpickle.register_pickle_by_value(__import__(__name__))


def pause_once(flag: str, name: str) -> None:
    """Where a file `<flag>/<name>` exists: take it away, leave the process id in `<flag>/<name>.pid`, and wait to be killed."""
    path = Path(flag) / name
    if not flag or not path.exists():
        return
    path.unlink()
    note = Path(flag) / f"{name}.pid"
    note.with_suffix(".tmp").write_text(str(os.getpid()))
    note.with_suffix(".tmp").rename(note)
    time.sleep(60)


@dataclass(frozen=True)
class ToyMethod:
    """Squared distance between each image times the expert and fixed targets; pauses on demand."""

    flag: str = ""
    error: str = ""

    def _loss(self, images: torch.Tensor, step_size: torch.Tensor, candidate: Candidate, draws: torch.Tensor) -> torch.Tensor:
        return (torch.sin(images * (1 + candidate.expert)) * draws[candidate.index] * step_size + candidate.epoch).square().mean()

    def score(self, synthetic: SyntheticSet, candidate: Candidate, draws: torch.Tensor) -> Score:
        started = time.perf_counter()
        pause_once(self.flag, f"score-{candidate.index}")
        if self.error and candidate.index == 1:
            raise LookupError(self.error)
        with torch.no_grad():
            loss = self._loss(synthetic.images, synthetic.step_size, candidate, draws)
        return Score(float(loss), time.perf_counter() - started)

    def update(self, synthetic: SyntheticSet, candidate: Candidate, draws: torch.Tensor) -> Update:
        started = time.perf_counter()
        pause_once(self.flag, f"update-{candidate.index}")
        images, step_size = (part.detach().clone().requires_grad_() for part in (synthetic.images, synthetic.step_size))
        loss = self._loss(images, step_size, candidate, draws)
        gradients = torch.autograd.grad(loss, (images, step_size))
        return Update(float(loss.detach()), *gradients, time.perf_counter() - started)


@dataclass(frozen=True)
class SpoilingMethod:
    """Writes over the images that it was given, after reading them."""

    def __call__(self) -> "SpoilingMethod":
        return self

    def score(self, synthetic: SyntheticSet, candidate: Candidate, draws: Any) -> Score:
        total = float(synthetic.images.sum())
        synthetic.images.zero_()
        return Score(total, 0.0)

    update = score


@dataclass(frozen=True)
class ToyFactory:
    flag: str = ""
    error: str = ""
    build_error: str = ""
    die: bool = False

    def __call__(self) -> ToyMethod:
        if self.build_error:
            raise LookupError(self.build_error)
        if self.die:
            os._exit(3)
        return ToyMethod(self.flag, self.error)


@dataclass(frozen=True)
class Squares:
    """Makes a worker that squares; pauses once at job 3, fails at negative jobs, dies at job 666."""

    flag: str = ""

    def __call__(self) -> Any:
        def work(job: int) -> tuple[int, int]:
            pause_once(self.flag, f"job-{job}")
            if job < 0:
                raise ArithmeticError(f"job {job} is negative")
            if job == 666:
                os._exit(1)
            return job * job, os.getpid()

        return work


@dataclass(frozen=True)
class ToyRun:
    """A run that counts to `steps` through a file, so that a later attempt carries on; stops, fails or dies on demand."""

    file: str
    steps: int = 10
    endless: bool = False
    deaf: bool = False
    fail: Any = None
    die_at: int = -1
    deaths: int = 1
    freeze: bool = False

    def __call__(self, placement_group: Any, should_stop: Any, report: Any, attempt: int) -> dict[str, Any]:
        path = Path(self.file)
        count = int(path.read_text()) if path.exists() else 0
        start = count
        while (self.endless or count < self.steps) and (self.deaf or not should_stop()):
            count += 1
            # Whole or not at all: the process may be killed here.
            whole = path.with_suffix(".new")
            whole.write_text(str(count))
            whole.replace(path)
            report({"phase": "distill", "done": count, "attempt": attempt, "pid": os.getpid()})
            if self.fail is not None:
                raise self.fail
            if count == self.die_at and attempt <= self.deaths:
                os.kill(os.getpid(), signal.SIGSTOP if self.freeze else signal.SIGKILL)
            time.sleep(0.02)
        bundles = len(placement_group.bundle_specs)
        return {"count": count, "start": start, "attempt": attempt, "bundles": bundles, "pid": os.getpid()}
