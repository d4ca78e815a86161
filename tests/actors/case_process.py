"""A process in which cases run that need a cluster of several nodes, away from that of the tests."""

import json
import os
import select
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

# A case takes seconds; on a busy machine, minutes.
PATIENCE_SECONDS = 550.0
# By themselves Ray's workers have a low priority, and beside other work they would be starved.
ENVIRON = {
    **os.environ,
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "OMP_NUM_THREADS": "1",
}


class CaseProcess:
    """Runs `python -m MODULE ARGUMENTS FOLDER`, which calls `serve`: cases by name, one after another. `folder` is for its files."""

    def __init__(self, folder: Path, module: str, *arguments: object):
        self._errors = (folder / "stderr").open("w+")
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *map(str, arguments), str(folder)],
            cwd=Path(__file__).parents[2],
            env=ENVIRON,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            start_new_session=True,
        )

    def go(self, case: object, patience: float = PATIENCE_SECONDS) -> dict[str, Any]:
        """What the process tells of a case; fails with what it raised, and after `patience` seconds."""
        assert self._process.poll() is None, f"the process has ended:\n{self._told()}"
        self._process.stdin.write(f"{case}\n")
        self._process.stdin.flush()
        if not select.select([self._process.stdout], [], [], patience)[0]:
            raise AssertionError(f"{case}: no end within {patience:g} s\n{self._told()}")
        line = self._process.stdout.readline()
        assert line, f"the process has died:\n{self._told()}"
        answer = json.loads(line)
        assert "raised" not in answer, f"{answer['raised']}\n{self._told()}"
        return answer

    def _told(self) -> str:
        self._errors.flush()
        self._errors.seek(0)
        return self._errors.read()[-5000:]

    def close(self) -> None:
        """End it, and its cluster with it."""
        self._process.stdin.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()


@contextmanager
def case_process(folder: Path, module: str, *arguments: object) -> Iterator[CaseProcess]:
    process = CaseProcess(folder, module, *arguments)
    try:
        yield process
    finally:
        process.close()


def serve(go: Callable[[str], dict[str, Any]]) -> None:
    """Answer each line of the input with a line of JSON, until it ends. Nothing else is printed among the answers."""
    answers = sys.stdout
    with redirect_stdout(sys.stderr):
        for line in sys.stdin:
            try:
                answer = go(line.strip())
            except Exception:
                answer = {"raised": traceback.format_exc()}
            print(json.dumps(answer), file=answers, flush=True)
