"""Evaluation protocols by name: how the learning rate runs over the epochs.

A protocol is a function `(epochs, lr) -> phases`; every phase starts with a rebuilt optimiser. Batch size, momentum, weight decay
and augmentation are settings (`EvaluationConfig`) and equal in all of them.
"""

from collections.abc import Callable
from dataclasses import dataclass

from raydd.errors import ConfigError
from raydd.training import Phase, drop_once

Schedule = Callable[[int, float], tuple[Phase, ...]]


@dataclass(frozen=True)
class Protocol:
    """A named schedule; `source` says which reference program it is."""

    name: str
    schedule: Schedule
    source: str


_PROTOCOLS: dict[str, Protocol] = {}


def register_protocol(entry: Protocol) -> Protocol:
    """Add a protocol to the registry."""
    _PROTOCOLS[entry.name] = entry
    return entry


def protocol_names() -> list[str]:
    """Every registered protocol."""
    return sorted(_PROTOCOLS)


def protocol(name: str) -> Protocol:
    """The protocol of this name. Raises `ConfigError` with the names that exist."""
    if name not in _PROTOCOLS:
        raise ConfigError([f"{name!r} is not an evaluation protocol; known: {', '.join(protocol_names())}."])
    return _PROTOCOLS[name]


def schedule(epochs: int, lr: float) -> tuple[Phase, ...]:
    """MTT: epochs + 1 passes, the rate divided by 10 once epoch index epochs // 2 + 1 is done.

    1000 epochs are 502 at lr and 499 at lr / 10 (specs/mtt_pdd.md section 2.4).
    """
    return drop_once(epochs + 1, epochs // 2 + 1, lr)


register_protocol(Protocol("mtt", schedule, "mtt-distillation utils.py:352 evaluate_synset"))
