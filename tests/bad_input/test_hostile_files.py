"""Files of a run that somebody else has written: of the wrong shape, sealed anew, with headers that lie. All are refused in words."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raydd import artifact, checkpoint, sealed
from tests.commands import raydd

DEEP = "[" * 100_000
SHAPES = ("[]", "{}", '"x"', "7", "null", DEEP, '{"config": [], "execution": 3, "resumed": 5}')


def resealed(path: Path, kind: str, version: int, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the metadata of a sealed file, and give it the seal that belongs to them."""
    tensors, metadata = sealed.read(path, kind, version)
    path.write_bytes(sealed.packed(kind, version, tensors, change(metadata)))


def use(*commands: tuple[str | Path, ...]) -> None:
    """Every command ends in words, or does not mind; none ends in a traceback."""
    for command in commands:
        outcome = raydd(*command)
        assert outcome.code in (0, 2) and (outcome.code == 0 or outcome.refusal())


@pytest.mark.parametrize("name", ["config.json", "environment.json", "result.json", "metrics.jsonl", "evaluations.jsonl", "faults.jsonl"])
@pytest.mark.usefixtures("no_report")
def test_json_of_another_shape(name: str, run_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raydd.report.page.drawings", lambda run: {})  # figures take longer than all the rest
    for text in SHAPES:
        (run_copy / name).write_text(text + "\n")
        use(("report", run_copy), ("distill", "--resume", run_copy))


@pytest.mark.parametrize("name", ["classes", "dataset", "fingerprint", "config", "step", "rule", "versions", "decode"])
def test_result_with_metadata_of_another_type(name: str, run_copy: Path, tmp_path: Path) -> None:
    path = run_copy / "synthetic.safetensors"
    for value in (None, [], 7, {}, "x", [7] * 10):
        whole = path.read_bytes()
        resealed(path, artifact.KIND, artifact.FORMAT, lambda metadata, value=value: {**metadata, name: value})
        use(
            ("export", path, "--to", "dc", tmp_path / "out"),
            *([("evaluate", path, "--nets", "1", "--epochs", "1")] if value in (None, 7) else []),
        )
        path.write_bytes(whole)


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("name", ["seconds", "pending", "rounding", "stage_hashes", "links"])
def test_checkpoint_with_another_state(name: str, run_copy: Path) -> None:
    paths = list((run_copy / "checkpoints").iterdir())
    whole = {path: path.read_bytes() for path in paths}
    for value in (None, [3], 7, {}, "x"):
        for path in paths:
            path.write_bytes(whole[path])
            change = lambda metadata, value=value: {**metadata, "state": {**metadata["state"], name: value}}  # noqa: E731
            resealed(path, checkpoint.KIND, checkpoint.FORMAT, change)
        use(("distill", "--resume", run_copy))


def header(text: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 8,
        header(b"{}", 2**62),
        header(b"{}", 2**40),
        header(b"[1, 2]"),
        header(b'{"__metadata__": 7}'),
        header(json.dumps({"__metadata__": {"kind": artifact.KIND, "format": "2", "metadata": DEEP, "sha256": "0"}}).encode()),
        header(DEEP.encode()),
    ],
)
def test_headers_that_lie(content: bytes, run_copy: Path, tmp_path: Path) -> None:
    """A length beyond the file, or any other, makes nothing be allocated."""
    file = run_copy / "synthetic.safetensors"
    file.write_bytes(content)
    for path in (run_copy / "checkpoints").iterdir():
        path.write_bytes(content)
    for command in (("evaluate", file), ("export", run_copy, "--to", "png", tmp_path / "out")):
        assert str(file) in raydd(*command).refusal()
    assert "step_00000004.safetensors" in raydd("distill", "--resume", run_copy).refusal()


def test_class_names_with_paths(run_copy: Path, tmp_path: Path) -> None:
    """An exported folder for each class stays inside of what is exported."""
    path = run_copy / "synthetic.safetensors"
    names = ["../../up", "/tmp/raydd-up", "..", ".", "a/b", "con", "", "x" * 300, "a\\..\\b", "plain"]
    resealed(path, artifact.KIND, artifact.FORMAT, lambda metadata: {**metadata, "classes": names})
    assert raydd("export", path, "--to", "png", tmp_path / "a" / "b" / "out").code == 0
    made = [made.relative_to(tmp_path).parts[:3] for made in tmp_path.rglob("*.png") if "run" not in made.relative_to(tmp_path).parts]
    assert set(made) == {("a", "b", "out")} and not Path("/tmp/raydd-up").exists()
