"""The machine and the versions that a measurement was made with."""

import os
import platform
import time
from pathlib import Path
from typing import Any

import psutil
import ray
import torch


def described() -> dict[str, Any]:
    """Date, hardware, load and versions, JSON-ready."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "measured": time.strftime("%Y-%m-%d"),
        "hardware": {
            "cpu": names[0] if names else platform.processor(),
            "cores": os.cpu_count(),
            "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
            "load_at_start": round(os.getloadavg()[0], 2),
        },
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__), "ray": ray.__version__},
    }
