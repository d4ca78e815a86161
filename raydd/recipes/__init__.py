"""The published settings as named recipes, each with its source, its expected accuracy and what it asks of the hardware.

A TOML file holds one recipe, or the rows of one program: named parts (a data set, an ipc, a variant) and rows that put parts
together, so that what a table has in common is written once. See `dc.toml` for the form.
"""

import tomllib
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from raydd.config import Config, from_dict
from raydd.errors import ConfigError

TEXTS = ("title", "source", "expected", "hardware")


@dataclass(frozen=True)
class Recipe:
    """A named starting point: settings that every flag can override.

    `expected` is the published (or, for raydd's own recipes, measured) accuracy in words; `source` says where the numbers stand.
    """

    name: str
    title: str
    source: str
    expected: str
    hardware: str
    config: Config


def recipe_names() -> list[str]:
    """Every recipe that raydd ships."""
    return sorted(_shipped())


def load_recipe(name: str) -> Recipe:
    """A shipped recipe by name, or any TOML file with one recipe by its path.

    Raises `ConfigError` with names like it when there is none of that name, or with every wrong setting of the file.
    """
    if name.endswith(".toml"):
        values, name = _read(name), Path(name).stem
    elif name in _shipped():
        values = _shipped()[name]
    else:
        alike = get_close_matches(name, recipe_names(), 3)
        meant = f"; near it: {', '.join(alike)}" if alike else ""
        raise ConfigError([f"{name!r} is not a recipe{meant}. See raydd recipes; digits-mtt-ipc1 is one. A path to a .toml file works."])
    words = {key: values.get(key, "") for key in TEXTS}
    wrong = [key for key in ("title", "source") if not words[key]] + [key for key, word in words.items() if not isinstance(word, str)]
    if wrong or not isinstance(values.get("settings"), dict):
        lacking = ", ".join(wrong) or "the table [settings]"
        raise ConfigError([f"recipe {name} lacks {lacking}. A recipe has the texts title and source, and a table [settings]."])
    return Recipe(name, **words, config=from_dict(Config, {**values["settings"], "recipe": name}, prefix=f"recipe {name}: "))


def _read(path: str) -> dict[str, Any]:
    """The content of a user's own recipe."""
    try:
        return tomllib.loads(Path(path).read_text("utf-8"))
    except (OSError, ValueError) as error:  # a ValueError is faulty TOML, or text that is not UTF-8
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError([f"{path}: the recipe cannot be read ({reason}). Recipes are TOML files; see raydd recipes."]) from error


@cache
def _shipped() -> dict[str, dict[str, Any]]:
    """The content of every shipped recipe, by name."""
    found = {}
    for entry in resources.files(__name__).iterdir():
        if entry.name.endswith(".toml"):
            values = tomllib.loads(entry.read_text("utf-8"))
            rows = values.get("rows")
            found |= {name: _row(values, row) for name, row in rows.items()} if rows else {entry.name.removesuffix(".toml"): values}
    return found


def _row(values: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    """One row of a file of several: the file's own texts and settings, then those of the parts in order, then those of the row.

    Titles and hardware are strung together; of other texts and of each setting the last one holds.
    """
    layers = [values, *(values["parts"][part] for part in row["parts"]), row]
    texts = {key: [layer[key] for layer in layers if key in layer] for key in TEXTS}
    settings: dict[str, Any] = {}
    for layer in layers:
        settings = _merged(settings, layer.get("settings", {}))
    return {
        "title": ", ".join(texts["title"]),
        "hardware": "; ".join(texts["hardware"]),
        "source": texts["source"][-1],
        "expected": texts["expected"][-1],
        "settings": settings,
    }


def _merged(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Two tables of settings in one, table by table."""
    both = {**under, **over}
    for name in under.keys() & over.keys():
        if isinstance(under[name], dict) and isinstance(over[name], dict):
            both[name] = _merged(under[name], over[name])
    return both
