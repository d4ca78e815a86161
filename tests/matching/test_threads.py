"""Work side by side: order, exceptions, and what threads of torch's own remain."""

import threading

import pytest
import torch

from raydd.matching.threads import side_by_side

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def three_threads():
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(1)


def test_results_are_in_order_and_each_thread_computes_alone() -> None:
    barrier = threading.Barrier(2, timeout=10)

    def work(place: int) -> tuple[torch.Tensor, ...]:
        barrier.wait()
        return tuple(torch.tensor(value) for value in (place, torch.get_num_threads(), int(torch.is_grad_enabled())))

    with torch.no_grad():
        assert [part.tolist() for part in side_by_side(work, 4, CPU, most=2)] == [[0, 1, 2, 3], [1] * 4, [0] * 4]
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize("most", [None, 1, 2, 5])
def test_how_many_go_side_by_side_does_not_decide_on_how_many_threads_each_goes(most: int | None) -> None:
    """So that no bit depends on it."""
    for threads, count, each in ((3, 5, 1), (6, 3, 2), (7, 2, 3), (4, 1, 4)):
        torch.set_num_threads(threads)
        found = side_by_side(lambda place: (torch.tensor(torch.get_num_threads()),), count, CPU, most)
        assert found[0].tolist() == [each] * count and torch.get_num_threads() == threads


def test_threads_left_over_are_shared_out() -> None:
    torch.set_num_threads(5)
    found = side_by_side(lambda place: (torch.tensor(torch.get_num_threads()),), 2, CPU)
    assert found[0].tolist() == [2, 2] and torch.get_num_threads() == 5


@pytest.mark.parametrize(("count", "most", "device"), [(1, None, "cpu"), (3, 1, "cpu"), (3, None, "meta")])
def test_one_at_a_time_stays_on_this_thread(count: int, most: int | None, device: str) -> None:
    seen = []
    side_by_side(lambda place: seen.append(threading.get_ident()) or (torch.tensor(place),), count, torch.device(device), most)
    assert seen == [threading.get_ident()] * count


def test_an_exception_comes_through_and_threads_are_put_back() -> None:
    with pytest.raises(ZeroDivisionError):
        side_by_side(lambda place: (torch.tensor(1 // place),), 3, CPU)
    numbers: list[int] = []
    later = threading.Thread(target=lambda: numbers.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert numbers == [3] and torch.get_num_threads() == 3
