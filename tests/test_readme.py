"""Every command of the README exists with the settings that it shows, and its notebook lines run."""

import re
import shlex
from pathlib import Path

import pytest

import raydd.__main__ as command_line
from raydd.methods.base import check

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README.read_text(), re.DOTALL)


def commands() -> list[list[str]]:
    """The arguments of every `raydd ...` line of the shell blocks, continued lines joined."""
    lines = [line for kind, text in BLOCKS if kind == "sh" for line in text.replace("\\\n", " ").splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("raydd ")]


def test_there_are_commands() -> None:
    assert {arguments[0] for arguments in commands()} >= {"recipes", "experts", "distill", "evaluate", "report", "export", "plan"}


@pytest.mark.parametrize("arguments", commands(), ids=" ".join)
def test_the_command_is_understood(arguments: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    command, rest = arguments[0], arguments[1:]
    assert command in command_line._COMMANDS
    if command in ("plan", "experts", "distill") and not {"--resume", "--extend"} & set(rest):
        settings = command_line._settings(command, rest)
        check(settings.config, settings.execution)


def test_the_make_targets_exist() -> None:
    makefile = (README.parent / "Makefile").read_text()
    for target in re.findall(r"make ([a-z-]+)", README.read_text()):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_files_that_it_links_exist() -> None:
    for link in re.findall(r"\]\(([^)#:]+)\)", README.read_text()):
        assert (README.parent / link).exists(), link
