"""The one registry of sources: a source is a function with a decorator, and its name is a value of `--data`."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from raydd.config import DataConfig
from raydd.data.types import Source, SourceInfo
from raydd.errors import DataError

SourceFunction = Callable[[str, DataConfig], Source]


@dataclass(frozen=True)
class _Entry:
    open: SourceFunction
    info: SourceInfo | None
    folder: bool


_SOURCES: dict[str, _Entry] = {}


def source(name: str, *, info: SourceInfo | None = None, folder: bool = False) -> Callable[[SourceFunction], SourceFunction]:
    """Register `function(location, config) -> Source` under a name.

    `folder=True` makes the name take a folder, as in `parquet:DIR`; `location` is then that folder, otherwise "".
    `info` is what is known without reading anything, at the set's own size and channels.
    """

    def register(function: SourceFunction) -> SourceFunction:
        _SOURCES[name] = _Entry(function, info, folder)
        return function

    return register


def known_sources() -> list[str]:
    """Every value that `--data` takes, with `:DIR` where a folder belongs."""
    return sorted(name + (":DIR" if entry.folder else "") for name, entry in _SOURCES.items())


def open_source(config: DataConfig) -> Source:
    """The source that `config.source` names. Raises `DataError` for an unknown name or missing files."""
    entry, location = _find(config.source)
    return entry.open(location, config)


def source_info(config: DataConfig) -> SourceInfo | None:
    """What is known of the set without reading it, with `size` and `channels` applied; None for Parquet and folders.

    Published mean and std hold for colour as it is: with another number of channels they are None, that is, computed.
    """
    info = _find(config.source)[0].info
    if info is None:
        return None
    channels, side = config.channels or info.shape[0], config.size or info.shape[1]
    if channels != info.shape[0]:
        info = replace(info, mean=None, std=None)
    return replace(info, shape=(channels, side, side))


def _find(text: str) -> tuple[_Entry, str]:
    name, colon, location = text.partition(":")
    entry = _SOURCES.get(name)
    if entry is None:
        raise DataError(f"--data={text} is not a source; known: {', '.join(known_sources())}.")
    if entry.folder and not location:
        raise DataError(f"--data={text} needs a folder: write --data {name}:DIR.")
    if colon and not entry.folder:
        raise DataError(f"--data={text}: {name} takes no folder; write --data {name} (its archives are looked for in --data.root).")
    return entry, location
