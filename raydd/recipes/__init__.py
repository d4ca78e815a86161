"""The published settings, one TOML file for each paper row, with its source, its expected accuracy and the hardware it asks for."""

import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from raydd.config import Config, from_dict
from raydd.errors import ConfigError


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
    return sorted(entry.name.removesuffix(".toml") for entry in resources.files(__name__).iterdir() if entry.name.endswith(".toml"))


def load_recipe(name: str) -> Recipe:
    """A shipped recipe by name, or any TOML file of the same form by its path.

    Raises `ConfigError` that lists the recipes when there is none of that name, or every wrong setting of the file.
    """
    own_file = name.endswith(".toml")
    if not own_file and name not in recipe_names():
        raise ConfigError([f"{name!r} is not a recipe; known: {', '.join(recipe_names())}. A path to a .toml file works too."])
    try:
        place = Path(name) if own_file else resources.files(__name__).joinpath(f"{name}.toml")
        values = tomllib.loads(place.read_text("utf-8"))
    except (OSError, ValueError) as error:  # a ValueError is faulty TOML, or text that is not UTF-8
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError([f"{name}: the recipe cannot be read ({reason}). Recipes are TOML files; see raydd recipes."]) from error
    name = Path(name).stem
    words = {key: values.get(key, "") for key in ("title", "source", "expected", "hardware")}
    wrong = [key for key in ("title", "source") if not words[key]] + [key for key, word in words.items() if not isinstance(word, str)]
    if wrong or not isinstance(values.get("settings"), dict):
        lacking = ", ".join(wrong) or "the table [settings]"
        raise ConfigError([f"recipe {name} lacks {lacking}. A recipe has the texts title and source, and a table [settings]."])
    return Recipe(name, **words, config=from_dict(Config, {**values["settings"], "recipe": name}, prefix=f"recipe {name}: "))
