"""Which device a process computes on, and how exactly."""

import os

import torch

from raydd.errors import ResourceError


def resolve(device: str) -> torch.device:
    """The torch device of `--device`: `auto` is CUDA when there is one. Raises `ResourceError` when CUDA is asked for and absent."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ResourceError("--device=cuda needs a CUDA device; this machine has 0. Use --device auto or --device cpu.")
    return torch.device("cuda" if device == "cuda" or (device == "auto" and torch.cuda.is_available()) else "cpu")


def prepare(threads: int, deterministic: bool, tf32: bool) -> None:
    """Set this process's threads and numerics: called once by every process that computes.

    Without TF32, matrix products and convolutions are float32; torch's own default would allow TF32 in convolutions.
    """
    if deterministic:
        # cuBLAS is deterministic only with a fixed workspace, which it reads when the first CUDA call is made.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(threads)
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = not deterministic
    # The same as torch.use_deterministic_algorithms, which would import the compiler: most of a second for every worker.
    torch.set_deterministic_debug_mode("error" if deterministic else "default")
