"""Checkpoints: everything comes back, nothing damaged or foreign is used, and a failed write harms nothing."""

import errno
import os
import struct

import pytest
import torch

from raydd.checkpoint import Checkpoint, load_latest, save
from raydd.errors import CheckpointError, ResourceError

IDENTITY = {"config": "c0ffee", "shape": (4, 1, 2, 2)}


def tensors(step: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(4, 1, 2, 2, generator=generator)
    return {
        "images": images,
        "same_memory": images[1:3],
        "transposed": images.reshape(4, 4).T,
        "step_size": torch.tensor(0.01),
        "labels": torch.arange(4),
        "nothing": torch.zeros(0, 3),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "mask": torch.tensor([True, False]),
    }


def put(folder, *steps: int, **keywords) -> None:
    for step in steps:
        save(folder, step, tensors(step), {"step": step, "order": [3, 1], "nested": {"x": 0.1}}, IDENTITY, **keywords)


def same(found: Checkpoint, step: int) -> bool:
    expected = tensors(step)
    return found.step == step and found.tensors.keys() == expected.keys() and all(
        found.tensors[n].dtype == t.dtype and torch.equal(found.tensors[n], t) for n, t in expected.items()
    )  # fmt: skip


def test_everything_comes_back_bit_for_bit(tmp_path):
    path = save(tmp_path, 60, tensors(60), {"momentum": 0.1 + 0.2, "names": ["é"]}, IDENTITY)
    found = load_latest(tmp_path, IDENTITY)
    assert path.name == "step_00000060.safetensors" and found.path == path
    assert same(found, 60) and found.state == {"momentum": 0.1 + 0.2, "names": ["é"]} and found.warnings == []


def test_the_newest_by_number_is_used_and_k_are_kept(tmp_path):
    put(tmp_path, 0, 9, 10, 100, 123456789, keep=3)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "step_00000010.safetensors", "step_00000100.safetensors", "step_123456789.safetensors",
    ]  # fmt: skip
    assert same(load_latest(tmp_path, IDENTITY), 123456789)


def test_truncation_at_any_length_falls_back_to_the_one_before(tmp_path):
    put(tmp_path, 30, 60)
    newest = tmp_path / "step_00000060.safetensors"
    data = newest.read_bytes()
    for length in [0, 1, 7, 8, 9, 100, *range(200, len(data), 97), len(data) - 1]:
        newest.write_bytes(data[:length])
        found = load_latest(tmp_path, IDENTITY)
        assert same(found, 30), length
        assert len(found.warnings) == 1 and str(newest) in found.warnings[0] and "truncated" in found.warnings[0], length


def test_any_altered_byte_is_noticed(tmp_path):
    put(tmp_path, 30, 60)
    newest = tmp_path / "step_00000060.safetensors"
    data = newest.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    padding = len(data[8 : 8 + length]) - len(data[8 : 8 + length].rstrip(b" "))
    # All of the header but its padding, which means nothing, then all of the tensors.
    for place in [*range(0, 8 + length - padding, 3), *range(8 + length, len(data))]:
        altered = bytearray(data)
        altered[place] ^= 0x01
        newest.write_bytes(bytes(altered))
        found = load_latest(tmp_path, IDENTITY)
        assert found.step == 30 and str(newest) in found.warnings[0], place


def test_an_appended_byte_is_noticed(tmp_path):
    put(tmp_path, 30, 60)
    newest = tmp_path / "step_00000060.safetensors"
    newest.write_bytes(newest.read_bytes() + b"\0")
    assert load_latest(tmp_path, IDENTITY).step == 30


def test_another_runs_checkpoint_is_refused_by_name_and_difference(tmp_path):
    put(tmp_path, 30)
    save(tmp_path, 60, tensors(60), {}, {"config": "decaf", "shape": (4, 1, 2, 2)})
    found = load_latest(tmp_path, IDENTITY)
    assert same(found, 30)
    assert "step_00000060.safetensors" in found.warnings[0]
    assert "belongs to another run (config is decaf there, c0ffee here)" in found.warnings[0]


