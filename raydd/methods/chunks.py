"""How many classes are in memory at once in a matching step: as many as a share of the memory at hand takes.

Where derivatives are written by hand every class goes through the network by itself, and a chunk says how many do so side by side on
a CPU's threads. No bit depends on it (`raydd.matching.threads`), so it may follow the memory that is free just now.

Features under automatic derivatives go through together, chunk by chunk, and may round otherwise in another chunk. There the chunk
follows from fixed numbers and from what the device has in all, so that equal settings give equal bits on one kind of device. Gradients
under automatic derivatives go class by class. With a batch norm a chunk would change the statistics, so none is cut.
"""

import psutil
import torch

from raydd.matching.by_hand import mixes
from raydd.matching.memory import Matched, by_hand, class_bytes
from raydd.models import FlatModel

SHARE = 0.25
"""Of the free memory, or of a GPU's memory in all: what the classes of one step may take. Other workers want some too."""
CPU_BUDGET = 4 << 30
"""The same in bytes for features under automatic derivatives on a CPU, whose memory is no part of its kind."""
CHUNK_IMAGES = {"cpu": 512}
"""Images that go through together under automatic derivatives, at most: on a CPU more would leave its cache."""
OTHER_CHUNK_IMAGES = 16384
"""The same for other devices."""


def images_together(device: torch.device) -> int:
    """The most images that go through a network together where nothing is kept of them but features."""
    return CHUNK_IMAGES.get(device.type, OTHER_CHUNK_IMAGES)


def free_bytes(device: torch.device) -> int:
    """Free memory of a device now."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


class Chunks:
    """Chunks of one network on one device, found once for each size of batch.

    given    classes at once as the settings say; None for as many as fit
    apart    whether images of different classes must not share batch statistics
    threads  of the process that computes; its own here
    """

    def __init__(
        self,
        model: FlatModel,
        device: torch.device,
        matched: Matched,
        given: int | None,
        *,
        apart: bool = False,
        threads: int | None = None,
    ):
        self._model, self._device, self._matched, self._given = model, device, matched, given
        self._by_hand, self._apart, self._threads = by_hand(model, matched), apart, threads
        self._found: dict[tuple[int, int, int], int] = {}

    def of(self, real: int = 0, synthetic: int = 0, frozen: int = 0) -> int:
        """Classes at once in a pass over so many images of each, of which the first `frozen` synthetic ones are held fixed; at least 1."""
        place = real, synthetic, frozen
        if place not in self._found:
            most = self._most(max(real, synthetic))
            self._found[place] = most if most == 1 or self._whole else max(1, min(most, self._room() // self.bytes(*place)))
        return self._found[place]

    def bytes(self, real: int = 0, synthetic: int = 0, frozen: int = 0) -> int:
        """What each of these classes takes at its peak."""
        return class_bytes(self._model, real, synthetic, frozen, self._matched, self._device)

    @property
    def cuttable(self) -> bool:
        """Whether fewer classes at once take less memory."""
        return not self._whole and (not self._by_hand or self._device.type == "cpu") and (self._by_hand or self._matched != "gradients")

    @property
    def _whole(self) -> bool:
        """Whether batch statistics are those of all classes in one pass."""
        return self._matched != "gradients" and mixes(self._model) and not self._apart

    def _most(self, images: int) -> int:
        """The chunk before memory is looked at."""
        classes = self._model.classes
        if self._whole:
            return classes
        if not self.cuttable or mixes(self._model):
            return 1
        if self._by_hand:
            return min(self._given or classes, classes, self._threads or torch.get_num_threads())
        return min(self._given or max(1, images_together(self._device) // max(images, 1)), classes)

    def _room(self) -> int:
        if self._given:
            return torch.iinfo(torch.int64).max
        if self._by_hand:
            return int(SHARE * free_bytes(self._device))
        if self._device.type == "cuda":
            return int(SHARE * torch.cuda.get_device_properties(self._device).total_memory)
        return CPU_BUDGET
