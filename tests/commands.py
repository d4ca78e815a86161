"""The command line called in this process, with what it printed."""

import contextlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raydd.__main__ import main
from raydd.files import read_lines

# A network and an evaluation that take a fraction of a second, without Ray.
SMALL = ("--model.width", "8", "--experts", "3", "--evaluation.epochs", "2", "--evaluation.nets", "2", "--workers", "0")
STEPS = 4


@dataclass(frozen=True)
class Outcome:
    """Exit code, stdout and stderr of a command."""

    code: int
    out: str
    err: str

    @property
    def last_line(self) -> str:
        return self.out.splitlines()[-1]

    def refusal(self) -> str:
        """What a refused command said, on one line; checks that it is a message for people and fits one screen."""
        text = self.out + self.err
        rows = sum(1 + (len(line) - 1) // 80 for line in text.splitlines())
        assert self.code == 2, (self.code, text)
        assert "Traceback" not in text and rows <= 25, text
        return " ".join(text.split())


def raydd(*arguments: str | Path) -> Outcome:
    """Run one command."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(argument) for argument in arguments])
    return Outcome(code, out.getvalue(), err.getvalue())


def distill(run: Path, store: Path, *more: str | Path, steps: int = STEPS) -> Outcome:
    """A small distillation of digits with three candidates in each step."""
    selection = ("--selection.policy", "dynadistill", "--selection.candidates", "3", "--checkpoint_every", "2")
    return raydd("distill", "digits-mtt-ipc1", *SMALL, *selection, "--store", store, "--run", run, "--steps", str(steps), *more)


def result(run: Path) -> dict[str, Any]:
    return json.loads((run / "result.json").read_text())


def steps_of(run: Path) -> list[int]:
    return [record["step"] for record in read_lines(run / "metrics.jsonl")]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder; the lock is left out."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
