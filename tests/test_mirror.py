"""The copy of a run at a URI, without distilling anything: the files are made up. The storage is a folder, which allows damage."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raydd.config import Config, Execution
from raydd.errors import CheckpointError, ConfigError, ResourceError
from raydd.files import atomic_write_bytes, read_json
from raydd.mirror import MANIFEST, Manifest, Mirror, leave_note
from raydd.ownership import TakenOver
from raydd.remote import Remote
from raydd.runfolder import RunFolder
from tests.commands import contents


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A URI that is a folder, and machines whose working folders `on` tells apart."""
    monkeypatch.setattr("raydd.runfolder.PATIENCE", 0.0)
    (tmp_path / "there").mkdir()
    return f"file://{tmp_path}/there/run"


@pytest.fixture
def on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    return lambda machine: monkeypatch.setenv("RAYDD_CACHE", str(tmp_path / machine))


def there(tmp_path: Path) -> Path:
    return tmp_path / "there" / "run"


def quiet(report: dict[str, Any]) -> None:
    """Nobody listens."""


def advance(folder: RunFolder, step: int) -> None:
    """A checkpoint after so many steps, as a session writes it."""
    folder.append({"step": step - 1})
    atomic_write_bytes(folder.checkpoints / f"step_{step:08d}.safetensors", f"state {step}".encode())
    for old in sorted(folder.checkpoints.iterdir())[:-2]:
        old.unlink()
    folder.publish(quiet)


def begun(place: str, steps: int = 3) -> RunFolder:
    folder = RunFolder.create(place, Config(), Execution(run=place))
    for step in range(1, steps + 1):
        advance(folder, step)
    return folder


def visible(folder: RunFolder) -> dict[str, bytes]:
    return {name: data for name, data in contents(folder.path).items() if not name.startswith(".")}


def test_another_machine_gets_what_was_there(place: str, on: Callable[[str], None], tmp_path: Path) -> None:
    on("one")
    first = begun(place)
    before = visible(first)
    assert first.path != there(tmp_path) and "checkpoints/step_00000003.safetensors" in before
    first.close()
    on("two")
    assert visible(RunFolder.view(place)) == before
    with RunFolder.open(place) as second:
        assert visible(second) == before and second.path != first.path and second.settings()[1].run == place
        advance(second, 4)
        after = visible(second)
    on("one")
    with RunFolder.open(place) as third:  # which stands behind
        assert visible(third) == after


def test_nothing_is_left_that_the_manifest_does_not_name(place: str, on: Callable[[str], None], tmp_path: Path) -> None:
    on("one")
    folder = begun(place, 6)
    atomic_write_bytes(folder.report, b"<html>")
    folder.publish(quiet, last=True)
    folder.close()
    names = set(contents(there(tmp_path))) - {"owner.json", MANIFEST, "report.html"}
    manifest = Manifest.decode((there(tmp_path) / MANIFEST).read_bytes(), "")
    assert names == {f"data/{name}.{sha256[:16]}" for name, (sha256, _) in manifest.files.items()}
    assert [name for name in manifest.files if "step_" in name] == [f"checkpoints/step_0000000{step}.safetensors" for step in (5, 6)]
    assert (there(tmp_path) / "report.html").read_bytes() == b"<html>"


