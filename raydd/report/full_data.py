"""How well networks do on all real images: what the experts of the first stage came to, where their store can be read."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from raydd.artifact import Artifact
from raydd.config import Config, Execution
from raydd.data import Dataset, ImageSet
from raydd.errors import RayddError
from raydd.experts.build import recipe, store_root
from raydd.experts.store import RECIPE, Store
from raydd.files import read_json


@dataclass(frozen=True)
class FullData:
    """Test accuracy (0..1), mean and population std over the experts, after so many epochs on all real images."""

    mean: float
    std: float
    experts: int
    epochs: int


def full_data(config: Config, execution: Execution, found: Artifact) -> FullData | None:
    """What the store tells of the experts of the first stage, at the last epoch that all of them were tested after.

    None where there are none: another method than mtt, a store that is elsewhere or on an object store, or experts that saw only the
    part of the images that a curriculum gives the first stage.
    """
    if config.method != "mtt" or config.curriculum.scores != "none":
        return None
    try:
        return next((told for store in _stores(config, execution, found) if (told := _told(store, config.experts.count))), None)
    except (RayddError, OSError):
        return None  # a report is worth having without it


def _stores(config: Config, execution: Execution, found: Artifact) -> list[Store]:
    """The stores with the recipe of the run's first experts. The result file has no mean and std as they were; the data decides them."""
    shape = (0, *found.synthetic.images.shape[1:])
    none = ImageSet(np.zeros(shape, np.uint8), np.zeros(0, np.int64))
    wanted = recipe(config, Dataset(found.dataset, none, none, found.classes, (), (), found.fingerprint))
    root = store_root(execution)
    recipes = [read_json(path)["recipe"] for path in sorted(Path(root).expanduser().glob(f"*/{RECIPE}"))]
    return [Store.open(root, known, verify=False) for known in recipes if _without_constants(known) == _without_constants(wanted)]


def _without_constants(values: dict[str, Any]) -> dict[str, Any]:
    data = values["data"]
    constants = {name: values for name, values in data["transform"].items() if name not in ("mean", "std")}
    return {**values, "data": {**data, "transform": constants}}


def _told(store: Store, count: int) -> FullData | None:
    tested = [dict(store.metadata(expert)["test_accuracy"]) for expert in store.experts()[:count]]
    epochs = set.intersection(*map(set, tested)) if tested else set()
    if not epochs:
        return None
    accuracies = np.array([known[max(epochs)] for known in tested])
    return FullData(float(accuracies.mean()), float(accuracies.std()), len(tested), int(max(epochs)))
