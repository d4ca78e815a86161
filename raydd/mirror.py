"""A run at a URI: worked on in a folder of this machine, and mirrored to the URI whenever a checkpoint is written.

    URI/manifest.json                     which files the run consists of, each with its sha-256; written last, so it is always whole
    URI/data/checkpoints/step_00000100.safetensors.1a2b..  the files, under a name that says the content, so that none is ever changed
    URI/owner.json                        who writes it (`raydd.ownership`)
    URI/report.html, result.json, synthetic.safetensors    for people: copies of the last state; nobody reads them back
    URI/stopped.json                      a note that others than the owner may leave

Killed at any moment, the manifest there still names a state that can be resumed, and all of its files are there. What it no longer names
is removed after it has been replaced.
"""

import contextlib
import hashlib
import json
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from raydd.errors import CheckpointError, ConfigError, ResourceError
from raydd.files import atomic_write_bytes
from raydd.ownership import OWNER, Claim, TakenOver
from raydd.places import is_inside, join, redacted
from raydd.remote import Remote

MANIFEST = "manifest.json"
KNOWN = ".remote.json"
"""In the local folder: the manifest that it was last equal to or ahead of."""
FORMAT = 1
NOTES = ("stopped.json",)
FOR_PEOPLE = ("result.json", "synthetic.safetensors", "report.html")
PATIENCE, LAST_PATIENCE = 30.0, 60.0
"""Seconds for which an upload is tried again, along the run and at its end."""
_DATA = "data"
_TRIES = 3


@dataclass(frozen=True)
class Manifest:
    """The files of a run by relative name, each with (sha-256, bytes). `run` is the same for one run only.

    `serial` counts what has been uploaded, `generation` the processes that did so.
    """

    run: str = ""
    generation: int = 0
    serial: int = 0
    files: dict[str, tuple[str, int]] = field(default_factory=dict)

    def is_newer(self, other: "Manifest") -> bool:
        """Whether it says more than another of the same run, or is of another run."""
        return self.run != other.run or (self.generation, self.serial) > (other.generation, other.serial)

    def encode(self) -> bytes:
        """As JSON."""
        files = {name: {"sha256": sha256, "size": size} for name, (sha256, size) in sorted(self.files.items())}
        values = {"format": FORMAT, "run": self.run, "generation": self.generation, "serial": self.serial, "files": files}
        return (json.dumps(values, indent=1) + "\n").encode()

    @classmethod
    def decode(cls, data: bytes, place: str) -> "Manifest":
        """From JSON. Raises `CheckpointError` naming the place and what is wrong, so too for a name that leads out of the run."""
        try:
            values = json.loads(data)
            if values["format"] != FORMAT:
                raise CheckpointError(f"{place}: has format {values['format']}; this raydd reads format {FORMAT}.")
            files = {name: (entry["sha256"], entry["size"]) for name, entry in values["files"].items()}
            found = cls(str(values["run"]), values["generation"], values["serial"], files)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"{place}: is no manifest of a run ({type(error).__name__}: {error}).") from error
        for name, (sha256, size) in files.items():
            if not is_inside(name) or any(part.startswith(".") for part in name.split("/")):
                raise CheckpointError(f"{place}: names {name!r}, which is no file of a run. Do not use this run.")
            if not (isinstance(sha256, str) and len(sha256) == 64 and set(sha256) <= set("0123456789abcdef")) or not _is_count(size):
                raise CheckpointError(f"{place}: says nothing usable of {name}.")
        if not _is_count(found.generation) or not _is_count(found.serial):
            raise CheckpointError(f"{place}: generation and serial must be whole numbers.")
        return found


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


