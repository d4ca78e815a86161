"""Who writes a run at a URI: one process at a time, although an object store has no locks.

The owner keeps `owner.json` beside the run and writes a higher number into it every few seconds. Whoever wants to take over from an owner
that has not said goodbye waits until that number has stood still for some time; an owner on the same machine whose process is gone
needs no wait. A new owner has a higher generation. An owner that finds another's name there stops writing, with an error.

Writes of an object store are not conditional here, so two processes that take over within the same second both believe it, until the
next sign of life of one of them.
"""

import contextlib
import json
import os
import platform
import secrets
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from raydd.errors import ConfigError, ResourceError
from raydd.places import redacted
from raydd.remote import Remote
from raydd.schema import from_dict

OWNER = "owner.json"
BEAT = 10.0
"""Seconds between two signs of life."""
SILENCE = 3.5 * BEAT
"""Seconds without any after which an owner counts as dead."""


class TakenOver(ResourceError):
    """Another process writes the run now; this one has to stop."""


@dataclass(frozen=True)
class Owner:
    """The content of owner.json. `space` tells machines with the same name, and containers, apart."""

    generation: int
    name: str = ""
    host: str = ""
    space: str = ""
    pid: int = 0
    started: float = 0.0
    beat: int = 0
    released: bool = False

    @classmethod
    def here(cls, generation: int) -> "Owner":
        """This process as a new owner."""
        return cls(generation, secrets.token_hex(8), platform.node(), _space(), os.getpid(), psutil.Process().create_time())

    @property
    def who(self) -> str:
        """For messages."""
        return f"{self.host}, pid {self.pid}"

    def is_gone(self) -> bool:
        """Whether its process is known to be over: it said so, or it was one of this machine and is not there any more."""
        if self.released:
            return True
        if (self.host, self.space) != (platform.node(), _space()):
            return False
        try:
            return abs(psutil.Process(self.pid).create_time() - self.started) > 5  # the clock may have been set
        except psutil.NoSuchProcess:
            return True


class Claim:
    """This process's ownership of a run at a URI: make it with `Claim.take`, `check` it before writing, `release` it."""

    def __init__(self, remote: Remote, owner: Owner):
        self._remote, self.owner = remote, owner
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._live, name="raydd-owner", daemon=True)

    @classmethod
    def take(cls, remote: Remote, at_least: int, tell: Callable[[str], None] = lambda text: None) -> "Claim":
        """Become the owner, with a generation above `at_least` and above the last owner's.

        Raises `ResourceError` when another process is, and when the storage cannot be written.
        """
        before = read_owner(remote)
        if before is not None and not before.is_gone():
            _await_silence(remote, before, tell)
        claim = cls(remote, Owner.here(max(at_least, before.generation if before else 0) + 1))
        claim._write()
        claim.check()
        claim._thread.start()
        return claim

    def check(self) -> None:
        """Raise `TakenOver` when another process has taken the run over, `ResourceError` when that cannot be found out."""
        found = read_owner(self._remote)
        if found is None or found.name != self.owner.name:
            other = f"by {found.who}" if found else "or removed"
            raise TakenOver(
                f"{redacted(self._remote.uri)} was taken over {other}; this process ({self.owner.who}) writes nothing there any more. "
                "Only one process can carry on with a run."
            )

    def release(self) -> None:
        """Say goodbye, as far as the storage can be reached. May be called twice."""
        if self._over.is_set():
            return
        self._over.set()
        with contextlib.suppress(ResourceError), self._lock:
            self.check()
            self.owner = replace(self.owner, released=True)
            self._write()

    def _write(self) -> None:
        self._remote.write(OWNER, (json.dumps(asdict(self.owner), indent=1) + "\n").encode())

    def _live(self) -> None:
        while not self._over.wait(BEAT):
            # The next upload tells of what is wrong here.
            with contextlib.suppress(ResourceError), self._lock:
                self.check()
                if not self._over.is_set():
                    self.owner = replace(self.owner, beat=self.owner.beat + 1)
                    self._write()


def read_owner(remote: Remote) -> Owner | None:
    """The owner on record; one that cannot be understood is nobody."""
    data = remote.read(OWNER)
    try:
        values: Any = json.loads(data) if data is not None else None
        return from_dict(Owner, values) if isinstance(values, dict) else None
    except (ValueError, RecursionError, ConfigError, TypeError):
        return None


def _await_silence(remote: Remote, owner: Owner, tell: Callable[[str], None]) -> None:
    """Return once an owner has given no sign of life for `SILENCE` seconds. Raises `ResourceError` at the first one."""
    held = f"{redacted(remote.uri)} is being written by another process ({owner.who})"
    if (owner.host, owner.space) == (platform.node(), _space()):
        raise ResourceError(f"{held}. Wait for it or stop it.")
    tell(f"The last process of this run ({owner.who}) has not said goodbye; waiting {SILENCE:.0f} s for a sign of life.")
    end = time.monotonic() + SILENCE
    while time.monotonic() < end:
        time.sleep(min(2.0, SILENCE / 5))
        now = read_owner(remote)
        if now is None or now.released:
            return
        if (now.name, now.beat) != (owner.name, owner.beat):
            raise ResourceError(f"{held}. Wait for it or stop it.")


def _space() -> str:
    """What tells apart the process numbers of machines with one name: where they are counted, and since which start of the machine."""
    try:
        return f"{os.readlink('/proc/self/ns/pid')} {Path('/proc/sys/kernel/random/boot_id').read_text().strip()}"
    except OSError:  # another system than Linux
        return str(uuid.getnode())
