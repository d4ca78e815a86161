"""How actors are started and how much trouble is tolerated."""

import math
from dataclasses import dataclass

from raydd.config import Execution


@dataclass(frozen=True)
class WorkerOptions:
    """Shape of every worker, and the limits after which a run stops.

    threads         CPU threads, and CPUs asked from Ray, of each worker; 0 asks for none
    gpus            GPUs of each worker; a fraction shares one
    device          where workers put the synthetic set: "cpu", "cuda", or "auto": CUDA where the worker finds it
    max_restarts    worker deaths survived; preemptions are counted apart and are free
    answer_timeout  seconds a busy worker may stay silent before it is killed and counted as dead
    start_timeout   seconds a worker may take to start and build its method
    pause           seconds before a worker that died twice in a row is tried again; doubles up to 30; the first try is at once
    resume          the command that carries on from the last checkpoint, for error texts
    """

    threads: int = 1
    gpus: float = 0.0
    device: str = "cpu"
    max_restarts: int = 10
    answer_timeout: float = 600.0
    start_timeout: float = 600.0
    pause: float = 1.0
    resume: str = ""

    @property
    def bundle(self) -> dict[str, float]:
        """What one worker asks from the cluster, in Ray's words."""
        return {name: amount for name, amount in (("CPU", float(self.threads)), ("GPU", float(self.gpus))) if amount}


def worker_options(execution: Execution, device: str, gpus: float, resume: str) -> WorkerOptions:
    """The options that a run's execution settings ask for."""
    return WorkerOptions(
        threads=execution.threads,
        gpus=gpus,
        device=device,
        max_restarts=execution.max_restarts,
        answer_timeout=execution.answer_timeout,
        start_timeout=execution.answer_timeout,
        resume=resume,
    )


def restart_pause(deaths_in_a_row: int, first: float) -> float:
    """Seconds to wait before the next start: 0 after one death, then `first`, 2 x, 4 x, at most 30."""
    return 0.0 if deaths_in_a_row <= 1 else min(30.0, first * math.pow(2.0, min(deaths_in_a_row, 12) - 2))