def test_killed_between_any_two_writes(place: str, on: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever write of an upload is the last one that arrives, what is there is the state before, or the one after, and whole."""
    on("one")
    folder, whole = begun(place, 2), []
    for allowed in range(20):
        whole.append(visible(folder))
        left = iter(range(allowed))

        class Dying(Remote):
            def write(self, name: str, data: bytes, left: Any = left) -> None:
                if next(left, None) is None:
                    raise ResourceError("gone")
                super().write(name, data)

        folder._mirror._remote.__class__ = Dying
        advance(folder, 3 + allowed)
        folder._mirror._remote.__class__ = Remote
        whole.append(visible(folder))
        on(f"other-{allowed}")
        assert visible(RunFolder.view(place)) in whole
        on("one")
        folder.publish(quiet)
    folder.close()
    assert len(whole) == 40


def test_upload_that_fails_is_told_and_made_good(place: str, on: Callable[[str], None], tmp_path: Path) -> None:
    on("one")
    folder = begun(place)
    heard: list[str] = []

    def hear(report: dict[str, Any]) -> None:
        heard.append(f"{report['phase']}: {report['text']}")

    aside = tmp_path / "aside"
    there(tmp_path).parent.rename(aside)
    there(tmp_path).parent.write_text("no folder")
    folder.append({"step": 3})
    folder.publish(hear)
    assert heard[0].startswith("warning: ") and "cannot be" in heard[0] and "next checkpoint tries again" in heard[0]
    there(tmp_path).parent.unlink()
    aside.rename(there(tmp_path).parent)
    folder.publish(hear)
    assert heard[1:] == [f"note: {place} is up to date again."]
    after = visible(folder)
    folder.close()
    on("two")
    assert visible(RunFolder.view(place)) == after


def test_last_upload_that_fails_says_where_everything_is(
    place: str, on: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raydd.runfolder.LAST_PATIENCE", 0.0)
    on("one")
    folder = begun(place)
    shutil.rmtree(there(tmp_path).parent)
    there(tmp_path).parent.write_text("no folder")
    with pytest.raises(ResourceError, match=rf"(?s)cannot be .*Nothing is lost: all of the run is in {folder.path}.*--resume {place}"):
        folder.publish(quiet, last=True)
    there(tmp_path).parent.unlink()
    there(tmp_path).parent.mkdir()
    folder.close()
    with pytest.raises(ConfigError, match=rf"holds nothing, and {folder.path}.* a whole one. --resume {place} uploads it"):
        RunFolder.create(place, Config(), Execution())
    with RunFolder.open(place) as again:
        again.publish(quiet, last=True)
    on("two")
    assert visible(RunFolder.view(place)) == visible(folder)


def test_tried_again_for_a_while(place: str, on: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    on("one")
    folder, slept = begun(place), []
    failures = iter([ResourceError("busy")] * 2)

    class Busy(Remote):
        def write(self, name: str, data: bytes) -> None:
            if (error := next(failures, None)) is not None:
                raise error
            super().write(name, data)

    monkeypatch.setattr("raydd.mirror.time.sleep", slept.append)
    folder._mirror._remote.__class__ = Busy
    folder.append({"step": 3})
    folder._mirror.upload(patience=30)
    assert slept == [1.0, 2.0]
    folder.close()


def test_used_places_are_refused(place: str, on: Callable[[str], None], tmp_path: Path) -> None:
    on("one")
    begun(place).close()
    on("two")
    with pytest.raises(ConfigError, match=f"--run={place} already holds a run. Carry on with --resume {place}"):
        RunFolder.create(place, Config(), Execution())
    (tmp_path / "there" / "photos").mkdir()
    (tmp_path / "there" / "photos" / "mine.jpg").touch()
    with pytest.raises(ConfigError, match=r"is not empty and not a run \(it holds mine.jpg\)"):
        RunFolder.create(f"file://{tmp_path}/there/photos", Config(), Execution())
    for use in (RunFolder.open, RunFolder.view):
        with pytest.raises(ConfigError, match="nothing is not a run"):
            use(f"file://{tmp_path}/there/nothing")
    assert not (tmp_path / "there" / "nothing").exists()


def test_refused_run_leaves_nothing(place: str, on: Callable[[str], None], tmp_path: Path) -> None:
    on("one")
    folder = RunFolder.create(place, Config(), Execution())
    folder.close()
    folder.withdraw()
    assert set(contents(there(tmp_path))) == {"owner.json"} and not folder.path.exists()
    with begun(place):
        pass


def test_two_processes_at_once(place: str, on: Callable[[str], None], tmp_path: Path) -> None:
    """On one machine by the local lock, from two by the owner's record; one that was taken over writes nothing more."""
    on("one")
    first = begun(place)
    with pytest.raises(ResourceError, match="is being written by another process"):
        RunFolder.open(place)
    on("two")
    with pytest.raises(ResourceError, match="is being written by another process"):
        RunFolder.open(place)
    assert RunFolder.view(place).path != first.path  # looking is free
    owner = there(tmp_path) / "owner.json"
    owner.write_text(json.dumps({**json.loads(owner.read_text()), "name": "somebody", "host": "else"}))
    before = contents(there(tmp_path))
    first.append({"step": 3})
    with pytest.raises(TakenOver, match="taken over by else"):
        first.publish(quiet)
    first.close()
    after = contents(there(tmp_path))
    assert {name: after[name] for name in before} == before


def altered(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1] + b"?")


