"""Real images: sources, the decoded cache, and sets resident on a device."""

import importlib
import pkgutil

from raydd.data.by_class import RealData
from raydd.data.checks import require_per_class
from raydd.data.loading import load
from raydd.data.resident import Resident, class_indices
from raydd.data.sources import known_sources, open_source, source, source_info
from raydd.data.transform import Transform
from raydd.data.types import Content, Dataset, ImageSet, Picture, Progress, RawSplit, Source, SourceInfo

__all__ = [
    "Content",
    "Dataset",
    "ImageSet",
    "Picture",
    "Progress",
    "RawSplit",
    "RealData",
    "Resident",
    "Source",
    "SourceInfo",
    "Transform",
    "class_indices",
    "known_sources",
    "load",
    "open_source",
    "require_per_class",
    "source",
    "source_info",
]

# A source registers itself when its file is imported, so a new file in this folder is all that a new source needs.
for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
