"""How candidates are scored and the chosen one differentiated: the protocol, and the form that needs no Ray."""

from dataclasses import replace
from typing import Any, Protocol

import torch

from raydd.methods.base import Method
from raydd.types import Candidate, Network, Score, SyntheticSet, Update


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

    def begin(self, births: list[int]) -> list[Network]:
        """New networks with these numbers, on the CPU."""
        ...

    def prepare(self, candidates: list[Candidate], draws: Any) -> list[Candidate]:
        """The candidates with what their first update needs in the memory of their networks."""
        ...

    def advance(self, synthetic: SyntheticSet, candidates: list[Candidate], draws: Any) -> list[Network]:
        """The networks of the candidates after the training that follows an update of the images, on the CPU."""
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
        return [self._method.score(resident, candidate.to(self._device), draws) for candidate in candidates]

    def update(self, synthetic: SyntheticSet, candidate: Candidate, draws: Any) -> Update:
        return self._method.update(synthetic.to(self._device), candidate.to(self._device), draws)

    def begin(self, births: list[int]) -> list[Network]:
        return [self._method.begin(born).to("cpu") for born in births]

    def prepare(self, candidates: list[Candidate], draws: Any) -> list[Candidate]:
        networks = [self._method.prepare(candidate.to(self._device).network, draws).to("cpu") for candidate in candidates]
        return [replace(candidate, network=network) for candidate, network in zip(candidates, networks, strict=True)]

    def advance(self, synthetic: SyntheticSet, candidates: list[Candidate], draws: Any) -> list[Network]:
        resident = synthetic.to(self._device)
        return [self._method.advance(resident, candidate.to(self._device).network, draws).to("cpu") for candidate in candidates]

    def close(self) -> None:
        """Nothing to release."""
