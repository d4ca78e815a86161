"""Training networks from scratch on a small set and testing them on real images."""

from raydd.evaluate.protocols import Protocol, Settings, protocol, protocol_names, rate, register_protocol, resolve, schedule
from raydd.evaluate.scratch import Evaluation, evaluate, settings_for

__all__ = [
    "Evaluation",
    "Protocol",
    "Settings",
    "evaluate",
    "protocol",
    "protocol_names",
    "rate",
    "register_protocol",
    "resolve",
    "schedule",
    "settings_for",
]
