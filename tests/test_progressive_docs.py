"""The page about stages: its commands are understood, its settings are all there with their defaults, its recipes exist."""

import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest
import tyro

import raydd.__main__ as command_line
from raydd.methods.base import check
from raydd.options import EvaluateOptions
from raydd.recipes import load_recipe, recipe_names
from raydd.stage_config import StagesConfig

PAGE = Path(__file__).parents[1] / "docs" / "progressive.md"
TEXT = PAGE.read_text("utf-8")
COMMANDS = [shlex.split(line, comments=True)[1:] for line in re.search(r"```sh\n(.*?)```", TEXT, re.DOTALL)[1].splitlines()]


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_the_command_is_understood(arguments: list[str]) -> None:
    command, rest = arguments[0], arguments[1:]
    assert command in command_line._COMMANDS
    if command == "evaluate":
        tyro.cli(EvaluateOptions, args=rest, use_underscores=True)
    elif command in ("distill", "plan") and "--extend" not in rest:
        check(command_line._settings(command, rest).config)


def test_every_setting_has_its_row_and_default() -> None:
    rows = dict(re.findall(r"\| `--stages\.(\w+)`(?:, `--ipc`)? \| ([^|]+) \|", TEXT))
    for field in fields(StagesConfig):
        shown, default = rows[field.name], field.default
        if isinstance(default, bool):
            assert shown == ("on" if default else "off"), field.name
        elif default is not None:
            assert shown.strip("`") == (f"{default:g}" if isinstance(default, int | float) else default), field.name
    assert rows.keys() == {field.name for field in fields(StagesConfig)} | {"ipc"}


def test_the_recipes_and_links_exist() -> None:
    named = re.findall(r"`((?:cifar10|cifar100|digits)-pdd-[\w-]*\w)`", TEXT)
    assert named and all(load_recipe(name) for name in named)
    for end in ("-no-transition", "-no-conditioning", "-forgetting", "-p1", "-p2", "-p10"):
        assert any(name.endswith(end) for name in recipe_names()), end
    assert all((PAGE.parent / link).exists() for link in re.findall(r"\]\(([^)#:]+)\)", TEXT))
