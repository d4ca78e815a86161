"""A command that is refused says so in a message of one screen, with exit code 2; a run that is refused leaves no folder."""

from pathlib import Path

from tests.commands import Outcome, distill


def refused(outcome: Outcome, *words: str) -> None:
    """The command was refused with a message that holds these words."""
    text = outcome.refusal()
    for word in words:
        assert word in text, f"{word!r} is not in: {text}"


def refused_run(run: Path, store: Path, *arguments: str, words: tuple[str, ...]) -> None:
    """The run was refused and left no folder."""
    refused(distill(run, store, *arguments), *words)
    assert not run.exists()
