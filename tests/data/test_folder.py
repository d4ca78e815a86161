"""Class folders: numbered by name, searched in depth, and never one silent class."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from raydd.config import DataConfig
from raydd.data import Dataset, load
from raydd.errors import DataError
from tests.data.samples import encode, noise

Write = Callable[..., Path]


def read(folder: Path) -> Dataset:
    return load(DataConfig(source=f"folder:{folder}"))


def test_classes_are_numbered_by_name(tmp_path: Path, write_folder: Write):
    root = write_folder(tmp_path / "pets", {"train": ["dog", "cat"], "test": ["cat", "dog"]})
    dataset = read(root)
    assert dataset.classes == ("cat", "dog") and dataset.name == "folder:pets"
    assert dataset.train.labels.tolist() == [0, 0, 1, 1]
    expected = noise(2, seed=1) + noise(2, seed=0)  # cat was written second
    assert np.array_equal(dataset.train.images, np.stack(expected).transpose(0, 3, 1, 2))


@pytest.mark.parametrize("split", ["val", "valid", "validation"])
def test_other_names_of_the_test_split(tmp_path: Path, write_folder: Write, split: str):
    assert len(read(write_folder(tmp_path, {"train": ["a", "b"], split: ["a", "b"]})).test) == 4


def test_depth_suffixes_and_hidden_files(tmp_path: Path, write_folder: Write):
    root = write_folder(tmp_path / "set", {"train": ["a", "b"], "test": ["a", "b"]})
    (root / "train/a/deep/er").mkdir(parents=True)
    (root / "train/a/deep/er/x.JPEG").write_bytes(encode(noise(1)[0], "JPEG"))
    (root / "train/a/notes.txt").write_text("not an image")
    (root / "train/a/._0.png").write_bytes(b"not an image either")
    (root / "train/a/.thumbnails").mkdir()
    (root / "train/a/.thumbnails/0.png").write_bytes(b"nor this")
    assert read(root).train.labels.tolist() == [0, 0, 0, 1, 1]


def test_unlabelled_test_folder_gives_way_to_validation(tmp_path: Path, write_folder: Write):
    root = write_folder(tmp_path, {"train": ["a", "b"], "test": ["images"], "val": ["a", "b"]})
    assert len(read(root).test) == 4


def write_tiny(root: Path, write_folder: Write) -> Path:
    """The layout of the official Tiny-ImageNet: nested training images, flat validation images with a table."""
    write_folder(root, {"train": ["n01/images", "n02/images"], "val": ["images"], "test": ["images"]}, count=3)
    lines = ["0.png\tn02\t0\t0\t5\t5", "1.png\tn01\t0\t0\t5\t5", "2.png\tn02\t0\t0\t5\t5"]
    (root / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    return root


def test_stock_tiny_imagenet(tmp_path: Path, write_folder: Write):
    dataset = read(write_tiny(tmp_path / "tiny", write_folder))
    assert dataset.classes == ("n01", "n02") and len(dataset.train) == 6
    assert dataset.test.labels.tolist() == [1, 0, 1]


def test_annotations_count_as_content(tmp_path: Path, write_folder: Write):
    root = write_tiny(tmp_path / "tiny", write_folder)
    before = read(root).fingerprint
    table = root / "val" / "val_annotations.txt"
    table.write_text(table.read_text().replace("1.png\tn01", "1.png\tn02").replace("0.png\tn02", "0.png\tn01"))
    assert read(root).fingerprint != before


@pytest.mark.parametrize("line", ["9.png\tn01", "0.png\tn99", "0.png", ""])
def test_unusable_annotations(tmp_path: Path, write_folder: Write, line: str):
    root = write_tiny(tmp_path / "tiny", write_folder)
    (root / "val" / "val_annotations.txt").write_text("0.png\tn02\n" + line + "\n1.png\tn01\n")
    with pytest.raises(DataError, match=r"val_annotations\.txt line 2: needs the name of a file in images/ and a class of train/"):
        read(root)


def test_tiny_imagenet_without_its_table_is_refused(tmp_path: Path, write_folder: Write):
    root = write_tiny(tmp_path / "tiny", write_folder)
    (root / "val" / "val_annotations.txt").unlink()
    with pytest.raises(DataError, match=r"holds none of the class folders of train/ \(n01, n02.*val_annotations"):
        read(root)


def test_absent_empty_and_flat_folders(tmp_path: Path, write_folder: Write):
    with pytest.raises(DataError, match=r"nothing: needs train/CLASS.*no such folder"):
        read(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="found: an empty folder"):
        read(tmp_path / "empty")
    with pytest.raises(DataError, match=r"needs train/CLASS.*found: cat, dog"):
        read(write_folder(tmp_path / "flat", {"cat": ["."], "dog": ["."]}))
    with pytest.raises(DataError, match=r"train/0\.png lies in no class folder"):
        read(write_folder(tmp_path / "loose", {"train": [".", "a"], "test": ["a"]}))


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"train": ["a", "b"]}, "no test split. Put test images into"),
        ({"train": ["a"], "test": ["a"]}, "needs at least two classes to tell apart; found: a"),
        ({"train": ["a", "b", "c"], "test": ["a", "b"]}, r"test split: no image of class c \(2\)"),
        ({"train": ["a", "b"], "test": ["a", "b", "c"]}, "test/c: train/ has no class of this name"),
        ({"train": ["a", "b"], "test": ["x"]}, "holds none of the class folders"),
    ],
)
def test_splits_that_do_not_match(tmp_path: Path, write_folder: Write, splits: dict, message: str):
    with pytest.raises(DataError, match=message):
        read(write_folder(tmp_path, splits))


def test_class_folder_without_images(tmp_path: Path, write_folder: Write):
    root = write_folder(tmp_path / "set", {"train": ["a", "b"], "test": ["a", "b"]})
    read(root)
    (root / "train" / "zebra").mkdir()  # changes no file, so the cached copy must not hide it
    with pytest.raises(DataError, match=r"training split: no image of class zebra \(2\)"):
        read(root)


def test_damaged_image_is_named(tmp_path: Path, write_folder: Write):
    root = write_folder(tmp_path / "set", {"train": ["a", "b"], "test": ["a", "b"]})
    path = root / "test" / "b" / "1.png"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(DataError, match=r"test/b/1\.png: cannot be decoded"):
        read(root)
