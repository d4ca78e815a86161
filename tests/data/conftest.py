"""Small sets written into a temporary folder, and a cache of their own for every test."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.samples import encode, noise


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder of this test."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("RAYDD_CACHE", str(folder))
    monkeypatch.setenv("RAYDD_DATA", str(tmp_path / "archives"))
    return folder


@pytest.fixture
def write_parquet() -> Callable[..., Path]:
    """Writes one Hugging Face style Parquet file."""

    def write(
        path: Path,
        images: list[np.ndarray | bytes | None],
        labels: list[int | None],
        names: list[str] | None = None,
        column: str = "image",
        label: str = "label",
        label_type: pa.DataType | None = None,
    ) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [{"bytes": encode(i) if isinstance(i, np.ndarray) else i, "path": None} for i in images]
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        table = pa.table({column: pa.array(rows, kind), label: pa.array(labels, label_type or pa.int64())})
        if names is not None:
            features = {column: {"_type": "Image"}, label: {"names": names, "_type": "ClassLabel"}}
            table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        pq.write_table(table, path)
        return path

    return write


@pytest.fixture
def parquet_set(tmp_path: Path, write_parquet: Callable[..., Path]) -> Path:
    """Two classes, six training and four test images, 8 x 8 colour."""
    folder = tmp_path / "set"
    write_parquet(folder / "train-00000-of-00001.parquet", noise(6), [0, 1, 0, 1, 0, 1], ["cat", "dog"])
    write_parquet(folder / "test-00000-of-00001.parquet", noise(4, seed=1), [0, 1, 0, 1], ["cat", "dog"])
    return folder


@pytest.fixture
def write_folder() -> Callable[..., Path]:
    """Writes `count` images into every class folder of every split."""

    def write(root: Path, splits: dict[str, list[str]], count: int = 2, side: int = 8) -> Path:
        for s, (split, classes) in enumerate(splits.items()):
            for c, name in enumerate(classes):
                (root / split / name).mkdir(parents=True, exist_ok=True)
                for i, pixels in enumerate(noise(count, side, seed=10 * s + c)):
                    (root / split / name / f"{i}.png").write_bytes(encode(pixels))
        return root

    return write
