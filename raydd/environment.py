"""What a run ran on: versions, machine, code and command, for `environment.json` and the result file."""

import importlib.metadata
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from raydd.places import redacted_command

_PACKAGES = ("raydd", "torch", "torchvision", "ray", "numpy", "pyarrow", "safetensors")


def versions() -> dict[str, str]:
    """Installed versions of Python and of the packages that decide results; "source tree" for what is not installed."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "source tree"
    return found | {"torch": str(torch.__version__)}  # this one names the CUDA build too


def environment() -> dict[str, Any]:
    """Versions, platform, processor and GPU names, code revision, command line and start time (UTC, ISO 8601), JSON-ready."""
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return {
        "versions": versions(),
        "cuda": torch.version.cuda,
        "platform": platform.platform(),
        "host": platform.node(),
        "cpus": os.cpu_count(),
        "gpus": gpus,
        "commit": commit(),
        "command": redacted_command(sys.argv),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def commit(folder: Path = Path(__file__).parent) -> str | None:
    """The git revision of the code in `folder`, with "+changes" when files differ from it; None outside a repository of this code."""
    # An installed package may lie inside somebody else's repository, which does not track it.
    if _git(folder, "ls-files", "--error-unmatch", "errors.py") is None:
        return None
    head = _git(folder, "rev-parse", "HEAD")
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no", ".")
    return head and head + ("+changes" if changed else "")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
