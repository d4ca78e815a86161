"""Every write to a run folder goes through here: whole or not at all, and with an error that names the file and its size.

A file is written under a temporary name in its own folder, fsynced and renamed, and then the folder is fsynced, so that a crash
at any moment leaves either the old file or the new one. Lines are appended in one write and taken back if that write fails.
"""

import errno
import json
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raydd.errors import CheckpointError, ResourceError

_FULL = (errno.ENOSPC, errno.EDQUOT)


def atomic_write_bytes(path: Path | str, data: bytes) -> None:
    """Put `data` at `path`, replacing what is there, durably; parents are created.

    Raises `ResourceError` with the path and the number of bytes when the disk is full or the file cannot be written.
    The file that was there before is then untouched.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with _writing(path, len(data)):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(path.parent)


def atomic_write_json(path: Path | str, value: Any) -> None:
    """`atomic_write_bytes` of indented JSON; numbers that are not finite become null, because JSON has none."""
    atomic_write_bytes(path, (json.dumps(finite(value), indent=2, allow_nan=False) + "\n").encode())


def sync(paths: Iterable[Path]) -> None:
    """Have what was appended to these files survive a loss of power; those that do not exist are passed over.

    Raises `ResourceError` as above.
    """
    present = [path for path in paths if path.exists()]
    for path in present:
        with _writing(path, path.stat().st_size), open(path, "rb") as file:
            os.fsync(file.fileno())
    for folder in {path.parent for path in present}:
        _sync_folder(folder)


def write_bytes(path: Path | str, data: bytes) -> None:
    """Plain write without fsync, for files that can be made again (pictures, exports). Raises `ResourceError` as above."""
    path = Path(path)
    with _writing(path, len(data)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def append_line(path: Path | str, record: dict[str, Any]) -> None:
    """Append one JSON line. A line that did not fit is cut off again, so that the file stays readable.

    Numbers that are not finite become null. Raises `ResourceError` as `atomic_write_bytes` does.
    """
    path = Path(path)
    line = (json.dumps(finite(record), separators=(",", ":"), allow_nan=False) + "\n").encode()
    with _writing(path, len(line)), open(path, "ab", buffering=0) as file:
        before = file.tell()
        try:
            if file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            os.ftruncate(file.fileno(), before)
            raise


def read_lines(path: Path | str) -> list[dict[str, Any]]:
    """All records of a JSON-lines file; [] when it is absent. A last line torn by a crash is left out.

    Raises `CheckpointError` naming the file and the line when any other line is damaged.
    """
    path = Path(path)
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    records = []
    for number, line in enumerate(lines, start=1):
        # A whole line ends with a newline, so the last piece is empty or torn.
        if number == len(lines):
            break
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            raise CheckpointError(f"{path}: line {number} is damaged (not a JSON object). Remove that line, or restore the file.")
        records.append(record)
    return records


def read_json(path: Path | str) -> Any:
    """The value in a JSON file. Raises `CheckpointError` naming the file when it is absent or damaged."""
    try:
        return json.loads(Path(path).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error}).") from error


def read_object(path: Path | str) -> dict[str, Any]:
    """The JSON object in a file. Raises `CheckpointError` naming the file when it is absent, damaged or holds anything else."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds a {type(value).__name__} where an object is needed. Restore the file.")
    return value


def check_fields(path: Path | str, record: dict[str, Any], kinds: dict[str, type | tuple[type, ...]]) -> dict[str, Any]:
    """The record, when it has all of these fields with values of these types. Raises `CheckpointError` naming the file and the field."""
    for name, kind in kinds.items():
        if not isinstance(record.get(name), kind):
            found = type(record[name]).__name__ if name in record else "nothing"
            raise CheckpointError(f"{path}: a record has {found} for {name!r}. Restore the file.")
    return record


def finite(value: Any) -> Any:
    """The same nested value with nan and infinities as None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(part) for part in value]
    return value


@contextmanager
def _writing(path: Path, size: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise ResourceError(
                f"No space left for {path} ({size:,} bytes). What was written before is intact; free some space and carry on."
            ) from error
        raise ResourceError(f"{path} ({size:,} bytes) cannot be written: {error.strerror or error}.") from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
