"""Where a sweep lies when --storage is a URI: read and written in a folder of this machine, and brought there and back.

The runs of its trials lie below it and are mirrored by the trials themselves (`raydd.mirror`). What concludes a sweep is uploaded here,
whole, after it has been written.
"""

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from raydd.errors import CheckpointError, ConfigError
from raydd.files import atomic_write_json
from raydd.mirror import leave_note
from raydd.places import is_uri, join, working_folder
from raydd.remote import Remote
from raydd.runfolder import RunFolder

RESULTS = ("sweep.json", "table.md", "best.toml", "report.html")


def holds(folder: str, start: str) -> bool:
    """Whether the sweep's folder holds anything whose name begins so. Raises `ResourceError`."""
    if is_uri(folder):
        return any(name.startswith(start) for name in Remote(folder).names())
    return any(Path(folder).glob(f"{start}*"))


def fetch(runs: str, names: Iterable[str]) -> None:
    """Have what is there of these runs of a sweep in the working folder; a run that is damaged there is told of by its trial.

    Raises `ResourceError` when the storage cannot be read.
    """
    for name in names if is_uri(runs) else ():
        with contextlib.suppress(ConfigError, CheckpointError):
            RunFolder.view(join(runs, name))


def note(run: str, name: str, values: dict[str, Any]) -> None:
    """Leave a note in a run folder that somebody else writes."""
    if is_uri(run):
        leave_note(run, name, json.dumps(values).encode())
    else:
        atomic_write_json(Path(run) / name, values)


def deliver(folder: str) -> None:
    """Upload what concludes a sweep. Raises `ResourceError`."""
    if is_uri(folder):
        local, remote = working_folder(folder), Remote(folder)
        for name in RESULTS:
            if (local / name).exists():
                remote.write(name, (local / name).read_bytes())
