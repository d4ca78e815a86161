"""How candidates are scored and the chosen one differentiated: the protocol, and the form that needs no Ray."""

from typing import Any, Protocol

import torch

from raydd.methods.base import Method
from raydd.types import Candidate, Score, SyntheticSet, Update


class Executor(Protocol):
    """Evaluates candidates somewhere. Answers never depend on where, or on what failed on the way.

    `transfer_seconds` is the part of the last call's wall time that was not spent in the method.
    """

    transfer_seconds: float

    def score(self, synthetic: SyntheticSet, candidates: list[Candidate], draws: Any) -> list[Score]:
        """The matching loss of every candidate, in their order."""
        ...

    def update(self, synthetic: SyntheticSet, candidate: Candidate, draws: Any) -> Update:
        """The exact gradient of that same loss for one candidate, on the CPU."""
        ...

    def close(self) -> None:
        """Release workers and memory."""
        ...


class InlineExecutor:
    """One method in this process: no Ray, one candidate after another."""

    transfer_seconds = 0.0

    def __init__(self, method: Method, device: torch.device | str = "cpu"):
        self._method, self._device = method, device

    def score(self, synthetic: SyntheticSet, candidates: list[Candidate], draws: Any) -> list[Score]:
        resident = synthetic.to(self._device)
        return [self._method.score(resident, candidate, draws) for candidate in candidates]

    def update(self, synthetic: SyntheticSet, candidate: Candidate, draws: Any) -> Update:
        return self._method.update(synthetic.to(self._device), candidate, draws)

    def close(self) -> None:
        """Nothing to release."""
