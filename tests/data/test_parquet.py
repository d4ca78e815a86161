"""Parquet sets: the layouts of the Hugging Face hub, and what is refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raydd.config import DataConfig
from raydd.data import Dataset, load
from raydd.errors import DataError
from tests.data.samples import noise

Write = Callable[..., Path]


def read(folder: Path) -> Dataset:
    return load(DataConfig(source=f"parquet:{folder}"))


def test_shards_are_read_in_the_order_of_their_names(tmp_path: Path, write_parquet: Write, monkeypatch: pytest.MonkeyPatch):
    listed = Path.glob

    def glob(folder: Path, pattern: str) -> list[Path]:
        paths = sorted(listed(folder, pattern))
        return paths[2:] + paths[:2]  # neither ascending nor descending

    monkeypatch.setattr(Path, "glob", glob)
    for shard in (2, 0, 1):
        write_parquet(tmp_path / "set" / f"train-0000{shard}-of-00003.parquet", noise(2, seed=shard), [shard, 1])
    write_parquet(tmp_path / "set" / "test-00000-of-00001.parquet", noise(3), [0, 1, 2])
    dataset = read(tmp_path / "set")
    assert dataset.train.labels.tolist() == [0, 1, 1, 1, 2, 1]
    assert np.array_equal(dataset.train.images[2:4], np.stack(noise(2, seed=1)).transpose(0, 3, 1, 2))
    assert dataset.classes == ("0", "1", "2") and dataset.name == "parquet:set"


def test_a_missing_shard_is_noticed(tmp_path: Path, parquet_set: Path):
    (parquet_set / "train-00000-of-00001.parquet").rename(parquet_set / "train-00000-of-00002.parquet")
    with pytest.raises(DataError, match="one of 2 shards, but 1 are there"):
        read(parquet_set)


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("data/train-00000-of-00001-a1b2c3.parquet", "data/test-00000-of-00001-d4e5f6.parquet"),
        ("train/0000.parquet", "validation/0000.parquet"),
        ("birds-train.parquet", "birds-valid.parquet"),
        ("train.parquet", "val.parquet"),
    ],
)
def test_layouts(tmp_path: Path, write_parquet: Write, train: str, test: str):
    write_parquet(tmp_path / "set" / train, noise(2), [0, 1])
    write_parquet(tmp_path / "set" / test, noise(3, seed=1), [0, 1, 0])
    dataset = read(tmp_path / "set")
    assert (len(dataset.train), len(dataset.test)) == (2, 3)


def test_test_is_preferred_to_validation(parquet_set: Path, write_parquet: Write):
    write_parquet(parquet_set / "valid-00000-of-00001.parquet", noise(2), [0, 1])
    assert len(read(parquet_set).test) == 4


def test_other_names_of_columns(tmp_path: Path, write_parquet: Write):
    for split in ("train", "test"):
        write_parquet(tmp_path / "set" / f"{split}.parquet", noise(2), [0, 1], ["a", "b"], column="img", label="fine_label")
    assert read(tmp_path / "set").classes == ("a", "b")


def test_images_as_a_plain_binary_column(tmp_path: Path, parquet_set: Path):
    expected = read(parquet_set).fingerprint
    for path in parquet_set.glob("*.parquet"):
        table = pq.read_table(path)
        column = pa.array([row["bytes"] for row in table.column("image").to_pylist()], pa.large_binary())
        pq.write_table(table.set_column(0, "image", column), path)
    assert read(parquet_set).fingerprint == expected


def test_statistics_are_computed_whatever_the_folder_is_called(tmp_path: Path, parquet_set: Path):
    parquet_set.rename(tmp_path / "cifar10")
    assert read(tmp_path / "cifar10").mean != (0.4914, 0.4822, 0.4465)


def test_absent_and_empty_folders(tmp_path: Path):
    with pytest.raises(DataError, match="there is no such folder"):
        read(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no training split; .*train-\*\.parquet.*holds no Parquet file"):
        read(tmp_path / "empty")


def test_no_test_split(parquet_set: Path):
    (parquet_set / "test-00000-of-00001.parquet").unlink()
    with pytest.raises(DataError, match=r"no test split; it must be in files named test-\*\.parquet.*Found: train-00000"):
        read(parquet_set)


def test_a_folder_of_configurations_names_them(tmp_path: Path, parquet_set: Path):
    parquet_set.rename(tmp_path / "plain_text")
    with pytest.raises(DataError, match="There are some in plain_text: name one"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"column": "pixels"}, r"train\.parquet has no column image or img; its columns are: pixels, label"),
        ({"label": "class"}, r"no column label or fine_label"),
        ({"labels": [0, None]}, "has 1 rows without a label"),
        ({"labels": [0, 7]}, r"training split: no image of class 1 \(1\), 2 \(2\)"),
        ({"labels": [0, -1], "names": ["a", "b"]}, r"image 1 has label -1; allowed are 0 to .*unlabelled"),
        ({"labels": ["a", "b"], "label_type": pa.string()}, "column label holds string; labels must be integers"),
        ({"labels": [0, 2], "names": ["a", "b"]}, "image 1 has label 2; allowed are 0 to 1"),
        ({"names": ["a", "b", "c"]}, r"training split: no image of class c \(2\)"),
        ({"names": ["a"], "labels": [0, 0]}, "needs at least two classes"),
        ({"images": [], "labels": []}, "needs at least two classes|holds no images"),
        ({"images": [b"", b"x"]}, r"train\.parquet row 0: cannot be decoded"),
        ({"images": [*noise(1), None]}, r"train\.parquet row 1: holds no image bytes"),
    ],
)
def test_unusable_training_files(tmp_path: Path, write_parquet: Write, change: dict, message: str):
    arguments = {"images": noise(2), "labels": [0, 1]} | change
    write_parquet(tmp_path / "set" / "train.parquet", **arguments)
    write_parquet(tmp_path / "set" / "test.parquet", noise(2), [0, 1])
    with pytest.raises(DataError, match=message):
        read(tmp_path / "set")


def test_class_missing_from_the_test_split(parquet_set: Path, write_parquet: Write):
    write_parquet(parquet_set / "test-00000-of-00001.parquet", noise(2), [0, 0], ["cat", "dog"])
    with pytest.raises(DataError, match=r"test split: no image of class dog \(1\)"):
        read(parquet_set)


def test_label_of_unlabelled_test_images(parquet_set: Path, write_parquet: Write):
    write_parquet(parquet_set / "test-00000-of-00001.parquet", noise(2), [-1, -1], ["cat", "dog"])
    with pytest.raises(DataError, match=r"test split: image 0 has label -1.*remove those files"):
        read(parquet_set)


def test_test_label_above_the_training_classes(tmp_path: Path, write_parquet: Write):
    write_parquet(tmp_path / "set" / "train.parquet", noise(2), [0, 1])
    write_parquet(tmp_path / "set" / "test.parquet", noise(3), [0, 1, 2])
    with pytest.raises(DataError, match="test split: image 2 has label 2; allowed are 0 to 1"):
        read(tmp_path / "set")


@pytest.mark.parametrize("keep", [0, 100, 0.5])
def test_truncated_file(parquet_set: Path, keep: float):
    path = parquet_set / "train-00000-of-00001.parquet"
    data = path.read_bytes()
    path.write_bytes(data[: int(keep if keep >= 1 else keep * len(data))])
    with pytest.raises(DataError, match=r"train-00000.* is not a readable Parquet file .*Fetch it again"):
        read(parquet_set)


def test_image_column_of_numbers(parquet_set: Path):
    pq.write_table(pa.table({"image": [1, 2], "label": [0, 1]}), parquet_set / "train-00000-of-00001.parquet")
    with pytest.raises(DataError, match="the image column holds int64"):
        read(parquet_set)
