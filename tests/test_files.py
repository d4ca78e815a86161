"""Writing: whole or not at all, lines that stay readable, errors that name the file and its size."""

import errno
import os

import pytest

from raydd import files
from raydd.errors import CheckpointError, ResourceError


class Crash(BaseException):
    """Stands for the process dying: no handler of Exception may see it."""


def test_write_replaces_and_leaves_no_temporary(tmp_path):
    target = tmp_path / "new" / "a.bin"
    files.atomic_write_bytes(target, b"one")
    files.atomic_write_bytes(target, b"two")
    assert target.read_bytes() == b"two"
    assert [p.name for p in target.parent.iterdir()] == ["a.bin"]


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_crash_leaves_the_old_file(tmp_path, monkeypatch, call):
    target = tmp_path / "a.bin"
    files.atomic_write_bytes(target, b"old")
    monkeypatch.setattr(os, call, lambda *_: (_ for _ in ()).throw(Crash))
    with pytest.raises(Crash):
        files.atomic_write_bytes(target, b"new")
    assert target.read_bytes() == b"old"


def test_the_file_is_synced_before_and_the_folder_after_the_rename(tmp_path, monkeypatch):
    order, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append("folder" if os.path.isdir(f"/proc/self/fd/{fd}") else "file"), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append("rename"), replace(a, b)))
    files.atomic_write_bytes(tmp_path / "a.bin", b"x")
    assert order == ["file", "rename", "folder"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_names_path_and_bytes(tmp_path, monkeypatch, code):
    target = tmp_path / "a.bin"
    files.atomic_write_bytes(target, b"old")

    def full(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match=r"No space left for .*a\.bin \(1,234 bytes\)"):
        files.atomic_write_bytes(target, b"x" * 1234)
    assert target.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_a_real_full_device_is_reported(tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    link = tmp_path / "lines.jsonl"
    link.symlink_to("/dev/full")
    with pytest.raises(ResourceError, match=r"lines\.jsonl \(11 bytes\)"):
        files.append_line(link, {"step": 1})


def test_lines_come_back_and_not_finite_becomes_null(tmp_path):
    path = tmp_path / "m.jsonl"
    files.append_line(path, {"step": 0, "loss": float("nan"), "seconds": {"total": float("inf")}})
    files.append_line(path, {"step": 1, "list": (1, 2.5)})
    assert files.read_lines(path) == [{"step": 0, "loss": None, "seconds": {"total": None}}, {"step": 1, "list": [1, 2.5]}]
    assert files.read_lines(tmp_path / "absent.jsonl") == []


@pytest.mark.parametrize("cut", range(1, 11))
def test_a_torn_last_line_is_left_out(tmp_path, cut):
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"step":0}\n{"step":1}\n'[:-cut])
    assert files.read_lines(path) == [{"step": 0}]


def test_a_damaged_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"step":0}\n{"ste\n{"step":2}\n')
    with pytest.raises(CheckpointError, match=r"m\.jsonl: line 2 is damaged"):
        files.read_lines(path)


def test_half_a_line_is_taken_back_when_the_disk_fills(tmp_path, monkeypatch):
    path = tmp_path / "m.jsonl"
    files.append_line(path, {"step": 0})
    real_open = open

    class Short:
        def __init__(self, *args, **keywords):
            self.file = real_open(*args, **keywords)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, data):
            return self.file.write(data[:3])

        def tell(self):
            return self.file.tell()

        def fileno(self):
            return self.file.fileno()

    monkeypatch.setattr("builtins.open", Short)
    with pytest.raises(ResourceError, match="No space left"):
        files.append_line(path, {"step": 1})
    monkeypatch.undo()
    assert path.read_bytes() == b'{"step":0}\n'
