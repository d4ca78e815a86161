"""A sealed tensor file: safetensors whose JSON metadata carries a sha-256 over all tensors and all metadata.

Checkpoints and result files are sealed files of different kinds. Reading one checks everything, or says what is wrong.
"""

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from raydd.errors import CheckpointError
from raydd.files import atomic_write_bytes


def write(path: Path | str, kind: str, version: int, tensors: Mapping[str, Tensor], metadata: dict[str, Any]) -> None:
    """Write `tensors` and JSON-ready `metadata` atomically as a file of this kind.

    Raises `ResourceError` when it cannot be written.
    """
    atomic_write_bytes(path, packed(kind, version, tensors, metadata))


def packed(kind: str, version: int, tensors: Mapping[str, Tensor], metadata: dict[str, Any]) -> bytes:
    """The content of such a file, for places that are no paths."""
    # Copies, because safetensors refuses tensors that share memory.
    copies = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    text = canonical(metadata)
    header = {"kind": kind, "format": str(version), "metadata": text, "sha256": _digest(kind, version, copies, text)}
    return save_tensors(copies, metadata=header)


def read(path: Path | str, kind: str, version: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors, on the CPU, and the metadata of a sealed file.

    Raises `CheckpointError` with the file's name and the reason: absent, truncated, altered, of another kind or a newer format.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}).") from error
    return unpacked(data, path, kind, version)


def unpacked(data: bytes, path: Path | str, kind: str, version: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The same from the content of the file that lies at `path`. Raises `CheckpointError` as `read` does."""
    header = _header(path, data, kind, version)
    try:
        tensors = load_tensors(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: truncated or altered ({error}).") from error
    if _digest(kind, version, tensors, header["metadata"]) != header["sha256"]:
        raise CheckpointError(f"{path}: altered; its content does not have the sha-256 that it was written with.")
    return tensors, _metadata(path, header["metadata"])


def _metadata(path: Path | str, text: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its metadata cannot be read ({error}).") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: its metadata is a {type(values).__name__} where an object is needed.")
    return values


def canonical(value: Any) -> str:
    """JSON text that is the same for equal values: sorted keys, no spaces, finite numbers only (ValueError otherwise)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _header(path: Path | str, data: bytes, kind: str, version: int) -> dict[str, str]:
    """The metadata strings of a safetensors file; its layout is a little-endian length, that many bytes of JSON, the tensors."""
    try:
        (length,) = struct.unpack("<Q", data[:8])
        if 8 + length > len(data):
            raise ValueError(f"{len(data):,} bytes, less than its own header")
        header = json.loads(data[8 : 8 + length])["__metadata__"]
        found, number = header["kind"], int(header["format"])
        header["metadata"], header["sha256"]
    except struct.error as error:
        raise CheckpointError(f"{path}: truncated ({len(data)} bytes).") from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CheckpointError(f"{path}: truncated, altered, or not a file of raydd ({_reason(error)}).") from error
    if found != kind:
        raise CheckpointError(f"{path}: is a {found}, not a {kind}.")
    if number != version:
        raise CheckpointError(f"{path}: has format {number}; this raydd reads format {version}; use the raydd that wrote it.")
    return header


def _reason(error: Exception) -> str:
    return f"no {error} in its header" if isinstance(error, KeyError) else str(error)


def _digest(kind: str, version: int, tensors: Mapping[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(f"{kind}\n{version}\n{text}\n".encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}\n{tensor.dtype}\n{tuple(tensor.shape)}\n".encode())
        # As bytes, because numpy has no bfloat16.
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
