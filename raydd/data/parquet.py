"""`parquet:DIR`: image sets laid out as on the Hugging Face hub.

The split is the first word of the file's name that names one (`train-00000-of-00002.parquet`), or the name of its folder
(`train/0000.parquet`); other files are left alone. Files are looked for in DIR, then in DIR/data. Images are in the column
`image` or `img`, labels in `label` or `fine_label`; class names come from the schema's Hugging Face metadata, otherwise
they are "0", "1", and so on.
"""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raydd.config import DataConfig
from raydd.data.sources import source
from raydd.data.types import Content, Picture, RawSplit, Source
from raydd.errors import DataError

T = TypeVar("T")

TRAIN = ("train", "training")
TEST = ("test", "testing", "valid", "validation", "val")  # the first that exists is the test split
IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "fine_label")


@source("parquet", folder=True)
def parquet(location: str, config: DataConfig) -> Source:
    """Every shard of the training split and of the first test split found. Raises `DataError` where one is missing."""
    folder = Path(location).expanduser()
    if not folder.is_dir():
        raise DataError(f"--data=parquet:{location}: there is no such folder. Give the folder that holds the Parquet files.")
    splits = _splits(folder) or _splits(folder / "data")
    train, test = _first(splits, TRAIN), _first(splits, TEST)
    if not train or not test:
        raise DataError(_missing(folder, location, splits))
    for files in (train, test):
        _check_shards(files)
    named = tuple((path.relative_to(folder).as_posix(), path) for path in train + test)
    return Source(f"parquet:{folder.resolve().name}", lambda: _read(train, test), named)


def _splits(folder: Path) -> dict[str, list[Path]]:
    """Split name -> shards in the order of their names."""
    found: dict[str, list[Path]] = {}
    for path in sorted([*folder.glob("*.parquet"), *folder.glob("*/*.parquet")]):
        words = re.split(r"[-_.]", path.name.lower()) if path.parent == folder else [path.parent.name.lower()]
        split = next((word for word in words if word in TRAIN + TEST), None)
        if split is not None:
            found.setdefault(split, []).append(path)
    return found


def _first(splits: dict[str, list[Path]], names: tuple[str, ...]) -> list[Path]:
    return next((splits[name] for name in names if name in splits), [])


def _missing(folder: Path, location: str, splits: dict[str, list[Path]]) -> str:
    lacking = "training split" if not _first(splits, TRAIN) else "test split"
    names = "train-*.parquet" if lacking == "training split" else "test-*.parquet (or valid-, validation-, val-)"
    below = sorted({p.parent.relative_to(folder).as_posix() for p in folder.glob("**/*.parquet")} - {"."})
    files = sorted(p.name for p in folder.glob("*.parquet"))
    found = f"Found: {', '.join(files[:5])}." if files else "The folder itself holds no Parquet file."
    hint = f" There are some in {', '.join(below[:5])}: name one of those folders." if below and not files else ""
    return f"--data=parquet:{location}: no {lacking}; it must be in files named {names}. {found}{hint}"


def _check_shards(files: list[Path]) -> None:
    for path in files:
        match = re.search(r"-of-0*(\d+)(-[0-9a-f]+)?\.parquet$", path.name)
        expected = int(match[1]) if match else len(files)
        if expected != len(files):
            raise DataError(f"{path} is one of {expected} shards, but {len(files)} are there. Add the missing files, or remove stray ones.")


def _read(train: list[Path], test: list[Path]) -> Content:
    splits = [(files, _labels(files)) for files in (train, test)]
    classes = _class_names(train[0])
    if classes is None:
        classes = tuple(str(c) for c in range(int(splits[0][1].max(initial=-1)) + 1))
    raw = [RawSplit(labels, lambda files=files: _pictures(files)) for files, labels in splits]
    return Content(classes, *raw)


def _open(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path, memory_map=True)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} is not a readable Parquet file ({error}). Fetch it again.") from error


def _column(file: pq.ParquetFile, path: Path, names: tuple[str, ...]) -> str:
    columns = file.schema_arrow.names
    found = next((name for name in names if name in columns), None)
    if found is None:
        raise DataError(f"{path} has no column {' or '.join(names)}; its columns are: {', '.join(columns)}. Rename one.")
    return found


def _labels(files: list[Path]) -> np.ndarray:
    parts = []
    for path in files:
        with _open(path) as file:
            name = _column(file, path, LABEL_COLUMNS)
            kind = file.schema_arrow.field(name).type
            if not pa.types.is_integer(kind):
                raise DataError(f"{path}: column {name} holds {kind}; labels must be integers from 0 to classes - 1.")
            column = _data(path, lambda file=file, name=name: file.read([name])).column(name)
        if column.null_count:
            raise DataError(f"{path}: column {name} has {column.null_count} rows without a label. Remove them.")
        parts.append(column.to_numpy().astype(np.int64))
    return np.concatenate(parts)


def _class_names(path: Path) -> tuple[str, ...] | None:
    """Names in the schema's `huggingface` metadata, if they are there."""
    with _open(path) as file:
        name, metadata = _column(file, path, LABEL_COLUMNS), file.schema_arrow.metadata or {}
    try:
        return tuple(map(str, json.loads(metadata[b"huggingface"])["info"]["features"][name]["names"]))
    except (KeyError, TypeError, ValueError):
        return None


def _pictures(files: list[Path]) -> Iterator[tuple[str, Picture]]:
    for path in files:
        with _open(path) as file:
            name, row = _column(file, path, IMAGE_COLUMNS), 0
            batches = file.iter_batches(batch_size=512, columns=[name])
            while (batch := _data(path, lambda batches=batches: next(batches, None))) is not None:
                for encoded in _bytes(path, batch.column(0)):
                    if encoded is None:
                        raise DataError(f"{path} row {row}: holds no image bytes. Images must be stored inside the file.")
                    yield f"{path} row {row}", encoded
                    row += 1


def _bytes(path: Path, column: pa.Array) -> list[bytes | None]:
    if pa.types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0:
        column = column.field("bytes")
    if not (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)):
        raise DataError(f"{path}: the image column holds {column.type}; encoded images are needed, as a struct of bytes and path.")
    return column.to_pylist()


def _data(path: Path, read: Callable[[], T]) -> T:
    try:
        return read()
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: a page cannot be read ({error}). Fetch the file again.") from error
