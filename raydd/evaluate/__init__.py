"""Training networks from scratch on a small set and testing them on real images."""

from raydd.evaluate.protocols import Protocol, protocol, protocol_names, register_protocol, schedule
from raydd.evaluate.scratch import Evaluation, evaluate

__all__ = [
    "Evaluation",
    "Protocol",
    "evaluate",
    "protocol",
    "protocol_names",
    "register_protocol",
    "schedule",
]