def test_a_renamed_checkpoint_is_refused(tmp_path):
    put(tmp_path, 30, 60)
    os.rename(tmp_path / "step_00000060.safetensors", tmp_path / "step_00000090.safetensors")
    found = load_latest(tmp_path, IDENTITY)
    assert same(found, 30) and "was renamed; it holds step 60" in found.warnings[0]


def test_foreign_files_are_no_checkpoints(tmp_path):
    from safetensors.torch import save_file

    put(tmp_path, 30)
    save_file({"x": torch.ones(2)}, tmp_path / "step_00000040.safetensors")
    save_file({"x": torch.ones(2)}, tmp_path / "step_00000050.safetensors", metadata={"kind": "other", "format": "1"})
    (tmp_path / "step_00000060.safetensors").write_bytes(b"PK\x03\x04 a zip archive, perhaps" * 4)
    (tmp_path / "step_final.safetensors").write_bytes(b"not looked at")
    found = load_latest(tmp_path, IDENTITY)
    assert same(found, 30) and [w.split(":")[0][-20:] for w in found.warnings] == [
        "00000060.safetensors", "00000050.safetensors", "00000040.safetensors",
    ]  # fmt: skip


def test_a_newer_format_is_refused(tmp_path, monkeypatch):
    put(tmp_path, 30)
    monkeypatch.setattr("raydd.checkpoint.FORMAT", 3)
    put(tmp_path, 60)
    monkeypatch.undo()
    assert "has format 3; this raydd reads format 2" in load_latest(tmp_path, IDENTITY).warnings[0]


def test_none_usable_lists_each_file_and_reason(tmp_path):
    put(tmp_path, 30, 60)
    for name in ("step_00000030.safetensors", "step_00000060.safetensors"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-5])
    with pytest.raises(CheckpointError) as caught:
        load_latest(tmp_path, IDENTITY)
    lines = str(caught.value).splitlines()
    assert "no usable checkpoint" in lines[0]
    assert [("00000060" in line or "00000030" in line) and "truncated" in line for line in lines[1:]] == [True, True]


def test_an_empty_or_absent_folder_says_so(tmp_path):
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(CheckpointError, match=r"holds no checkpoint\. Start the run anew"):
            load_latest(folder, IDENTITY)


def test_a_refused_later_checkpoint_does_not_push_out_good_ones(tmp_path):
    put(tmp_path, 30, 60, 90)
    (tmp_path / "step_00000090.safetensors").write_bytes(b"damaged")
    put(tmp_path, 70, keep=2)
    assert same(load_latest(tmp_path, IDENTITY), 70)
    assert sorted(p.name[5:13] for p in tmp_path.iterdir()) == ["00000060", "00000070", "00000090"]


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_crash_while_saving_keeps_the_previous(tmp_path, monkeypatch, call):
    class Crash(BaseException):
        pass

    put(tmp_path, 30, keep=1)
    monkeypatch.setattr(os, call, lambda *_: (_ for _ in ()).throw(Crash))
    with pytest.raises(Crash):
        put(tmp_path, 60, keep=1)
    monkeypatch.undo()
    found = load_latest(tmp_path, IDENTITY)
    assert same(found, 30) and found.warnings == []


def test_a_full_disk_names_path_and_bytes_and_keeps_the_previous(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    put(tmp_path, 30, keep=1)
    size = (tmp_path / "step_00000030.safetensors").stat().st_size
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError) as caught:
        put(tmp_path, 60, keep=1)
    monkeypatch.undo()
    assert "step_00000060.safetensors" in str(caught.value) and f"{size:,} bytes" in str(caught.value)
    assert same(load_latest(tmp_path, IDENTITY), 30)
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000030.safetensors"]
