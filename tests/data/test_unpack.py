"""Archives that lead out of their folder, and files that would run code, are refused before anything is written or run."""

import io
import pickle
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torchvision.datasets as official

from raydd.config import DataConfig
from raydd.data import load
from raydd.data.unpack import unpack
from raydd.errors import DataError
from tests.data.test_folder import write_tiny

OUTSIDE = ("../outside", "/tmp/raydd-outside", "a/../../outside", "..\\outside")


def tar(path: Path, *members: tuple[str, dict[str, Any]]) -> Path:
    with tarfile.open(path, "w:gz") as file:
        for name, how in members:
            info = tarfile.TarInfo(name)
            for field, value in how.items():
                setattr(info, field, value)
            info.size = 3 if info.isreg() else 0
            file.addfile(info, io.BytesIO(b"abc") if info.isreg() else None)
    return path


def zipped(path: Path, *members: tuple[str, int]) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, mode in members:
            info = zipfile.ZipInfo(name)
            info.filename = name
            info.external_attr = mode << 16
            file.writestr(info, "abc")
    return path


def refused(archive: Path, words: str) -> None:
    into = archive.parent / "into"
    into.mkdir()
    with pytest.raises(DataError, match=words):
        unpack(archive, into)
    assert not list(into.iterdir()) and not (archive.parent / "outside").exists() and not Path("/tmp/raydd-outside").exists()


@pytest.mark.parametrize("name", OUTSIDE)
def test_members_that_lead_outside(tmp_path: Path, name: str) -> None:
    (tmp_path / "zip").mkdir()
    refused(tar(tmp_path / "a.tar.gz", ("fine", {}), (name, {})), "outside of the folder")
    refused(zipped(tmp_path / "zip" / "a.zip", ("fine", 0), (name, 0)), "outside of the folder")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_members_that_are_no_files(tmp_path: Path, kind: bytes) -> None:
    refused(tar(tmp_path / "a.tgz", ("fine", {}), ("link", {"type": kind, "linkname": "/etc/passwd"})), "no plain file or folder")


def test_link_in_a_zip(tmp_path: Path) -> None:
    refused(zipped(tmp_path / "a.zip", ("link", stat.S_IFLNK | 0o777)), "no plain file or folder")


def test_ordinary_archives(tmp_path: Path) -> None:
    for archive in (tar(tmp_path / "a.tar.gz", ("d/e", {})), zipped(tmp_path / "a.zip", ("d/e", stat.S_IFREG | 0o644), ("d/f", 0))):
        into = tmp_path / f"into-{archive.suffix}"
        into.mkdir()
        unpack(archive, into)
        assert (into / "d" / "e").read_bytes() == b"abc"


def test_tiny_imagenet_that_leads_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_folder: Callable[..., Path]) -> None:
    root = tmp_path / "root"
    root.mkdir()
    monkeypatch.setenv("RAYDD_DATA", str(root))
    tar(root / "tiny-imagenet-200.tar.gz", ("tiny-imagenet-200/train/x", {}), ("../escaped", {}))
    with pytest.raises(DataError, match="outside of the folder"):
        load(DataConfig(source="tiny-imagenet"))
    assert not (tmp_path / "escaped").exists()
    (root / "tiny-imagenet-200.tar.gz").unlink()
    top = write_tiny(root / "tiny-imagenet-200", write_folder)
    annotations = top / "val" / "val_annotations.txt"
    first = annotations.read_text().splitlines()[0].split("\t")
    annotations.write_text("\t".join([f"../images/{first[0]}", *first[1:]]) + "\n")
    with pytest.raises(DataError, match="line 1: needs the name of a file in images/"):
        load(DataConfig(source="tiny-imagenet"))


class Bomb:
    """Runs code when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def test_pickles_that_are_not_the_official_ones_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CIFAR's official files are pickles: nothing is unpickled whose checksum is not theirs."""
    monkeypatch.setenv("RAYDD_DATA", str(tmp_path))
    mark = tmp_path / "ran"
    for reader, name in ((official.CIFAR10, "cifar10"), (official.CIFAR100, "cifar100")):
        folder = tmp_path / reader.base_folder
        folder.mkdir()
        for part in (*reader.train_list, *reader.test_list, [reader.meta["filename"]]):
            (folder / part[0]).write_bytes(pickle.dumps(Bomb(mark)))
        with pytest.raises(DataError, match="are damaged"):
            load(DataConfig(source=name))
    assert not mark.exists()
    pickle.loads(pickle.dumps(Bomb(mark)))
    assert mark.exists()  # so it would have shown
