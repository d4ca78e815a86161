"""Training networks from scratch on a small set and testing them on real images."""

from raydd.evaluate.protocols import Protocol, Settings, protocol, protocol_names, rate, register_protocol, resolve, schedule
from raydd.evaluate.scratch import Evaluation, TrainingSet, evaluate, settings_for, train_on

__all__ = [
    "Evaluation",
    "Protocol",
    "Settings",
    "TrainingSet",
    "evaluate",
    "protocol",
    "protocol_names",
    "rate",
    "register_protocol",
    "resolve",
    "schedule",
    "settings_for",
    "train_on",
]
