"""What every test may ask for: the recorded reference numbers, a Ray cluster, trained experts and a finished run."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that use the Ray cluster run in one process, so that there is one cluster."""
    for item in items:
        if "ray_cluster" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("ray"))


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


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained experts of the small network of `tests.commands`, to be read only."""
    from tests.commands import SMALL, raydd

    folder = tmp_path_factory.mktemp("store")
    assert raydd("experts", "digits-mtt-ipc1", *SMALL, "--store", folder).code == 0
    return folder


@pytest.fixture(scope="session")
def finished_run(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of `tests.commands.distill`, to be read only."""
    from tests.commands import distill

    folder = tmp_path_factory.mktemp("runs") / "finished"
    outcome = distill(folder, store)
    assert outcome.code == 0, outcome.err
    return folder


@pytest.fixture(scope="session")
def s3() -> Iterator[Any]:
    """An S3-compatible server on this machine, see `tests.s3`."""
    from tests.s3 import server

    with server() as found:
        yield found


@pytest.fixture
def run_copy(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run that may be changed."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs in this process write no report, whose figures take longer than a small run."""
    monkeypatch.setattr("raydd.session.write_report", lambda path: path / "report.html")