class Mirror:
    """The copy at `uri` of the run folder `local`, which the caller has locked for everything that changes it."""

    def __init__(self, uri: str, local: Path):
        """Raises `ResourceError` for a URI that cannot be opened; nothing is asked of the storage yet."""
        self.uri, self.local = uri, local
        self._remote = Remote(uri)
        self._claim: Claim | None = None
        self._base = Manifest()
        self._digests: dict[str, tuple[tuple[int, int], str]] = {}

    def manifest(self) -> Manifest | None:
        """What the URI holds now; None where there is no run. Raises `CheckpointError`, `ResourceError`."""
        data = self._remote.read(MANIFEST)
        return Manifest.decode(data, self._shown(MANIFEST)) if data is not None else None

    def refuse_used(self) -> None:
        """Raise `ConfigError` when the URI holds a run, or anything that is none."""
        # What a run leaves that died before its first upload, or was withdrawn.
        held = [name for name in self._remote.names() if name != OWNER and not name.startswith(f"{_DATA}/")]
        if MANIFEST in held:
            raise ConfigError([f"--run={self.uri} already holds a run. Carry on with --resume {self.uri}, or choose another --run."])
        if held:
            raise ConfigError([f"--run={self.uri} is not empty and not a run (it holds {held[0]}). Choose another --run."])

    def claim(self, tell: Callable[[str], None]) -> None:
        """Become the only writer. Raises `ResourceError` when another process is."""
        found = self.manifest() or Manifest()
        self._claim = Claim.take(self._remote, max(found.generation, self._known().generation), tell)
        self._base = self.manifest() or Manifest()

    def release(self) -> None:
        """Let others write. May be called twice."""
        if self._claim is not None:
            self._claim.release()
            self._claim = None

    # From there to here

    def fetch(self) -> list[str]:
        """Bring the local folder up to what the URI holds, unless it is as new; returns what is to be told.

        Every file is checked. Raises `CheckpointError` for one that is missing or altered; a checkpoint of several is left out instead.
        """
        told: list[str] = []
        for attempt in range(1, _TRIES + 1):
            found = self.manifest()
            if found is None:
                return []
            try:
                if found.is_newer(self._known()):
                    told = self._fetched(found)
                break
            except CheckpointError:
                # Its owner may have replaced it meanwhile.
                if attempt == _TRIES or self.manifest() == found:
                    raise
        for name in NOTES:
            if (data := self._remote.read(name)) is not None:
                atomic_write_bytes(self.local / name, data)
        return told

    def _fetched(self, found: Manifest) -> list[str]:
        """Make the local folder what the manifest says; the damaged checkpoints that are left out, one sentence each."""
        damaged: dict[str, str] = {}
        for name, (sha256, size) in found.files.items():
            if self._is_here(name, sha256, size):
                continue
            data = self._remote.read(_object(name, sha256))
            if data is not None and hashlib.sha256(data).hexdigest() == sha256:
                atomic_write_bytes(self.local / name, data)
                continue
            what = "is missing" if data is None else "was altered: it does not have the sha-256 that the manifest names"
            damaged[name] = f"{self._shown(_object(name, sha256))} {what}."
        checkpoints = {name for name in found.files if name.startswith("checkpoints/")}
        if damaged.keys() - checkpoints or (damaged and not checkpoints - damaged.keys()):
            raise CheckpointError("\n".join([*damaged.values(), "Restore what is damaged, or start anew under another --run."]))
        for name in [name for name in self._names() if name not in found.files or name in damaged]:
            (self.local / name).unlink()
        atomic_write_bytes(self.local / KNOWN, found.encode())
        return [f"{text} The checkpoint before it is used." for text in damaged.values()]

    # From here to there

    def upload(self, patience: float) -> None:
        """Have the URI name the local files as they are now; failures are tried again for `patience` seconds.

        Raises `TakenOver`, and `ResourceError` when it could not be done; what the URI held before is then intact.
        """
        end, pause = time.monotonic() + patience, 1.0
        while True:
            try:
                return self._upload()
            except TakenOver:
                raise
            except ResourceError:
                if time.monotonic() + pause > end:
                    raise
                time.sleep(pause)
                pause *= 2

    def _upload(self) -> None:
        assert self._claim is not None, "only an owner uploads"
        files, run = {}, self._base.run or secrets.token_hex(8)
        for name in self._names():
            path = self.local / name
            files[name] = (self._digest(name), path.stat().st_size)
            if self._base.files.get(name) != files[name]:
                self._remote.write(_object(name, files[name][0]), path.read_bytes())
        self._claim.check()
        new = Manifest(run, self._claim.owner.generation, self._base.serial + 1, files)
        self._remote.write(MANIFEST, new.encode())
        before, self._base = self._base, new
        atomic_write_bytes(self.local / KNOWN, new.encode())
        kept = {_object(name, sha256) for name, (sha256, _) in files.items()}
        for gone in {_object(name, sha256) for name, (sha256, _) in before.files.items()} - kept:
            with contextlib.suppress(ResourceError):
                self._remote.remove(gone)

    def finish(self) -> None:
        """After the last upload: the copies for people, and nothing left that the manifest does not name. Raises `ResourceError`."""
        kept = {_object(name, sha256) for name, (sha256, _) in self._base.files.items()}
        for name in FOR_PEOPLE:
            if name in self._base.files:
                self._remote.copy(_object(name, self._base.files[name][0]), name)
        for name in self._remote.names():
            if name.startswith(f"{_DATA}/") and name not in kept:
                self._remote.remove(name)

    def show(self, name: str) -> None:
        """Put a local file there for people, without being the owner. Raises `ResourceError`."""
        self._remote.write(name, (self.local / name).read_bytes())

    def withdraw(self) -> None:
        """Remove a run that has recorded nothing yet; one that has stays. Raises `ResourceError`."""
        if self._base.files.keys() <= {"config.json", "environment.json"}:
            self._remote.remove(MANIFEST)
            for name, (sha256, _) in self._base.files.items():
                self._remote.remove(_object(name, sha256))
            self._base = Manifest()
            (self.local / KNOWN).unlink(missing_ok=True)

    def _known(self) -> Manifest:
        """The manifest that the local folder was last equal to, or ahead of."""
        try:
            return Manifest.decode((self.local / KNOWN).read_bytes(), KNOWN)
        except (OSError, CheckpointError):
            return Manifest()

    def _names(self) -> list[str]:
        """The local files that belong to the run: no hidden ones, and no notes of others."""
        paths = (path.relative_to(self.local) for path in sorted(self.local.rglob("*")) if path.is_file() and not path.is_symlink())
        return [path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts) and path.name not in NOTES]

    def _is_here(self, name: str, sha256: str, size: int) -> bool:
        path = self.local / name
        return path.is_file() and path.stat().st_size == size and self._digest(name) == sha256

    def _digest(self, name: str) -> str:
        """The sha-256 of a local file, computed again when its size or time has changed."""
        path = self.local / name
        status = path.stat()
        if self._digests.get(name, ((0, 0), ""))[0] != (status.st_size, status.st_mtime_ns):
            self._digests[name] = (status.st_size, status.st_mtime_ns), hashlib.sha256(path.read_bytes()).hexdigest()
        return self._digests[name][1]

    def _shown(self, name: str) -> str:
        return redacted(join(self.uri.partition("?")[0], name))


def leave_note(uri: str, name: str, data: bytes) -> None:
    """Put one of `NOTES` beside a run at a URI, which may have another owner. Raises `ResourceError`."""
    assert name in NOTES
    Remote(uri).write(name, data)


def _object(name: str, sha256: str) -> str:
    """Under which name a file with this content lies at the URI."""
    return f"{_DATA}/{name}.{sha256[:16]}"
