"""Pickling of the draws of a step, which hold many small tensors.

torch writes each tensor through a small archive of its own: the draws of one MTT step take tens of milliseconds that way, there
and in every worker. As numpy arrays they take one.
"""

import io
from typing import Any

import numpy as np
import ray
import torch

_NUMPY_DTYPES = {torch.from_numpy(np.empty(0, kind)).dtype for kind in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "?", "c8", "c16")}


class _Pickler(ray.cloudpickle.CloudPickler):
    def reducer_override(self, value: Any) -> Any:
        if type(value) is torch.Tensor and _is_plain(value):
            return torch.from_numpy, (value.numpy(),)
        return super().reducer_override(value)


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether numpy can hold all there is to know about a tensor."""
    plain = tensor.device.type == "cpu" and tensor.layout is torch.strided and not tensor.requires_grad
    return plain and tensor.dtype in _NUMPY_DTYPES and not tensor.is_neg() and not tensor.is_conj()


def pack(value: Any) -> bytes:
    """Any picklable value; tensors keep their values, types and shapes."""
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=5).dump(value)
    return buffer.getvalue()


def unpack(packed: bytes) -> Any:
    """What was packed. Only for bytes from another process of the same run."""
    return ray.cloudpickle.loads(packed)
