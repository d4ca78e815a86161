"""The limits of a cluster that can grow are those of the file that its autoscaler was started with."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from raydd.actors import _compat
from raydd.actors.growth import LIMIT, Growth, growth, limits
from raydd.errors import ResourceError
from tests.test_cluster_files import ROOT

FILE = {
    "max_workers": 3,
    "head_node_type": "head",
    "available_node_types": {
        "head": {"resources": {"CPU": 8, "driver": 8}},
        "small": {"resources": {"CPU": 4, "GPU": 1}, "max_workers": 5},
        "large": {"resources": {"CPU": 16, "GPU": 4}, "max_workers": 1},
        "never": {"resources": {"CPU": 99}, "max_workers": 0},
    },
}


@pytest.fixture
def autoscaler(tmp_path: Path) -> Iterator[None]:
    """A process that looks like the autoscaler of a cluster."""
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(FILE))
    (tmp_path / "monitor.py").write_text("import time; print(flush=True); time.sleep(60)")
    command = [sys.executable, "-u", str(tmp_path / "monitor.py"), "--gcs-address=10.0.0.1:6379"]
    process = subprocess.Popen([*command, f"--autoscaling-config={tmp_path / 'cluster.yaml'}"], stdout=subprocess.PIPE)
    assert process.stdout and process.stdout.readline()
    yield
    process.kill()
    process.communicate()


def test_limits_of_a_file() -> None:
    """One large and two small workers are the most, and no node has more than 16 CPUs."""
    assert limits(FILE) == Growth({"CPU": 8 + 16 + 4 + 4, "driver": 8, "GPU": 4 + 1 + 1}, {"CPU": 16, "driver": 8, "GPU": 4})


def test_limits_of_the_projects_own_file() -> None:
    """What `ray up` fills in, the resources of a machine type, is not in it yet; the numbers of machines are."""
    values = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    kind = next(name for name in values["available_node_types"] if name != values["head_node_type"])
    values["available_node_types"][kind]["resources"] = {"CPU": 4, "GPU": 1}
    assert limits(values).total["GPU"] == values["max_workers"]


@pytest.mark.usefixtures("autoscaler")
def test_the_process_of_the_cluster_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_compat, "autoscaler_maximum", lambda: None)  # what Ray's own autoscaler reports
    assert growth("10.0.0.1:6379") == limits(FILE)
    assert growth("10.0.0.2:6379") is None and growth("127.0.0.1:6379") is None
    monkeypatch.setenv(LIMIT, '{"GPU": 2}')
    assert growth("10.0.0.2:6379") == Growth({"GPU": 2.0}, {"GPU": 2.0}) and growth("127.0.0.1:6379") is None


def test_limit_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LIMIT, "many")
    with pytest.raises(ResourceError, match=r"RAYDD_CLUSTER_LIMIT='many' must say .* \{\"CPU\": 64, \"GPU\": 8\}"):
        growth("10.0.0.2:6379")
