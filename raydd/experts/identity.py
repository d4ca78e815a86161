"""What decides the bits of a trained network besides its index, JSON-ready: the parts that every recipe of a store shares."""

from dataclasses import asdict
from typing import Any

from raydd.config import Config
from raydd.data import Dataset
from raydd.experts.files import FORMAT
from raydd.models import build
from raydd.training import Recipe


def network_identity(config: Config, dataset: Dataset) -> dict[str, Any]:
    """The data with its transform, the network, and how many of them go through one pass."""
    data = config.data
    return {
        "format": FORMAT,
        "data": {
            "fingerprint": dataset.fingerprint,
            "shape": list(dataset.shape),
            "classes": len(dataset.classes),
            "transform": {"zca_eps": data.zca_eps} if data.zca else {"mean": list(dataset.mean), "std": list(dataset.std)},
        },
        "model": asdict(config.model),
        "parameters": build(config.model, dataset.shape, len(dataset.classes)).size,
        "together": config.experts.together,
        "tf32": config.tf32,
    }


def training_identity(recipe: Recipe) -> dict[str, Any]:
    """How batches are made and stepped. Without augmentation the rule for its parameters decides nothing."""
    values = asdict(recipe)
    return values | {"parameters": None} if recipe.strategy == "none" else values
