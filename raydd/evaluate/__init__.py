"""Training networks from scratch on a small set and testing them on real images."""

from raydd.evaluate.protocols import Protocol, Settings, protocol, protocol_names, rate, register_protocol, resolve, schedule
from raydd.evaluate.ranking import (
    augmentation_robust_score,
    hard_label_recovery,
    improvement_over_random,
    label_robust_score,
)
from raydd.evaluate.scratch import Evaluation, TrainingSet, evaluate, settings_for, train_on
from raydd.evaluate.staged import stage_counts, stage_sequence

__all__ = [
    "Evaluation",
    "Protocol",
    "Settings",
    "TrainingSet",
    "augmentation_robust_score",
    "evaluate",
    "hard_label_recovery",
    "improvement_over_random",
    "label_robust_score",
    "protocol",
    "protocol_names",
    "rate",
    "register_protocol",
    "resolve",
    "schedule",
    "settings_for",
    "stage_counts",
    "stage_sequence",
    "train_on",
]
