"""The fault matrix of docs/faults.md: whatever is lost, the run ends with the images of one that lost nothing, to the bit."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.actors.case_process import CaseProcess, case_process

pytestmark = [pytest.mark.multinode, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def matrix(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CaseProcess]:
    with case_process(tmp_path_factory.mktemp("matrix"), "tests.actors.fault_cases", store) as process:
        yield process


@pytest.mark.parametrize("part", ["score", "update", "between", "advance", "experts", "transition", "evaluation"])
def test_a_node_lost_with_what_a_worker_did(part: str, matrix: CaseProcess) -> None:
    """`between` is after the losses and before the gradient; `advance` is the training of a network."""
    matrix.go(part)


@pytest.mark.parametrize("case", ["driver", "driver-evaluating"])
def test_the_node_of_the_driver_lost(case: str, matrix: CaseProcess) -> None:
    matrix.go(case)


def test_a_node_that_joins_late_gets_a_worker(matrix: CaseProcess) -> None:
    matrix.go("late")


def test_a_worker_that_is_slow_is_waited_for(matrix: CaseProcess) -> None:
    matrix.go("slow")


def test_a_worker_that_never_answers_is_replaced(matrix: CaseProcess) -> None:
    matrix.go("silent")


def test_a_node_that_wakes_after_it_was_taken_for_dead(matrix: CaseProcess) -> None:
    matrix.go("frozen")


@pytest.mark.parametrize(("case", "file"), [("run-disk", "step_00000006.safetensors"), ("store-disk", "expert")])
def test_a_full_disk_is_told_and_the_run_carries_on_later(case: str, file: str, matrix: CaseProcess) -> None:
    assert file in matrix.go(case)["said"]
