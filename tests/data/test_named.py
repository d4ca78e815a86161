"""The named sets, with small stand-ins for the official archives."""

import contextlib
import gzip
import hashlib
import pickle
import shutil
import socket
import tarfile
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torchvision.datasets as official

from raydd.config import DataConfig
from raydd.data import load, named
from raydd.errors import DataError
from tests.data.test_folder import write_tiny


def test_digits_are_split_once_and_for_all():
    dataset = load(DataConfig())
    assert (len(dataset.train), len(dataset.test), dataset.shape) == (1297, 500, (1, 8, 8))
    assert np.bincount(dataset.test.labels).tolist() == [50] * 10
    assert np.bincount(dataset.train.labels).tolist() == [128, 132, 127, 133, 131, 132, 131, 129, 124, 130]
    assert dataset.train.images.max() == 255 and len(np.unique(dataset.train.images)) == 17


def test_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    def rows(images: np.ndarray) -> list[bytes]:
        return [image.tobytes() for image in images]

    dataset = load(DataConfig())
    ours = rows(dataset.train.images[:, 0]) + rows(dataset.test.images[:, 0])
    theirs = rows(np.rint(load_digits().images * 255 / 16).astype(np.uint8))
    assert sorted(ours) == sorted(theirs)


@pytest.fixture
def cifar_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A CIFAR-10 archive of 20 images in the official layout, in `tmp_path`, with checksums to match."""
    top, rng = tmp_path / "made" / official.CIFAR10.base_folder, np.random.default_rng(0)
    top.mkdir(parents=True)
    sums = {}
    for name, labels in {"data_batch_1": [*range(10)], "test_batch": [*range(10)], "batches.meta": None}.items():
        content = {"label_names": [f"class {c}" for c in range(10)]}
        if labels is not None:
            content = {"data": rng.integers(0, 256, (10, 3072), np.uint8), "labels": labels}
        (top / name).write_bytes(pickle.dumps(content))
        sums[name] = hashlib.md5((top / name).read_bytes()).hexdigest()
    archive = tmp_path / official.CIFAR10.filename
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(top, top.name)
    monkeypatch.setattr(official.CIFAR10, "train_list", [["data_batch_1", sums["data_batch_1"]]])
    monkeypatch.setattr(official.CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(official.CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": sums["batches.meta"]})
    monkeypatch.setattr(official.CIFAR10, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    shutil.rmtree(tmp_path / "made")
    return archive


def test_cifar_archive_is_unpacked_and_read(cifar_archive: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(named, "_answers", lambda url: pytest.fail("asked the network"))
    dataset = load(DataConfig(source="cifar10", root=str(cifar_archive.parent)))
    assert dataset.mean == (0.4914, 0.4822, 0.4465) and dataset.std == (0.2023, 0.1994, 0.2010)
    assert dataset.shape == (3, 32, 32) and dataset.train.labels.tolist() == list(range(10)) and dataset.classes[3] == "class 3"
    first = np.random.default_rng(0).integers(0, 256, (10, 3072), np.uint8)  # rows are red, green, blue planes
    assert np.array_equal(dataset.train.images, first.reshape(10, 3, 32, 32))
    cifar_archive.unlink()
    assert load(DataConfig(source="cifar10", root=str(cifar_archive.parent))).fingerprint == dataset.fingerprint


def test_grey_cifar_has_computed_statistics(cifar_archive: Path):
    dataset = load(DataConfig(source="cifar10", root=str(cifar_archive.parent), channels=1))
    assert dataset.mean == pytest.approx([dataset.train.images.mean() / 255])


def test_damaged_cifar_files(cifar_archive: Path):
    config = DataConfig(source="cifar10", root=str(cifar_archive.parent))
    load(config)
    batch = cifar_archive.parent / official.CIFAR10.base_folder / "test_batch"
    batch.write_bytes(batch.read_bytes()[:-5])
    with pytest.raises(DataError, match=r"cifar-10-batches-py are damaged; remove that folder"):
        load(config)
    shutil.rmtree(batch.parent)
    cifar_archive.write_bytes(cifar_archive.read_bytes()[:-5])
    with pytest.raises(DataError, match=r"cifar-10-python\.tar\.gz is damaged or not the official archive \(MD5"):
        load(config)


@pytest.mark.parametrize("reader", [official.CIFAR10, official.CIFAR100])
def test_without_a_network_the_error_says_what_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reader: type):
    monkeypatch.setattr(named, "_answers", lambda url: False)
    with pytest.raises(DataError, match=rf"put {reader.filename} \(MD5 {reader.tgz_md5}\) into {tmp_path}/nowhere, or point --data\.root"):
        load(DataConfig(source=reader.__name__.lower(), root=str(tmp_path / "nowhere")))


def test_failed_download_says_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(named, "_answers", lambda url: True)
    monkeypatch.setattr(official.CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")  # nothing listens there
    with pytest.raises(DataError, match=r"could not be fetched or unpacked .*put cifar-10-python\.tar\.gz"):
        load(DataConfig(source="cifar10", root=str(tmp_path)))


def test_silent_server_is_given_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(named, "PROBE_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts and never says a word
        assert not named._answers(f"http://127.0.0.1:{silent.getsockname()[1]}/")


def test_slow_name_look_up_is_given_up(monkeypatch: pytest.MonkeyPatch):
    released = threading.Event()

    def look_up(url: str, timeout: float) -> contextlib.AbstractContextManager:
        released.wait(2)  # then it answers after all, which would be too late
        return contextlib.nullcontext()

    monkeypatch.setattr(named, "PROBE_SECONDS", 0.05)
    monkeypatch.setattr(named.urllib.request, "urlopen", look_up)
    assert not named._answers("http://nowhere.invalid/")
    released.set()


@pytest.fixture(params=[official.MNIST, official.FashionMNIST])
def idx_files(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[type, Path]:
    """A reader, and the folder with its four packed files: 20 images for training, 10 for testing, with checksums to match."""
    reader, rng = request.param, np.random.default_rng(0)
    folder, sums = tmp_path / reader.__name__ / "raw", []
    folder.mkdir(parents=True)
    for prefix, count in (("train", 20), ("t10k", 10)):
        images, labels = rng.integers(0, 256, (count, 28, 28), np.uint8), np.arange(count, dtype=np.uint8) % 10
        for name, magic, values in ((f"{prefix}-images-idx3-ubyte.gz", 2051, images), (f"{prefix}-labels-idx1-ubyte.gz", 2049, labels)):
            packed = gzip.compress(np.array([magic, *values.shape], ">i4").tobytes() + values.tobytes())
            (folder / name).write_bytes(packed)
            sums.append((name, hashlib.md5(packed).hexdigest()))
    monkeypatch.setattr(reader, "resources", sums)
    monkeypatch.setattr(named, "_answers", lambda url: False)
    return reader, folder


def test_idx_files_are_unpacked_and_read(idx_files: tuple[type, Path], tmp_path: Path):
    reader, folder = idx_files
    config = DataConfig(source=reader.__name__.lower(), root=str(tmp_path))
    dataset = load(config)
    assert (dataset.mean, dataset.std) == {"mnist": ((0.1307,), (0.3081,)), "fashionmnist": ((0.2861,), (0.3530,))}[config.source]
    assert dataset.shape == (1, 28, 28) and dataset.test.labels.tolist() == list(range(10))
    assert dataset.classes[0] == {"mnist": "0", "fashionmnist": "T-shirt/top"}[config.source]
    first = np.random.default_rng(0).integers(0, 256, (20, 28, 28), np.uint8)
    assert np.array_equal(dataset.train.images[:, 0], first)
    for packed in folder.glob("*.gz"):
        packed.unlink()
    assert load(config).fingerprint == dataset.fingerprint
    path = folder / "t10k-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DataError, match=r"raw are damaged; remove those without \.gz"):
        load(config)


def test_absent_or_damaged_idx_files(idx_files: tuple[type, Path], tmp_path: Path):
    reader, folder = idx_files
    config = DataConfig(source=reader.__name__.lower(), root=str(tmp_path))
    labels = folder / "t10k-labels-idx1-ubyte.gz"
    content = labels.read_bytes()
    labels.unlink()
    inside = f"{reader.__name__}/raw"
    wanted = rf"put t10k-labels-idx1-ubyte\.gz \(MD5 \w+\) into {tmp_path}/{inside}, or point --data\.root at .* has {inside}\."
    with pytest.raises(DataError, match=wanted):
        load(config)
    labels.write_bytes(content[:-1])
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte\.gz is damaged or not the official archive \(MD5"):
        load(config)


def test_svhn_files_are_read_and_ten_is_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rng, parts = np.random.default_rng(0), {}
    for split, count in (("train", 20), ("test", 10)):
        path = tmp_path / f"{split}_32x32.mat"
        images = rng.integers(0, 256, (32, 32, 3, count), np.uint8)
        scipy.io.savemat(path, {"X": images, "y": (np.arange(count) % 10 + 1)[:, None].astype(np.uint8)})
        parts[split] = ["http://nowhere.invalid/", path.name, hashlib.md5(path.read_bytes()).hexdigest()]
    monkeypatch.setattr(official.SVHN, "split_list", parts)
    monkeypatch.setattr(named, "_answers", lambda url: False)
    config = DataConfig(source="svhn", root=str(tmp_path))
    dataset = load(config)
    assert dataset.shape == (3, 32, 32) and dataset.test.labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]
    assert dataset.mean == (0.4377, 0.4438, 0.4728) and dataset.std == (0.1980, 0.2010, 0.1970)
    first = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 20), np.uint8)
    assert np.array_equal(dataset.train.images, first.transpose(3, 2, 0, 1))
    test = tmp_path / "test_32x32.mat"
    test.write_bytes(test.read_bytes()[:-5])
    with pytest.raises(DataError, match=r"test_32x32\.mat in .* is damaged"):
        load(config)
    test.unlink()
    with pytest.raises(DataError, match=rf"put test_32x32\.mat \(MD5 \w+\) into {tmp_path}, or point --data\.root"):
        load(config)


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz", ""])
def test_tiny_imagenet_packed_or_not(tmp_path: Path, write_folder: Callable[..., Path], suffix: str):
    root = tmp_path / "archives"
    top = write_tiny(root / "tiny-imagenet-200", write_folder)
    (top / "words.txt").write_text("n02\tgoldfish, Carassius auratus\nn77\tnot here\n")
    if suffix == ".zip":
        with zipfile.ZipFile(root / "tiny-imagenet-200.zip", "w") as archive:
            for path in sorted(top.rglob("*")):
                archive.write(path, path.relative_to(root))
    elif suffix:
        with tarfile.open(root / f"tiny-imagenet-200{suffix}", "w:gz") as archive:
            archive.add(top, top.name)
    if suffix:
        shutil.rmtree(top)
    dataset = load(DataConfig(source="tiny-imagenet"))  # RAYDD_DATA names the folder
    assert dataset.classes == ("n01", "goldfish (n02)") and dataset.test.labels.tolist() == [1, 0, 1]
    assert dataset.std == (0.229, 0.224, 0.225)
    assert not list(root.glob(".unpacking-*"))


def test_tiny_imagenet_absent_or_damaged(tmp_path: Path):
    root = tmp_path / "archives"
    with pytest.raises(DataError, match=rf"put tiny-imagenet-200\.zip into {root}, or unpack it there as tiny-imagenet-200/"):
        load(DataConfig(source="tiny-imagenet"))
    root.mkdir()
    for name in ("tiny-imagenet-200.tar", "tiny-imagenet-200.zip"):
        (root / name).write_bytes(b"PK nothing of the kind")
        with pytest.raises(DataError, match=rf"{name} cannot be unpacked"):
            load(DataConfig(source="tiny-imagenet"))


def test_sets_of_mixed_pictures_use_the_published_constants(tmp_path: Path, write_folder: Callable[..., Path]):
    write_tiny(tmp_path / "archives" / "tiny-imagenet-200", write_folder)
    (tmp_path / "archives" / "tiny-imagenet-200" / "train" / "n01" / "images" / "0.png").unlink()
    assert load(DataConfig(source="tiny-imagenet", size=4)).mean == (0.485, 0.456, 0.406)
