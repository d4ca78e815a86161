"""A few storms, always the same; `benchmarks/chaos.py` makes many."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.actors.case_process import CaseProcess, case_process
from tests.chaos.storm import Weather

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
SEED = 5


@pytest.fixture(scope="module")
def inland(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Weather:
    """Runs without Ray."""
    return Weather(SEED, store, tmp_path_factory.mktemp("inland"))


@pytest.fixture(scope="module")
def at_sea(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CaseProcess]:
    """Runs without Ray, and on a cluster of three nodes."""
    with case_process(tmp_path_factory.mktemp("sea"), "tests.chaos.storm", SEED, store) as process:
        yield process


@pytest.mark.parametrize("number", range(3))
def test_a_command_without_ray(number: int, inland: Weather) -> None:
    assert inland.storm(number).same


@pytest.mark.parametrize("number", range(10, 14))
def test_a_command_on_nodes(number: int, at_sea: CaseProcess) -> None:
    assert at_sea.go(number)["same"]
