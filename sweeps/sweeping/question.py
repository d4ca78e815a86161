"""A question as data: its arms, what varies between them, and which one the others are compared with."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from raydd.errors import ConfigError

SEARCH = "search"
"""The arm of a search before anything is drawn."""
# A network, experts and evaluations that take a second or two on one core.
SMALL = {
    "steps": 4,
    "model.width": 8,
    "model.depth": 2,
    "experts.count": 3,
    "mtt.syn_steps": 5,
    "mtt.max_start_epoch": 2,
    "evaluation.every": 2,
    "evaluation.epochs": 2,
    "evaluation.nets": 1,
    "stages.networks": 2,
    "stages.transition_epochs": 2,
}


@dataclass(frozen=True)
class Arm:
    """One answer to the question, run with every seed.

    name      unlike those of all other arms
    settings  dotted settings that differ from the recipe
    factors   what varies, by its short name, for tables and heat maps
    recipe    in place of the sweep's
    baseline  whether the others are compared with it
    against   the arm that this one is compared with, by its name; the baseline when empty
    """

    name: str
    settings: dict[str, Any]
    factors: dict[str, Any] = field(default_factory=dict)
    recipe: str = ""
    baseline: bool = False
    against: str = ""


@dataclass(frozen=True)
class Question:
    """A sweep.

    name    of the sweep's folder
    asks    the question in a sentence
    recipe  where the settings start, unless --recipe says otherwise
    arms    the arms for the options of the command line
    flags   adds the flags of its own to the parser
    smoke   settings of a smoke test beside `SMALL`; and own options by name, which take the place of the given ones
    models  networks on which results are evaluated beside the run's own
    space   whether settings are searched instead of arms compared (see search.py)
    """

    name: str
    asks: str
    recipe: str
    arms: Callable[["Any"], list[Arm]]
    flags: Callable[[argparse.ArgumentParser], None] = lambda parser: None
    smoke: dict[str, Any] = field(default_factory=dict)
    smoke_options: dict[str, Any] = field(default_factory=dict)
    models: Callable[["Any"], tuple[str, ...]] = lambda options: ()
    space: bool = False


def grid(factors: dict[str, tuple[str, list[Any]]]) -> list[Arm]:
    """Every combination: {"T": ("selection.temperature", [0.1, 1.0])} gives the arms "T=0.1" and "T=1"."""
    arms = []
    for values in product(*(values for _, values in factors.values())):
        chosen = dict(zip(factors, values, strict=True))
        settings = {setting: value for (setting, _), value in zip(factors.values(), values, strict=True)}
        arms.append(Arm(named(chosen), settings, chosen))
    return arms


def named(factors: dict[str, Any]) -> str:
    """The name of an arm from what varies."""
    return " ".join(f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in factors.items())


def refuse_equal_names(arms: list[Arm]) -> None:
    """Raise `ConfigError` when two arms have one name, for their runs would share a folder, and when there is none."""
    names = [arm.name for arm in arms]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError([f"Two arms are called {name!r}; give every value once." for name in twice])
    if not arms:
        raise ConfigError(["There is no arm to run; give at least one value for everything that varies."])
