"""Environment of every test: one thread, a local Ray without authentication, and the recorded reference numbers."""

import atexit
import os
import shutil
import tempfile

_CACHE = tempfile.mkdtemp(prefix="raydd-tests-")
atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)
os.environ.update(
    RAYDD_CACHE=_CACHE,
    RAY_AUTH_MODE="disabled",
    RAY_DEDUP_LOGS="0",
    RAY_USAGE_STATS_ENABLED="0",
    RAY_ENABLE_UV_RUN_RUNTIME_ENV="0",
    OMP_NUM_THREADS="1",
    RAYDD_THREADS="1",
)

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Any]:
    """Loads a recorded case by name: an npz as a dictionary of arrays, a json as it is."""
    folder = Path(os.environ.get("RAYDD_GOLDEN", Path(__file__).parents[1] / ".." / "shared" / "golden"))

    def load(case: str) -> Any:
        if not folder.is_dir():
            pytest.skip("recorded reference numbers absent: set RAYDD_GOLDEN to their folder")
        if (folder / f"{case}.json").exists():
            return json.loads((folder / f"{case}.json").read_text())
        with np.load(folder / f"{case}.npz", allow_pickle=False) as arrays:
            return dict(arrays)

    return load


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One Ray cluster of four logical CPUs for all tests that need one."""
    import ray

    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=100 * 2**20,
        log_to_driver=False,
        logging_level="ERROR",
    )
    yield
    ray.shutdown()
