"""Training networks from scratch on a small set and testing them on real images."""

from raydd.evaluate.baseline import REAL_LR, evaluate_random_real, random_real
from raydd.evaluate.protocols import Protocol, protocol, protocol_names, register_protocol, schedule
from raydd.evaluate.scratch import Evaluation, evaluate

__all__ = [
    "REAL_LR",
    "Evaluation",
    "Protocol",
    "evaluate",
    "evaluate_random_real",
    "protocol",
    "protocol_names",
    "random_real",
    "register_protocol",
    "schedule",
]
