"""Settings of `raydd select`: the networks that give features or scores, and how scores become a choice."""

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Literal

from raydd.errors import ConfigError
from raydd.schema import from_dict

METHODS = ("random", "herding", "k_center", "forgetting", "grand", "el2n")
"""Every selection method; see docs/selection-baselines.md."""
EARLY = ("grand", "el2n")
"""Those that score by the mean over several networks early in training."""


@dataclass(frozen=True)
class SelectConfig:
    """How networks are trained on all real images, with a constant rate and the recipe's network, and read.

    Source: specs/dc_dsa_dm_cafe_selection_cl.md section 8, the recommended default.
    """

    nets: int | None = None
    """Networks. Default: 1, for grand and el2n 10. Features are joined; forgetting counts are added, other scores averaged."""
    epochs: int | None = None
    """Epochs of each. Default: 60, for grand and el2n 10, which look at networks early in training."""
    lr: float = 0.01
    """Learning rate."""
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch_size: int = 256
    """Images per batch; the last, smaller batch of an epoch is used too."""
    augment: bool = True
    """Augment every batch with `augment.strategy`. Features, grand and el2n are read without augmentation."""
    never_learnt: Literal["zero", "most"] = "zero"
    """forgetting: images that were never right count as 0 (literally), or as forgotten most (Toneva et al. 2019)."""


def resolved(method: str, settings: SelectConfig) -> SelectConfig:
    """The settings with the method's defaults filled in; 0 networks for random, which needs none.

    Raises `ConfigError` with every setting that is of the wrong type or out of range, and for an unknown method.
    """
    problems = [] if method in METHODS else [f"{method!r} is not a selection method; known: {', '.join(METHODS)}."]
    try:
        from_dict(SelectConfig, asdict(settings), prefix="--select.")
        problems += _ranges(method, settings)
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems)
    if method == "random":
        return replace(settings, nets=0, epochs=0)
    nets, epochs = (10, 10) if method in EARLY else (1, 60)
    return replace(
        settings,
        nets=nets if settings.nets is None else settings.nets,
        epochs=epochs if settings.epochs is None else settings.epochs,
    )


def _ranges(method: str, settings: SelectConfig) -> list[str]:
    """One sentence for every number that is not finite or out of its bounds."""
    at_least = {"nets": 1, "epochs": 1 if method == "forgetting" else 0, "momentum": 0, "weight_decay": 0, "batch_size": 1}
    problems = []
    for name in (field.name for field in fields(settings)):
        value = getattr(settings, name)
        if isinstance(value, float) and not math.isfinite(value):
            problems.append(f"--select.{name}={value} must be a finite number.")
        elif value is not None and name in at_least and value < at_least[name]:
            problems.append(f"--select.{name}={value} must be at least {at_least[name]}.")
    if not settings.lr > 0:
        problems.append(f"--select.lr={settings.lr} must be above 0.")
    if settings.momentum >= 1:
        problems.append(f"--select.momentum={settings.momentum} must be below 1.")
    return problems
