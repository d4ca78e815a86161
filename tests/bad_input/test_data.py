"""Data and expert stores that cannot be used are refused, and left as they are."""

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.bad_input.refusals import refused_run

# Data


@pytest.fixture
def parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Parquet files without a column of images."""
    monkeypatch.setenv("RAYDD_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "parquet"
    folder.mkdir()
    for split in ("train", "test"):
        pq.write_table(pa.table({"label": [0, 1], "text": ["a", "b"]}), folder / f"{split}-00000-of-00001.parquet")
    return folder


def test_parquet_without_images(parquet: Path, store: Path, tmp_path: Path) -> None:
    words = ("has no column image or img", "its columns are: label, text")
    refused_run(tmp_path / "run", store, "--data", f"parquet:{parquet}", words=words)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for split in ("train", "test"):
        rows = pa.array([{"bytes": None, "path": "a.png"}, {"bytes": b"no picture", "path": None}], kind)
        pq.write_table(pa.table({"label": [0, 1], "image": rows}), parquet / f"{split}-00000-of-00001.parquet")
    refused_run(tmp_path / "run", store, "--data", f"parquet:{parquet}", words=("row 0", "no image bytes"))


def test_parquet_that_is_truncated(parquet: Path, store: Path, tmp_path: Path) -> None:
    file = parquet / "train-00000-of-00001.parquet"
    file.write_bytes(file.read_bytes()[:-20])
    refused_run(tmp_path / "run", store, "--data", f"parquet:{parquet}", words=(str(file), "not a readable Parquet file"))


# Experts


def test_store_without_the_experts(tmp_path: Path) -> None:
    words = ("3 experts of 7 epochs", "lacks 3 of them", "raydd experts digits-mtt-ipc1 --experts 3 --experts.epochs 7")
    refused_run(tmp_path / "run", tmp_path / "store", "--no_train_experts", words=words)


def test_store_with_experts_that_are_too_short(store: Path, tmp_path: Path) -> None:
    longer = ("--mtt.max_start_epoch", "9", "--no_train_experts")
    refused_run(tmp_path / "run", store, *longer, words=("--mtt.max_start_epoch=9", "10 epochs", "lacks 3", "raydd experts"))


def test_truncated_store(store: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(store, tmp_path / "store"))
    file = next(copy.glob("*/expert_00001.arrow"))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    refused_run(tmp_path / "run", copy, words=(str(file), "damaged", "Delete it and run `raydd experts`"))
    assert len(list(copy.glob("*/*.arrow"))) == 3


def test_store_that_is_a_file(store: Path, tmp_path: Path) -> None:
    path = tmp_path / "store"
    path.write_text("mine")
    refused_run(tmp_path / "run", path, words=(str(path),))
    assert path.read_text() == "mine"
