import hashlib
import os
import signal
import sys
import threading
import time
import types
from pathlib import Path

import pytest
import torch

from raydd.actors.executor import RayExecutor
from raydd.actors.options import WorkerOptions
from raydd.actors.pool import assign
from raydd.errors import WorkerError
from raydd.executor import Executor, InlineExecutor
from raydd.rng import stream
from raydd.types import Candidate, SyntheticSet
from tests.actors.ray_toys import SpoilingMethod, ToyFactory, ToyMethod

pytestmark = pytest.mark.usefixtures("ray_cluster")
CANDIDATES = [Candidate(0, 5, 1), Candidate(1, 2, 0), Candidate(2, 7, 3)]


def start_set() -> SyntheticSet:
    images = torch.randn(6, 1, 8, 8, generator=stream(0, 0, "images"))
    return SyntheticSet(images, torch.arange(6), torch.tensor(0.5), torch.ones(6, dtype=torch.int64))


def distil(executor: Executor, steps: int = 4) -> tuple[str, list[list[float]]]:
    """A small loop: the lowest score updates the images. Returns the sha-256 of the result and all scores."""
    synthetic, history = start_set(), []
    for step in range(steps):
        draws = torch.rand(3, generator=stream(0, step, "draws"))
        scores = executor.score(synthetic, CANDIDATES, draws)
        chosen = min(CANDIDATES, key=lambda candidate: scores[candidate.index].loss)
        update = executor.update(synthetic, chosen, draws)
        assert update.loss == pytest.approx(scores[chosen.index].loss, rel=1e-5)
        history.append([score.loss for score in scores])
        images = synthetic.images - 0.1 * update.grad_images
        synthetic = SyntheticSet(images, synthetic.labels, synthetic.step_size - 0.01 * update.grad_step_size, synthetic.stages)
    return hashlib.sha256(synthetic.images.numpy().tobytes() + synthetic.step_size.numpy().tobytes()).hexdigest(), history


def kill_when_paused(flag: Path, name: str, action: int = signal.SIGKILL) -> threading.Thread:
    """Ask a toy to pause at `name` and send its process a signal as soon as it does."""
    (flag / name).touch()

    def watch() -> None:
        note, end = flag / f"{name}.pid", time.monotonic() + 60
        while not note.exists() and time.monotonic() < end:
            time.sleep(0.01)
        os.kill(int(note.read_text()), action)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_same_bits_as_inline(workers: int) -> None:
    executor = RayExecutor(ToyFactory(), workers, WorkerOptions())
    try:
        assert distil(executor) == distil(InlineExecutor(ToyMethod()))
        assert executor.drain_events() == []
        assert executor.transfer_seconds > 0
    finally:
        executor.close()


@pytest.mark.parametrize(("workers", "name"), [(2, "score-1"), (2, "update-0"), (1, "score-2")])
def test_killed_worker_changes_nothing(tmp_path: Path, workers: int, name: str) -> None:
    expected = distil(InlineExecutor(ToyMethod()))
    chosen = min(CANDIDATES, key=lambda candidate: expected[1][0][candidate.index])
    name = name if name.startswith("score") else f"update-{chosen.index}"
    executor = RayExecutor(ToyFactory(str(tmp_path)), workers, WorkerOptions())
    try:
        thread = kill_when_paused(tmp_path, name)
        assert distil(executor) == expected
        thread.join(10)
        kinds = [kind for kind, _ in executor.drain_events()]
        assert kinds[0] == "death" and not (tmp_path / name).exists()
    finally:
        executor.close()


def test_respawned_worker_takes_its_place(tmp_path: Path) -> None:
    executor = RayExecutor(ToyFactory(), 2, WorkerOptions())
    try:
        before = executor.pids
        os.kill(before[0], signal.SIGKILL)
        synthetic, draws, events = start_set(), torch.rand(3), []
        end = time.monotonic() + 60
        while [kind for kind, _ in events] != ["death", "respawn"] and time.monotonic() < end:
            executor.score(synthetic, CANDIDATES, draws)
            events += executor.drain_events()
            time.sleep(0.05)
        assert [kind for kind, _ in events] == ["death", "respawn"]
        assert f"pid {before[0]}" in events[0][1] and "death 1, --max_restarts=10" in events[0][1]
        assert executor.pids[0] not in (None, before[0]) and executor.pids[1] == before[1]
    finally:
        executor.close()


def test_nobody_left_says_what_to_do() -> None:
    executor = RayExecutor(ToyFactory(), 1, WorkerOptions(max_restarts=0, resume="raydd resume runs/x"))
    try:
        os.kill(executor.pids[0], signal.SIGKILL)
        with pytest.raises(
            WorkerError, match=r"(?s)No worker is left after 1 deaths.*--max_restarts=0.*last checkpoint.*raydd resume runs/x"
        ):
            distil(executor)
    finally:
        executor.close()


