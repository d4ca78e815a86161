"""One expert as an Arrow IPC file: a record batch per snapshot, JSON metadata in the schema.

The columns are `epoch: int32` and `theta: fixed_size_list<float32>[P]`; snapshot 0 is the initialisation, e the state after e
epochs. The metadata carries the sha-256 of all snapshots, so that an altered file is told from a whole one.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

FORMAT = 1
_METADATA = b"raydd.expert"


class BadFile(Exception):
    """The file is not a whole expert; the text says in a few words what is wrong."""


def encode(snapshots: Sequence[np.ndarray], metadata: dict[str, Any]) -> pa.Buffer:
    """The bytes of an expert with snapshots float32 (P,) of epochs 0, 1, ...; adds format and sha-256 to the metadata."""
    size = len(snapshots[0])
    described = {**metadata, "format": FORMAT, "sha256": digest(snapshots)}
    fields = [pa.field("epoch", pa.int32(), nullable=False), pa.field("theta", pa.list_(pa.float32(), size), nullable=False)]
    schema = pa.schema(fields, metadata={_METADATA: json.dumps(described)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        for epoch, theta in enumerate(snapshots):
            row = pa.FixedSizeListArray.from_arrays(pa.array(theta, pa.float32()), size)
            writer.write_batch(pa.record_batch([pa.array([epoch], pa.int32()), row], schema=schema))
    return sink.getvalue()


def digest(snapshots: Sequence[np.ndarray]) -> str:
    """Sha-256 hex of the snapshots' little-endian bytes in epoch order: equal for equal experts, whatever their metadata."""
    total = hashlib.sha256()
    for theta in snapshots:
        total.update(np.ascontiguousarray(theta, "<f4"))
    return total.hexdigest()


@dataclass(frozen=True)
class ExpertFile:
    """An open expert: `epochs` is its last snapshot, `size` is P. Keeps the memory map alive while arrays point into it."""

    reader: pa.RecordBatchFileReader
    metadata: dict[str, Any]
    epochs: int
    size: int

    @classmethod
    def open(cls, source: pa.NativeFile) -> "ExpertFile":
        """Read the footer and the metadata. Raises `BadFile` for anything that is not an expert of this format."""
        try:
            reader = pa.ipc.open_file(source)
        except (pa.ArrowInvalid, OSError) as error:
            raise BadFile("truncated, or not an Arrow file") from error
        try:
            metadata = json.loads((reader.schema.metadata or {})[_METADATA])
            size = reader.schema.field("theta").type.list_size
        except (KeyError, ValueError, AttributeError) as error:
            raise BadFile("an Arrow file, but not an expert") from error
        if metadata.get("format") != FORMAT:
            raise BadFile(f"format {metadata.get('format')}, where this version reads format {FORMAT}")
        if reader.num_record_batches < 1:
            raise BadFile("it holds no snapshot")
        return cls(reader, metadata, reader.num_record_batches - 1, size)

    def values(self, epoch: int) -> pa.FloatArray:
        """Snapshot `epoch` as an Arrow array (P,), a view of the memory map where there is one. Raises `BadFile`."""
        try:
            batch = self.reader.get_batch(epoch)
        except (pa.ArrowInvalid, OSError) as error:
            raise BadFile(f"snapshot {epoch} cannot be read") from error
        if batch.num_rows != 1 or batch.column(0)[0].as_py() != epoch:
            raise BadFile(f"snapshot {epoch} is not in its place")
        return batch.column(1).flatten()

    def check(self) -> None:
        """Read every snapshot and compare the sha-256. Raises `BadFile`."""
        snapshots = [self.values(epoch).to_numpy(zero_copy_only=True) for epoch in range(self.epochs + 1)]
        if digest(snapshots) != self.metadata.get("sha256"):
            raise BadFile("its contents do not match its sha-256")
