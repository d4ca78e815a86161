"""A run that asks for more than there is waits where the cluster can grow, says for what, and heeds Ctrl-C."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.multinode


@pytest.mark.parametrize("program", ["grow", "interrupt"])
def test_waiting_for_nodes(program: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.actors.growing", program, str(tmp_path)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0 and done.stdout.strip().endswith("done"), done.stdout + done.stderr
