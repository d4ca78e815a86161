from dataclasses import replace
from pathlib import Path

import pytest

from raydd.actors.options import WorkerOptions
from raydd.actors.services import RayServices
from raydd.config import Config, Execution, override
from raydd.experts.starts import StartsPlace
from raydd.services import InlineServices, Services
from raydd.setup import Setup, prepare
from raydd.transition import stage_resources
from tests.test_transition import SETTINGS, finished

pytestmark = pytest.mark.usefixtures("ray_cluster")


def starts(setup: Setup, root: Path, services: Services, reports: list[str]) -> StartsPlace:
    """Those of stage 3."""
    placed = replace(setup, execution=Execution(store=str(root)))
    return stage_resources(placed, 3, finished(2), services, lambda report: reports.append(f"{report['phase']} {report['done']}")).starts


def test_a_stage_begins_with_the_same_networks_wherever_they_are_trained(tmp_path: Path) -> None:
    config = override(Config(), {**SETTINGS, "method": "dm", "selection.pool": None, "stages.networks": 3, "dm.batch_real": 64})
    setup, reports = prepare(config, Execution()), []
    remote = starts(setup, tmp_path / "remote", RayServices(2, WorkerOptions()), reports)
    inline = starts(setup, tmp_path / "inline", InlineServices(setup.device), [])
    assert reports == ["transition 1", "transition 2", "transition 3"] and remote.key == inline.key
    digests = [[place.open().metadata(network)["sha256"] for network in range(3)] for place in (remote, inline)]
    assert digests[0] == digests[1] and len(set(digests[0])) == 3
