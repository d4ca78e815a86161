"""Whole nodes are lost. Clusters of several nodes live in processes of their own, away from that of the other tests."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.multinode


@pytest.mark.parametrize("program", ["score", "driver"])
def test_lost_node_changes_nothing(program: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.actors.several_nodes", program, str(tmp_path)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0 and done.stdout.strip().endswith("done"), done.stdout + done.stderr
