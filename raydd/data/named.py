"""The named sets: digits comes with scikit-learn; the others are read from their official archives."""

import http.client
import tarfile
import tempfile
import threading
import urllib.request
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from raydd.config import DataConfig
from raydd.data.files import data_root, locked
from raydd.data.folder import folder_source
from raydd.data.sources import source
from raydd.data.types import Content, Picture, RawSplit, Source, SourceInfo
from raydd.data.unpack import unpack
from raydd.errors import DataError

# Mean and std as DC, DSA and MTT use them (DatasetCondensation utils.py get_dataset). CIFAR-10's std is the mean of the
# per-image stds, not the std over all pixels, and is kept because published settings depend on it.
DIGITS = SourceInfo((1, 8, 8), 10, 1297, 500)
CIFAR10 = SourceInfo((3, 32, 32), 10, 50_000, 10_000, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
CIFAR100 = SourceInfo((3, 32, 32), 100, 50_000, 10_000, (0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762))
MNIST = SourceInfo((1, 28, 28), 10, 60_000, 10_000, (0.1307,), (0.3081,))
FASHION = SourceInfo((1, 28, 28), 10, 60_000, 10_000, (0.2861,), (0.3530,))
SVHN = SourceInfo((3, 32, 32), 10, 73_257, 26_032, (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970))
TINY = SourceInfo((3, 64, 64), 200, 100_000, 10_000, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

PROBE_SECONDS = 5.0  # how long a download server may take to answer before raydd says what to fetch by hand


@source("digits", info=DIGITS)
def digits(location: str, config: DataConfig) -> Source:
    """scikit-learn's 1,797 handwritten digits, 8 x 8, 17 grey levels spread over 0..255.

    The split is fixed: 50 images of each class, evenly spaced in the file's order, are the test set; the other 1,297 train.
    """
    return Source("digits", _digits, identity="scikit-learn digits, 50 evenly spaced images per class for testing")


def _digits() -> Content:
    from sklearn.datasets import load_digits

    table = load_digits()
    images, labels = np.rint(table.images * (255 / 16)).astype(np.uint8), table.target.astype(np.int64)
    held_out = np.zeros(len(labels), bool)
    for label in range(10):
        rows = np.flatnonzero(labels == label)
        held_out[rows[np.arange(50) * len(rows) // 50]] = True
    return Content(
        tuple(str(label) for label in range(10)),
        _arrays("digits training image", images[~held_out], labels[~held_out]),
        _arrays("digits test image", images[held_out], labels[held_out]),
    )


def _arrays(what: str, images: np.ndarray, labels: np.ndarray) -> RawSplit:
    def pictures() -> Iterator[tuple[str, Picture]]:
        return ((f"{what} {row}", image) for row, image in enumerate(images))

    return RawSplit(np.asarray(labels, np.int64), pictures)


@source("cifar10", info=CIFAR10)
def cifar10(location: str, config: DataConfig) -> Source:
    """CIFAR-10 in the Python version, from `data.root`."""
    from torchvision.datasets import CIFAR10 as Reader

    return _cifar("cifar10", Reader, data_root(config))


@source("cifar100", info=CIFAR100)
def cifar100(location: str, config: DataConfig) -> Source:
    """CIFAR-100 with its 100 fine classes, in the Python version, from `data.root`."""
    from torchvision.datasets import CIFAR100 as Reader

    return _cifar("cifar100", Reader, data_root(config))


def _cifar(name: str, reader: Any, root: Path) -> Source:
    """Official batch files, which torchvision checks by MD5 before it reads them."""
    parts = [*reader.train_list, *reader.test_list, [reader.meta["filename"]]]
    files = tuple((part[0], root / reader.base_folder / part[0]) for part in parts)
    if not all(path.is_file() for _, path in files):
        archive = [(root / reader.filename, reader.tgz_md5)]
        _obtain(name, root, archive, reader.url, lambda: reader(str(root), download=True))
    return Source(name, lambda: _read_cifar(name, reader, root), files)


def _read_cifar(name: str, reader: Any, root: Path) -> Content:
    try:
        with warnings.catch_warnings():  # the official pickles hold array headers that new numpy versions call outdated
            warnings.simplefilter("ignore", np.exceptions.VisibleDeprecationWarning)
            train, test = reader(str(root), train=True), reader(str(root), train=False)
    except RuntimeError as error:
        raise DataError(f"--data={name}: files in {root / reader.base_folder} are damaged; remove that folder and try again.") from error
    splits = [_arrays(f"{name} {word} image", part.data, part.targets) for word, part in (("training", train), ("test", test))]
    return Content(tuple(train.classes), *splits)


def _obtain(name: str, root: Path, wanted: list[tuple[Path, str]], url: str, fetch: Callable[[], Any]) -> None:
    """Fetch, or where they are there unpack, the official archives `wanted` (path, MD5) below `root`.

    `fetch` downloads what is absent, if the server of `url` answers, and unpacks. Raises `DataError` saying what to put where.
    """
    from torchvision.datasets.utils import check_integrity

    folder = wanted[0][0].parent
    for archive, md5 in wanted:
        if archive.is_file() and not check_integrity(str(archive), md5):
            raise DataError(f"--data={name}: {archive} is damaged or not the official archive (MD5 {md5}); replace it.")
    absent = [(archive, md5) for archive, md5 in wanted if not archive.is_file()]
    names = ", ".join(f"{archive.name} (MD5 {md5})" for archive, md5 in absent or wanted)
    what = "it" if folder == root else folder.relative_to(root)
    by_hand = f"put {names} into {folder}, or point --data.root at the folder that has {what}"
    if absent and not _answers(url):
        raise DataError(f"--data={name}: not found in {root}, and the download server does not answer. By hand: {by_hand}.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(wanted[0][0]):
            fetch()
    except (OSError, RuntimeError) as error:
        raise DataError(f"--data={name}: the archive could not be fetched or unpacked ({error}); {by_hand}.") from error


def _answers(url: str) -> bool:
    """Whether the server answers within `PROBE_SECONDS`. In a thread, because looking up its name knows no time-out."""
    answered = threading.Event()

    def probe() -> None:
        with suppress(OSError, ValueError, http.client.HTTPException), urllib.request.urlopen(url, timeout=PROBE_SECONDS):
            answered.set()

    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    return answered.is_set()


@source("mnist", info=MNIST)
def mnist(location: str, config: DataConfig) -> Source:
    """MNIST, from `data.root`: the four official files in MNIST/raw, packed (.gz) or not."""
    from torchvision.datasets import MNIST as Reader

    return _mnist("mnist", Reader, data_root(config))


@source("fashionmnist", info=FASHION)
def fashionmnist(location: str, config: DataConfig) -> Source:
    """FashionMNIST, from `data.root`: the four official files in FashionMNIST/raw, packed (.gz) or not."""
    from torchvision.datasets import FashionMNIST as Reader

    return _mnist("fashionmnist", Reader, data_root(config))


def _mnist(name: str, reader: Any, root: Path) -> Source:
    folder = root / reader.__name__ / "raw"
    files = tuple((path.name, path) for path in (folder / archive.removesuffix(".gz") for archive, _ in reader.resources))
    if not all(path.is_file() for _, path in files):
        wanted = [(folder / archive, md5) for archive, md5 in reader.resources]
        _obtain(name, root, wanted, reader.mirrors[0] + wanted[0][0].name, lambda: reader(str(root), download=True))
    return Source(name, lambda: _read_mnist(name, reader, folder), files)


def _read_mnist(name: str, reader: Any, folder: Path) -> Content:
    from torchvision.datasets.mnist import read_image_file, read_label_file

    splits = []
    for word, prefix in (("training", "train"), ("test", "t10k")):
        try:
            images = read_image_file(str(folder / f"{prefix}-images-idx3-ubyte")).numpy()
            labels = read_label_file(str(folder / f"{prefix}-labels-idx1-ubyte")).numpy()
        except (RuntimeError, ValueError, TypeError, KeyError, AssertionError) as error:
            text = f"--data={name}: files in {folder} are damaged; remove those without .gz there and try again."
            raise DataError(text) from error
        splits.append(_arrays(f"{name} {word} image", images, labels))
    return Content(tuple(label.split(" - ")[0] for label in reader.classes), *splits)  # "0 - zero" is 0


@source("svhn", info=SVHN)
def svhn(location: str, config: DataConfig) -> Source:
    """SVHN, cropped digits, from `data.root`: train_32x32.mat and test_32x32.mat. The extra images are not used."""
    from torchvision.datasets import SVHN as Reader

    root = data_root(config)
    parts = {split: Reader.split_list[split] for split in ("train", "test")}
    files = tuple((name, root / name) for _, name, _ in parts.values())
    if not all(path.is_file() for _, path in files):
        wanted = [(root / name, md5) for _, name, md5 in parts.values()]
        _obtain("svhn", root, wanted, parts["train"][0], lambda: [Reader(str(root), split, download=True) for split in parts])
    return Source("svhn", lambda: _read_svhn(Reader, root), files)


def _read_svhn(reader: Any, root: Path) -> Content:
    try:
        train, test = reader(str(root), "train"), reader(str(root), "test")  # which check MD5 sums, and make label 10 the digit 0
    except RuntimeError as error:
        raise DataError(f"--data=svhn: train_32x32.mat or test_32x32.mat in {root} is damaged; remove it and try again.") from error
    parts = {"training": train, "test": test}
    splits = [_arrays(f"svhn {word} image", part.data.transpose(0, 2, 3, 1), part.labels) for word, part in parts.items()]
    return Content(tuple(str(label) for label in range(10)), *splits)


@source("tiny-imagenet", info=TINY)
def tiny_imagenet(location: str, config: DataConfig) -> Source:
    """Tiny-ImageNet-200 in its official layout, from `data.root`: unpacked, or tiny-imagenet-200.zip, .tar, .tar.gz or .tgz."""
    top = data_root(config) / "tiny-imagenet-200"
    if not (top / "train").is_dir():
        _unpack_tiny(top)
    return folder_source("tiny-imagenet", top, _titles(top / "words.txt"))


def _titles(words: Path) -> dict[str, str]:
    """WordNet number -> its first English word and the number itself, which keeps names distinct."""
    if not words.is_file():
        return {}
    pairs = [line.split("\t", 1) for line in words.read_text().splitlines() if "\t" in line]
    return {number: f"{text.split(',')[0].strip()} ({number})" for number, text in pairs}


def _unpack_tiny(top: Path) -> None:
    archives = [top.with_name(top.name + suffix) for suffix in (".zip", ".tar", ".tar.gz", ".tgz")]
    archive = next((path for path in archives if path.is_file()), None)
    if archive is None:
        raise DataError(
            f"--data=tiny-imagenet: put {archives[0].name} into {top.parent}, or unpack it there as {top.name}/, "
            "or point --data.root at the folder that has it."
        )
    try:
        with locked(archive), tempfile.TemporaryDirectory(dir=top.parent, prefix=".unpacking-") as scratch:
            if not (top / "train").is_dir():
                unpack(archive, Path(scratch))
                (Path(scratch) / top.name).rename(top)
    except (OSError, EOFError, RuntimeError, zlib.error, zipfile.BadZipFile, tarfile.TarError) as error:
        raise DataError(f"--data=tiny-imagenet: {archive} cannot be unpacked ({error}); replace it, or unpack it by hand.") from error
