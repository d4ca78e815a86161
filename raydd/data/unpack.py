"""Unpacking archives of others: nothing in them may lead out of the folder, and they hold plain files and folders only."""

import tarfile
import zipfile
from pathlib import Path, PurePosixPath

from raydd.errors import DataError


def unpack(archive: Path, into: Path) -> None:
    """Unpack a zip or tar archive (plain or gzip) into an existing folder.

    Raises `DataError` before anything is written when a member is a link, a device, or has a path that is absolute or leads upwards;
    the errors of `zipfile`, `tarfile` and `zlib`, and `OSError`, when the archive is damaged or cannot be read.
    """
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as file:
            for member in file.infolist():
                kind = member.external_attr >> 28  # of Unix, 0 where another system wrote it
                _check(archive, member.filename, kind in (0, 0o4, 0o10))
            file.extractall(into)
    else:
        with tarfile.open(archive) as file:
            for member in file:
                _check(archive, member.name, member.isfile() or member.isdir())
            file.extractall(into, filter="data")


def _check(archive: Path, name: str, plain: bool) -> None:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        raise DataError(f"{archive}: its member {name!r} would be written outside of the folder. Do not use this archive.")
    if not plain:
        raise DataError(f"{archive}: its member {name!r} is no plain file or folder. Do not use this archive.")
