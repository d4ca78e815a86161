"""Tests of `sweeps/`: its scripts are found as Python finds them when one is started."""

import sys
from pathlib import Path

SWEEPS = Path(__file__).parents[2] / "sweeps"
if str(SWEEPS) not in sys.path:
    sys.path.insert(0, str(SWEEPS))
