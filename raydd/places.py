"""Where things lie: folders of this machine, and URIs such as s3://BUCKET/PATH that `pyarrow.fs` opens.

A URI never holds a secret: it is written into records. Keys come from where the storage's own tools look for them, for S3 from
AWS_ACCESS_KEY_ID and its kin, a profile or the role of the machine.
"""

import hashlib
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

import pyarrow as pa
from pyarrow import fs

from raydd.errors import ConfigError, ResourceError

_USER = re.compile(r"(?P<scheme>\b[a-zA-Z][a-zA-Z0-9+.-]*://)[^/\s@?#'\"]*:[^/\s@?#'\"]*@")
_SECRET = r"[\w.-]*(?:secret|token|password|passwd|credential|signature|access_key|account_key|api_key|apikey)[\w.-]*"
_NAMED = re.compile(rf"(?P<name>\b{_SECRET}['\"]?\s*[=:]\s*['\"]?)[^\s&'\",;]+", re.IGNORECASE)
_FLAG = re.compile(rf"--?{_SECRET}", re.IGNORECASE)
_HIDDEN = "***"


def is_uri(place: str | Path) -> bool:
    """Whether a place is a URI, and not a path."""
    return "://" in str(place)


def absolute(place: str) -> str:
    """The place as it is known from anywhere: paths are made absolute, file:// URIs become paths, nothing stays nothing.

    Raises `ConfigError` for a URI that holds a password, or leads upwards.
    """
    if place.startswith("file://"):
        return str(Path(unquote("/" + place.removeprefix("file://").lstrip("/"))))
    if is_uri(place):
        if problems := secrets_in("", place):
            raise ConfigError(problems)
        _parts(place)
        return place
    return str(Path(place).expanduser().resolve()) if place else place


def join(place: str, name: str) -> str:
    """The place `name` (one or several parts) in a folder; options after a "?" stay at the end of a URI."""
    if not is_uri(place):
        return str(Path(place) / name)
    head, mark, options = place.partition("?")
    return f"{head.rstrip('/')}/{name}{mark}{options}"


def opened(place: str) -> tuple[fs.FileSystem, str]:
    """The file system of a URI or path, and the path in it. Raises `ResourceError` for what cannot be opened."""
    if not is_uri(place):
        return fs.LocalFileSystem(), str(Path(place).expanduser().absolute())
    try:
        return fs.FileSystem.from_uri(place)
    except (pa.ArrowException, OSError) as error:
        told = redacted(first_line(error))
        raise ResourceError(f"{redacted(place)} cannot be opened: {told}. Give a local path, or a URI such as s3://BUCKET/PATH.") from error


def working_folder(place: str) -> Path:
    """Where on this machine a folder at a URI is worked on: below $RAYDD_CACHE/runs, else ~/.cache/raydd/runs. A path is its own.

    Folders within one another stay so. Raises `ConfigError` for a URI that leads upwards.
    """
    if not is_uri(place):
        return Path(place)
    base = Path(os.environ.get("RAYDD_CACHE") or Path.home() / ".cache" / "raydd") / "runs"
    head, _, options = place.partition("?")  # these, and an endpoint, say which storage it is
    endpoint = f"{options} {os.environ.get('AWS_ENDPOINT_URL', '')}".strip()
    other = f"-{hashlib.sha256(endpoint.encode()).hexdigest()[:8]}" if endpoint else ""
    return base.joinpath(head.partition("://")[0].lower() + other, *_parts(place))


def _parts(place: str) -> tuple[str, ...]:
    """The bucket and the folders of a URI. Raises `ConfigError` where there is no bucket, or a part leads elsewhere."""
    parts = tuple(part for part in place.partition("?")[0].partition("://")[2].split("/") if part)
    if not parts or any(part in (".", "..") or "\0" in part or "\\" in part for part in parts):
        raise ConfigError([f"{redacted(place)} is no place for files: write SCHEME://BUCKET/FOLDER, without . and .. in it."])
    return parts


def is_inside(name: str) -> bool:
    """Whether a relative name with slashes, as found in somebody's file, stays in its folder."""
    path = PurePosixPath(name)
    return bool(name) and not path.is_absolute() and ".." not in path.parts and "\\" not in name and "\0" not in name and str(path) == name


def secrets_in(flag: str, value: str) -> list[str]:
    """A sentence when a value is a URI that holds a password, with it left out; [] otherwise."""
    if not is_uri(value) or redacted(value) == value:
        return []
    shown = f"{flag}={redacted(value)}" if flag else redacted(value)
    return [
        f"{shown} holds a secret, and would be written into records. Leave it out, and set the storage's own variables, for S3 "
        "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
    ]


def redacted(text: str) -> str:
    """The text without passwords of URIs and without values named as secrets: what may stand in records and messages."""
    return _NAMED.sub(rf"\g<name>{_HIDDEN}", _USER.sub(rf"\g<scheme>{_HIDDEN}@", text))


def redacted_command(arguments: Sequence[str]) -> str:
    """A command line for the shell, likewise."""
    shown = [_HIDDEN if _FLAG.fullmatch(before) else redacted(own) for before, own in zip(("", *arguments), arguments, strict=False)]
    return shlex.join(shown)


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its name."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
