"""Devices are refused by name when they are absent, and numerics are set as asked."""

import os

import pytest
import torch

from raydd import devices
from raydd.errors import ResourceError


def test_auto_takes_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for available, expected in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        assert devices.resolve("auto").type == expected
        assert devices.resolve("cpu").type == "cpu"


def test_absent_cuda_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ResourceError, match="--device=cuda needs a CUDA device; this machine has 0"):
        devices.resolve("cuda")


def test_numerics_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    threads = torch.get_num_threads()
    try:
        devices.prepare(threads=2, deterministic=True, tf32=True)
        assert torch.get_num_threads() == 2 and torch.are_deterministic_algorithms_enabled()
        assert torch.backends.cuda.matmul.allow_tf32 and os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        devices.prepare(threads=threads, deterministic=False, tf32=False)
    assert not torch.backends.cudnn.allow_tf32 and not torch.are_deterministic_algorithms_enabled()
