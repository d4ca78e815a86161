"""Classes side by side: independent work on as many threads as torch may use, each of which computes on one.

A class's maps are small, so one class on one thread wastes less of a core than one class on all of them; and its numbers then do
not depend on how many threads there are, as long as there is a class for each.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import Tensor

KEPT_BLOCK = 31 << 20
"""Bytes; glibc hands freed memory back to the system by the block, and takes no block of 32 MiB or more for an example."""


@contextmanager
def threads_each(count: int) -> Iterator[None]:
    """Let torch compute on `count` threads, here and in threads started meanwhile.

    Threads that wait for each other over small operations burn the time of all, most of all on a busy machine.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def side_by_side(
    work: Callable[[int], tuple[Tensor, ...]], count: int, device: torch.device, most: int | None = None
) -> tuple[Tensor, ...]:
    """The tensors of work(0), ..., work(count - 1), stacked; on a CPU up to `most` of them at a time, on torch's threads.

    Each is computed on as many threads however many go side by side, so `most` changes no bit. `work` is called with gradients
    switched on or off as here. The first exception of any of them is raised.
    """
    threads, enabled = torch.get_num_threads(), torch.is_grad_enabled()
    if device.type != "cpu" or not count:
        return _stack([work(place) for place in range(count)])
    each, together = threads // min(threads, count), min(threads, count, most or count)
    if together < 2:
        with threads_each(each):
            return _stack([work(place) for place in range(count)])

    def alone(place: int) -> tuple[Tensor, ...]:
        with torch.set_grad_enabled(enabled):
            return work(place)

    _keep_freed_memory()
    with threads_each(each), ThreadPoolExecutor(together) as pool:
        return _stack(list(pool.map(alone, range(count))))


def _stack(found: list[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    return tuple(torch.stack(parts) for parts in zip(*found, strict=True))


def _keep_freed_memory() -> None:
    """Have glibc keep what threads free, instead of handing it back and faulting it in again at every chunk (a tenth of the time).

    It keeps blocks up to the largest that was ever freed, so one is allocated, not touched, and freed. Nothing happens elsewhere.
    """
    torch.empty(KEPT_BLOCK, dtype=torch.uint8)
