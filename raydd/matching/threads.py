"""Classes side by side: independent work on as many threads as torch may use, each of which computes on one.

A class's maps are small, so one class on one thread wastes less of a core than one class on all of them; and its numbers then do
not depend on how many threads there are.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Found = TypeVar("Found")


def side_by_side(work: Callable[[int], Found], count: int, device: torch.device, most: int | None = None) -> list[Found]:
    """[work(0), ..., work(count - 1)]; on a CPU up to `most` at a time, on torch's threads.

    `work` is called with gradients switched off or on as here. The first exception of any of them is raised.
    """
    threads = torch.get_num_threads()
    together = min(threads, count, most or count) if device.type == "cpu" else 1
    if together < 2:
        return [work(place) for place in range(count)]
    enabled = torch.is_grad_enabled()

    def alone(place: int) -> Found:
        with torch.set_grad_enabled(enabled):
            return work(place)

    try:
        with ThreadPoolExecutor(together, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(alone, range(count)))
    finally:
        # A thread's own number becomes the default of threads yet to come; this one's has stayed as it was.
        torch.set_num_threads(threads)
