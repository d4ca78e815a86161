"""Decoded sets on disk: one memory-mapped Arrow file per (content, decode settings), built once per node.

The file holds two record batches, training and test, each with the columns `image` (fixed-size binary, C x H x W bytes) and
`label` (int64); the schema's metadata says the rest. Its name is a hash over the source files' bytes and the settings.
"""

import hashlib
import itertools
import json
import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from raydd.config import DataConfig, fingerprint
from raydd.data.checks import check_content
from raydd.data.decode import decode
from raydd.data.files import atomic, cache_folder, locked, temporary, writing
from raydd.data.sources import source_info
from raydd.data.types import Content, ImageSet, Progress, Source
from raydd.errors import DataError

FORMAT = 1  # raise it when decoding or layout changes: older files are then not found, and rebuilt
_CHUNK = 512  # pictures read, decoded and written at a time


@dataclass(frozen=True)
class Cached:
    """An opened cache file: both splits as views of the memory map, and its metadata."""

    train: ImageSet
    test: ImageSet
    meta: dict[str, Any]


def obtain(source: Source, config: DataConfig, progress: Progress | None = None) -> Cached:
    """Open the decoded copy of a source, building it first where it is absent, truncated or foreign.

    Raises `DataError` for content that cannot be used and for a cache folder that cannot be written.
    """
    settings = {"format": FORMAT, "kind": config.source.partition(":")[0], "size": config.size, "channels": config.channels}
    key = fingerprint({"content": content_hash(source), **settings})
    path = cache_folder() / f"{key[:32]}.arrow"
    cached = _open(path, key)
    if cached is None:
        with writing(path), locked(path):
            cached = _open(path, key)
            if cached is None:
                _build(path, key, source, config, progress)
                cached = _open(path, key)
    if cached is None:
        raise DataError(f"the cache file {path} cannot be read back after writing; remove it, or set RAYDD_CACHE to another disk.")
    return cached


