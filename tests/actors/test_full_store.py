"""Ray's object store is too small, in processes of their own with a Ray of their own."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.actors.case_process import ENVIRON

pytestmark = [pytest.mark.multinode, pytest.mark.timeout(600)]


@pytest.mark.parametrize("program", ["small", "full"])
def test_a_store_that_is_too_small(program: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.actors.full_store", program],
        cwd=Path(__file__).parents[2],
        env=ENVIRON,
        capture_output=True,
        text=True,
        timeout=580,
    )
    assert done.returncode == 0 and done.stdout.strip().endswith("done"), done.stdout + done.stderr
