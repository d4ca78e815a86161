"""Where the caches are, and files that appear whole or not at all."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

from raydd.config import DataConfig
from raydd.errors import DataError


def cache_folder() -> Path:
    """$RAYDD_CACHE, else ~/.cache/raydd/data-cache. Created when absent; raises `DataError` where that fails."""
    folder = Path(os.environ.get("RAYDD_CACHE") or Path.home() / ".cache" / "raydd" / "data-cache")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"the cache folder {folder} cannot be made ({error}); set RAYDD_CACHE to a folder you can write.") from error
    return folder


def data_root(config: DataConfig) -> Path:
    """Folder of the official archives: `data.root`, else $RAYDD_DATA, else ~/.cache/raydd/data. It may be absent."""
    return Path(config.root or os.environ.get("RAYDD_DATA") or Path.home() / ".cache" / "raydd" / "data").expanduser()


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock beside `path`, so that one process of a node builds it and the others wait.

    The lock is freed when its holder dies. Raises `OSError` where the folder cannot be written.
    """
    with FileLock(path.with_name(path.name + ".lock")):
        for left in path.parent.glob(f".{path.name}.*.tmp"):  # of a builder that was killed: nobody else builds under the lock
            left.unlink(missing_ok=True)
        yield


@contextlib.contextmanager
def temporary(path: Path) -> Iterator[Path]:
    """A scratch name beside `path`, removed at the end."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        yield scratch
    finally:
        scratch.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary name to write; renamed to `path` after fsync if the block ends well, removed otherwise."""
    with temporary(path) as scratch:
        yield scratch
        _sync(scratch)
        os.replace(scratch, path)
        _sync(path.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an `OSError` of the block into a `DataError` that says where the cache can be moved."""
    try:
        yield
    except OSError as error:
        raise DataError(f"cannot write {path} ({error}); free space there, or set RAYDD_CACHE to another folder.") from error
