"""Synthetic sets that are larger than Ray's object store, with and without room on the disk.

python -m tests.actors.full_store small|full
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
import torch

from raydd.actors.executor import RayExecutor
from raydd.actors.options import WorkerOptions
from raydd.errors import ResourceError
from raydd.executor import InlineExecutor
from raydd.types import Candidate, SyntheticSet
from tests.actors.ray_toys import ToyFactory, ToyMethod

MEBIBYTE = 2**20
# The least that Ray takes.
STORE = 78 * MEBIBYTE
CANDIDATES = [Candidate(0, 0, 0), Candidate(1, 1, 0)]
# Ray takes a disk for full from this share of its space on: here, always.
NO_DISK = {"local_fs_capacity_threshold": 1e-6, "local_fs_monitor_interval_ms": 100}


@contextmanager
def executor(**config: Any) -> Iterator[RayExecutor]:
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=STORE,
        log_to_driver=False,
        logging_level="ERROR",
        _system_config=config,
    )
    made = RayExecutor(ToyFactory(), 1, WorkerOptions())
    try:
        yield made
    finally:
        made.close()
        ray.shutdown()


def synthetic(mebibytes: int) -> SyntheticSet:
    images = torch.linspace(0, 1, mebibytes * MEBIBYTE // 4)
    return SyntheticSet(images, torch.arange(3), torch.tensor(0.1), torch.ones(3, dtype=torch.int64))


def small() -> None:
    """What the store does not hold Ray puts on the disk: slower, and the same."""
    images, draws, inline = synthetic(100), torch.rand(3), InlineExecutor(ToyMethod())
    with executor() as made:
        assert [score.loss for score in made.score(images, CANDIDATES, draws)] == [
            score.loss for score in inline.score(images, CANDIDATES, draws)
        ]
        one, two = (each.update(images, CANDIDATES[1], draws) for each in (made, inline))
        assert one.loss == two.loss and torch.equal(one.grad_images, two.grad_images)
        assert made.drain_events() == []


def full() -> None:
    """With a full disk too the run ends, and says why: where the driver sends, and where a worker answers."""
    draws = torch.rand(3)
    with executor(**NO_DISK) as made:
        time.sleep(1.0)  # until Ray has looked at the disk
        refused(lambda: made.score(synthetic(100), CANDIDATES, draws))
        half = synthetic(60)
        made.score(half, CANDIDATES, draws)
        refused(lambda: made.update(half, CANDIDATES[1], draws))


def refused(ask: Callable[[], object]) -> None:
    started = time.monotonic()
    try:
        ask()
    except ResourceError as error:
        assert "object store is full, and so is the disk" in str(error), error
    else:
        raise AssertionError("found room")
    assert time.monotonic() - started < 60


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"small": small, "full": full}[sys.argv[1]]()
    print("done")