def content_hash(source: Source) -> str:
    """Sha-256 over names and bytes of the source files, and over `identity`.

    Reading every byte at every start would be slow, so the hash is remembered under paths, sizes and times of the files.
    """
    try:
        stats = [(name, str(path.absolute()), path.stat()) for name, path in source.files]
        signature = fingerprint([source.identity, [(n, p, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for n, p, s in stats]])
        memo = cache_folder() / f"source-{signature[:32]}.json"
        known = _read_json(memo)
        if known.get("signature") == signature and "content" in known:
            return known["content"]
        content = fingerprint([source.identity, [(name, _file_hash(path)) for name, path in source.files]])
    except OSError as error:
        raise DataError(f"{source.name}: a file of the set cannot be read ({error}).") from error
    with writing(memo), atomic(memo) as scratch:
        scratch.write_text(json.dumps({"signature": signature, "content": content}))
    return content


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _open(path: Path, key: str) -> Cached | None:
    """The cache file as views, or None where it is absent, truncated, or not what its name says."""
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        meta = json.loads(reader.schema.metadata[b"raydd"])
        if meta["key"] != key or reader.num_record_batches != 2:
            return None
        train, test = (_view(reader.get_batch(index), tuple(meta["shape"])) for index in range(2))
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        return None
    return Cached(train, test, meta) if [len(train), len(test)] == meta["counts"] else None


def _view(batch: pa.RecordBatch, shape: tuple[int, int, int]) -> ImageSet:
    pixels = np.frombuffer(batch.column("image").buffers()[1], np.uint8, count=batch.num_rows * int(np.prod(shape)))
    return ImageSet(pixels.reshape(batch.num_rows, *shape), batch.column("label").to_numpy())


def _build(path: Path, key: str, source: Source, config: DataConfig, progress: Progress | None) -> None:
    content = source.read()
    check_content(source.name, content)
    with temporary(path.with_name(path.name + ".pixels")) as spool:
        with spool.open("wb") as file:
            shape, colour = _decode_all(file, content, config, progress)
        pixels = np.memmap(spool, np.uint8, "r", shape=(len(content.train.labels) + len(content.test.labels), *shape))
        if config.channels is None and not colour:
            pixels = np.ascontiguousarray(pixels[:, :1])
        _write(path, key, content, pixels, config)


def _decode_all(file: BinaryIO, content: Content, config: DataConfig, progress: Progress | None) -> tuple[tuple[int, ...], bool]:
    """Append the pixels of both splits to a file; returns (C, H, W) and whether any picture has colour."""
    channels, total, done = config.channels or 3, len(content.train.labels) + len(content.test.labels), 0
    pairs = itertools.chain(content.train.pictures(), content.test.pictures())
    first: tuple[str, tuple[int, ...]] | None = None
    any_colour = False
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        while chunk := list(itertools.islice(pairs, _CHUNK)):
            decoded = threads.map(lambda pair: decode(*pair, config.size, channels), chunk)
            for (where, _), (pixels, colour) in zip(chunk, decoded, strict=True):
                first = first or (where, pixels.shape)
                _check_size(where, pixels.shape, *first)
                any_colour |= colour
                file.write(pixels.tobytes())
            done += len(chunk)
            if progress is not None:
                progress(done, total)
    if first is None or done != total:
        raise DataError(f"the source lists {total} labels but gives {done} images.")
    return first[1], any_colour


def _check_size(where: str, shape: tuple[int, ...], first_where: str, first_shape: tuple[int, ...]) -> None:
    height, width = shape[1:]
    if shape != first_shape:
        was = f"{first_where} is {first_shape[2]} x {first_shape[1]}"
        raise DataError(f"images differ in size: {was}, {where} is {width} x {height}. Give one side to all: --data.size SIDE.")
    if height != width:
        raise DataError(f"{where} is {width} x {height}, not square. Crop and resize all images: --data.size SIDE.")


def _write(path: Path, key: str, content: Content, pixels: np.ndarray, config: DataConfig) -> None:
    """Write the Arrow file: statistics and fingerprint first, for they go into its metadata."""
    split = len(content.train.labels)
    info = source_info(config)
    mean, std = (info.mean, info.std) if info is not None and info.mean and info.std else statistics(pixels[:split])
    meta = {"key": key, "shape": pixels.shape[1:], "counts": [split, len(pixels) - split], "classes": content.classes}
    meta |= {"mean": mean, "std": std}
    labels = np.concatenate([content.train.labels, content.test.labels]).astype("<i8")
    digest = hashlib.sha256(json.dumps({k: v for k, v in meta.items() if k != "key"}, sort_keys=True).encode())
    digest.update(labels)
    digest.update(pixels)
    meta["fingerprint"] = digest.hexdigest()
    kind = pa.binary(int(np.prod(pixels.shape[1:])))
    schema = pa.schema([("image", kind), ("label", pa.int64())], metadata={"raydd": json.dumps(meta)})
    with atomic(path) as scratch, pa.OSFile(str(scratch), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for rows in (slice(0, split), slice(split, None)):
            images = pa.FixedSizeBinaryArray.from_buffers(kind, len(labels[rows]), [None, pa.py_buffer(pixels[rows])])
            writer.write_batch(pa.record_batch([images, pa.array(labels[rows])], schema=schema))


def statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of all pixels of each channel, in [0, 1]; images uint8 (n, C, H, W).

    From exact integer counts of the 256 values, so that the numbers are the same on every machine.
    Raises `DataError` for a channel that has one value throughout, which cannot be normalised.
    """
    counts = np.zeros((images.shape[1], 256), np.int64)
    for start in range(0, len(images), 4096):
        for channel in range(images.shape[1]):
            counts[channel] += np.bincount(images[start : start + 4096, channel].ravel(), minlength=256)
    values = np.arange(256)
    total, first, second = (int(counts[0].sum()), counts @ values, counts @ values**2)
    mean = tuple(int(s) / total / 255 for s in first)
    std = tuple(math.sqrt(total * int(q) - int(s) ** 2) / total / 255 for s, q in zip(first, second))
    if 0 in std:
        raise DataError(f"channel {std.index(0)} has the same value in every training image; try --data.channels 1, or other images.")
    return mean, std