@pytest.mark.parametrize("damage", [altered, Path.unlink])
def test_damaged_file_is_refused(place: str, on: Callable[[str], None], tmp_path: Path, damage: Callable[[Path], None]) -> None:
    on("one")
    begun(place).close()
    (victim,) = (there(tmp_path) / "data").glob("metrics.jsonl.*")
    damage(victim)
    on("two")
    with pytest.raises(CheckpointError, match=r"data/metrics.jsonl.* (was altered|is missing)(.|\n)*Restore"):
        RunFolder.open(place)
    with pytest.raises(CheckpointError):
        RunFolder.view(place)


def test_damaged_checkpoint_is_left_out(place: str, on: Callable[[str], None], tmp_path: Path) -> None:
    """The one before it is used; without any, the run is refused."""
    on("one")
    begun(place).close()
    newest, before = sorted((there(tmp_path) / "data" / "checkpoints").iterdir(), reverse=True)
    altered(newest)
    on("two")
    with RunFolder.open(place) as folder:
        assert [path.name for path in folder.checkpoints.iterdir()] == ["step_00000002.safetensors"]
        assert "step_00000003" in folder.told[0] and "was altered" in folder.told[0] and "the checkpoint before" in folder.told[0].lower()
    altered(before)
    on("three")
    with pytest.raises(CheckpointError, match="step_00000002"):
        RunFolder.open(place)


def changed(**values: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda manifest: {**manifest, **values}


GOOD = {"sha256": "0" * 64, "size": 1}


@pytest.mark.parametrize(
    "change",
    [
        changed(files={"../../outside": GOOD}),
        changed(files={"/etc/outside": GOOD}),
        changed(files={"checkpoints/../../outside": GOOD}),
        changed(files={".lock": GOOD}),
        changed(files={"a/.hidden/b": GOOD}),
        changed(files={"a\\..\\b": GOOD}),
        changed(files={"a": {"sha256": "../../../../" + "0" * 52, "size": 1}}),
        changed(files={"a": {"sha256": "0" * 64, "size": -1}}),
        changed(files=["a"]),
        changed(files=None),
        changed(generation="many"),
        changed(serial=True),
        changed(format=2),
        lambda manifest: [manifest],
        lambda manifest: {},
    ],
)
def test_hostile_manifest(place: str, on: Callable[[str], None], tmp_path: Path, change: Callable[[Any], Any]) -> None:
    on("one")
    begun(place).close()
    path = there(tmp_path) / MANIFEST
    path.write_text(json.dumps(change(read_json(path))))
    on("two")
    with pytest.raises(CheckpointError, match=MANIFEST):
        RunFolder.view(place)
    assert not [path for path in (tmp_path / "two").rglob("*") if path.is_file()]


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000])
def test_manifest_that_is_none(place: str, on: Callable[[str], None], tmp_path: Path, text: str) -> None:
    on("one")
    begun(place).close()
    (there(tmp_path) / MANIFEST).write_text(text)
    with pytest.raises(CheckpointError, match="is no manifest of a run"):
        RunFolder.view(place)


def test_note_of_somebody_else(place: str, on: Callable[[str], None]) -> None:
    on("one")
    begun(place).close()
    leave_note(place, "stopped.json", b"{}")
    on("two")
    with RunFolder.open(place) as folder:
        assert (folder.path / "stopped.json").read_bytes() == b"{}"
        folder.publish(quiet)
        assert "stopped.json" not in Mirror(place, folder.path).manifest().files


def test_new_run_at_the_place_of_an_old_one(place: str, on: Callable[[str], None], tmp_path: Path) -> None:
    """What a machine remembers of the old one, though of a higher number, does not count."""
    on("one")
    begun(place, 6).close()
    shutil.rmtree(there(tmp_path))
    on("two")
    with begun(place, 1) as new:
        whole = visible(new)
    on("one")
    assert visible(RunFolder.view(place)) == whole
