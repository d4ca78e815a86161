"""One process at a time writes a run at a URI. The storage is a folder here; time is shortened."""

import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from raydd import ownership
from raydd.errors import ResourceError
from raydd.ownership import OWNER, Claim, Owner, TakenOver, read_owner
from raydd.remote import Remote


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Remote]:
    monkeypatch.setattr(ownership, "BEAT", 0.02)
    monkeypatch.setattr(ownership, "SILENCE", 0.2)
    yield Remote(f"file://{tmp_path}")


def leave(remote: Remote, owner: Owner) -> None:
    remote.write(OWNER, json.dumps(asdict(owner)).encode())


def elsewhere(**changes: object) -> Owner:
    return replace(Owner.here(3), **{"host": "another", "name": "other", **changes})


def test_generations_count_up(remote: Remote) -> None:
    first = Claim.take(remote, 4)
    assert first.owner.generation == 5
    first.release()
    first.release()
    assert read_owner(remote).released
    second = Claim.take(remote, 0)
    assert second.owner.generation == 6
    second.release()


def test_living_process_of_this_machine_is_refused_at_once(remote: Remote) -> None:
    claim = Claim.take(remote, 0)
    with pytest.raises(ResourceError, match=f"is being written by another process .*pid {os.getpid()}"):
        Claim.take(remote, 0)
    claim.check()
    claim.release()


def test_dead_process_of_this_machine_is_followed_at_once(remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership, "SILENCE", 1000.0)
    leave(remote, replace(Owner.here(3), pid=2**22 - 1))
    Claim.take(remote, 0).release()
    leave(remote, replace(Owner.here(3), started=1.0))  # the number of its process is another's now
    Claim.take(remote, 0).release()


def test_silent_owner_elsewhere_is_waited_for(remote: Remote) -> None:
    leave(remote, elsewhere())
    told: list[str] = []
    claim = Claim.take(remote, 0, told.append)
    assert claim.owner.generation == 4 and "another, pid" in told[0]
    claim.release()
    leave(remote, elsewhere(released=True))
    Claim.take(remote, 0, told.append).release()
    assert len(told) == 1


def test_living_owner_elsewhere_is_refused(remote: Remote) -> None:
    leave(remote, elsewhere())
    with pytest.raises(ResourceError, match="is being written by another process .another"):
        Claim.take(remote, 0, lambda text: leave(remote, elsewhere(beat=1)))
    assert read_owner(remote).name == "other"


def test_owner_gives_signs_of_life(remote: Remote) -> None:
    claim, end = Claim.take(remote, 0), time.monotonic() + 20
    while read_owner(remote).beat < 2:
        assert time.monotonic() < end
        time.sleep(0.01)
    claim.release()


def test_owner_that_was_followed_stops(remote: Remote) -> None:
    claim = Claim.take(remote, 0)
    leave(remote, elsewhere())
    with pytest.raises(TakenOver, match="was taken over by another, pid .* writes nothing there any more"):
        claim.check()
    claim.release()
    assert read_owner(remote) == elsewhere(started=read_owner(remote).started)


@pytest.mark.parametrize("text", [b"", b"{", b"[1]", b'{"generation": "many"}', b'{"generation": 1, "else": 2}', b"[" * 100_000])
def test_damaged_record_is_nobodys(remote: Remote, text: bytes) -> None:
    remote.write(OWNER, text)
    assert read_owner(remote) is None
