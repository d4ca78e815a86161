"""From settings to a data set."""

from raydd.config import DataConfig
from raydd.data.cache import obtain
from raydd.data.classes import restricted
from raydd.data.sources import open_source
from raydd.data.types import Dataset, Progress


def load(config: DataConfig, progress: Progress | None = None) -> Dataset:
    """The real data: decoded at the first call, memory-mapped from the cache afterwards.

    Mean and std are the published constants for cifar10, cifar100 and tiny-imagenet, and are computed over the training
    images for every other source, whatever its folder is called. With `data.classes` they stay those of the whole set.
    Raises `DataError` for a source that is unknown, missing, damaged, or does not fit the settings.
    """
    source = open_source(config)
    cached = obtain(source, config, progress)
    meta = cached.meta
    whole = Dataset(
        name=source.name,
        train=cached.train,
        test=cached.test,
        classes=tuple(meta["classes"]),
        mean=tuple(meta["mean"]),
        std=tuple(meta["std"]),
        fingerprint=meta["fingerprint"],
    )
    return restricted(whole, config.classes) if config.classes else whole