def test_worker_that_dies_at_every_start_ends_the_run() -> None:
    with pytest.raises(WorkerError, match="did not start"):
        RayExecutor(ToyFactory(die=True), 1, WorkerOptions(max_restarts=1, pause=0.01))


def test_survivor_carries_on_when_the_budget_is_spent() -> None:
    executor = RayExecutor(ToyFactory(), 2, WorkerOptions(max_restarts=0))
    try:
        os.kill(executor.pids[1], signal.SIGKILL)
        assert distil(executor) == distil(InlineExecutor(ToyMethod()))
        assert [kind for kind, _ in executor.drain_events()] == ["death"]
    finally:
        executor.close()


@pytest.mark.parametrize("factory", [ToyFactory(error="no such epoch"), ToyFactory(build_error="no such epoch")])
def test_error_of_the_method_comes_back_once_and_whole(factory: ToyFactory) -> None:
    executor = None
    try:
        with pytest.raises(LookupError, match=r"^no such epoch") as caught:
            executor = RayExecutor(factory, 2, WorkerOptions())
            distil(executor)
        assert type(caught.value) is LookupError
        (note,) = caught.value.__notes__
        assert "ray_toys.py" in note and "no such epoch" in note
        assert executor is None or executor.drain_events() == []
    finally:
        if executor:
            executor.close()


def test_code_that_workers_cannot_import_is_named_at_once() -> None:
    class OnlyHere(types.ModuleType):
        """A module that other processes do not have."""

    module = OnlyHere("only_here")
    exec("class Factory:\n    pass\n", module.__dict__)
    sys.modules["only_here"] = module
    try:
        with pytest.raises(ModuleNotFoundError, match="only_here"):
            RayExecutor(module.Factory(), 1, WorkerOptions())
    finally:
        del sys.modules["only_here"]


@pytest.mark.parametrize("action", [0, signal.SIGSTOP])
def test_silent_worker_is_replaced(tmp_path: Path, action: int) -> None:
    """Signal 0 does nothing: the worker just sleeps. A stopped process cannot even hear that it shall end."""
    executor = RayExecutor(ToyFactory(str(tmp_path)), 2, WorkerOptions(answer_timeout=1.0, start_timeout=60))
    try:
        thread = kill_when_paused(tmp_path, "score-1", action)
        assert distil(executor) == distil(InlineExecutor(ToyMethod()))
        thread.join(10)
        events = executor.drain_events()
        assert events[0][0] == "silence" and "--answer_timeout" in events[0][1]
        pid = int((tmp_path / "score-1.pid").read_text())
        end = time.monotonic() + 60
        while _alive(pid) and time.monotonic() < end:
            time.sleep(0.05)
        assert not _alive(pid)
    finally:
        executor.close()


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_workers_own_what_they_receive() -> None:
    executor = RayExecutor(SpoilingMethod(), 2, WorkerOptions())
    try:
        synthetic = start_set()
        before = synthetic.images.clone()
        scores = executor.score(synthetic, [Candidate(0, 0, 0), Candidate(1, 1, 0)], None)
        assert [score.loss for score in scores] == [float(before.sum())] * 2
        assert torch.equal(synthetic.images, before)
    finally:
        executor.close()


def test_set_changed_in_place_is_sent_again() -> None:
    executor, inline = RayExecutor(ToyFactory(), 1, WorkerOptions()), InlineExecutor(ToyMethod())
    try:
        synthetic, draws = start_set(), torch.rand(3)
        executor.score(synthetic, CANDIDATES, draws)
        synthetic.images.mul_(2)
        fresh, expected = (each.score(synthetic, CANDIDATES, draws) for each in (executor, inline))
        assert [score.loss for score in fresh] == [score.loss for score in expected]
        update = executor.update(synthetic, CANDIDATES[0], draws)
        update.grad_images.zero_()  # Ours to write to.
        with torch.inference_mode():
            synthetic = SyntheticSet(torch.ones(6, 1, 8, 8), torch.arange(6), torch.tensor(0.5), torch.ones(6))
            executor.score(synthetic, CANDIDATES, draws)
            synthetic.images.mul_(3)
            fresh, expected = (each.score(synthetic, CANDIDATES, draws) for each in (executor, inline))
        assert [score.loss for score in fresh] == [score.loss for score in expected]
    finally:
        executor.close()


def test_candidates_go_to_their_owners_while_there_is_room() -> None:
    owners = [Candidate(index, expert, 0) for index, expert in enumerate([4, 1, 7, 2])]
    assert assign(owners, 3) == [1, 1, 0, 2]
    same = [Candidate(index, 6, 0) for index in range(5)]
    assert sorted(assign(same, 2)) == [0, 0, 0, 1, 1]
    assert assign(CANDIDATES[:1], 3) == [2]
