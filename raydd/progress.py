"""Progress on a terminal, or as occasional lines where there is none. Everything goes to stderr; results go to stdout."""

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

TITLES = {
    "data": "decoding images",
    "experts": "training experts",
    "transition": "training start networks",
    "select": "training networks",
    "curriculum": "scoring real images",
    "continual": "training on the memory",
    "distill": "distilling",
    "evaluate": "evaluating",
}
LINE_EVERY = 10.0


class Progress:
    """Shows the dictionaries that runs report: {"phase", "done", "total", ...}. Use it in `with`, call it with each report."""

    def __init__(self, console: Console | None = None):
        self._console = console or Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        self._bars = Bars(*columns, TextColumn("{task.fields[note]}"), console=self._console)
        self._tasks: dict[str, TaskID] = {}
        self._next_line: dict[str, float] = {}

    def __enter__(self) -> "Progress":
        if self._console.is_terminal:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._bars.stop()

    def __call__(self, report: dict[str, Any]) -> None:
        """Show one report; phases without a bar are printed as lines."""
        phase = report["phase"]
        if phase == "evaluation":
            self._print(f"step {report['step']}: {report['kind']} images give {report['accuracy_mean']:.2%} test accuracy")
        elif phase in TITLES:
            (self._bar if self._console.is_terminal else self._line)(_title(report), report)
        else:
            self._print(str(report.get("text", report)))

    def _print(self, text: str) -> None:
        (self._bars.console if self._console.is_terminal else self._console).print(text, markup=False, highlight=False, soft_wrap=True)

    def _bar(self, title: str, report: dict[str, Any]) -> None:
        if title not in self._tasks:
            self._tasks[title] = self._bars.add_task(title, total=report["total"], note="")
        self._bars.update(self._tasks[title], completed=report["done"], total=report["total"], note=_note(report))

    def _line(self, title: str, report: dict[str, Any]) -> None:
        now = time.monotonic()
        if now >= self._next_line.get(title, 0) or report["done"] == report["total"]:
            self._next_line[title] = now + LINE_EVERY
            self._print(f"{title}: {report['done']}/{report['total']} {_note(report)}".rstrip())


def _title(report: dict[str, Any]) -> str:
    """What is going on; the networks of later stages are told apart from those of the first."""
    stage = report.get("stage", 1) if report["phase"] in ("experts", "transition") else 1
    return TITLES[report["phase"]] + (f" of stage {stage}" if stage > 1 else "")


def _note(report: dict[str, Any]) -> str:
    """What else a report tells: speed, time left, loss."""
    parts = []
    if report.get("images_per_second"):
        parts.append(f"{report['images_per_second']:,.0f} images/s")
    if report.get("seconds_left") is not None:
        parts.append(f"{report['seconds_left']:.0f} s left")
    if report.get("loss") is not None:
        parts.append(f"loss {report['loss']:.4f}")
    return ", ".join(parts)
