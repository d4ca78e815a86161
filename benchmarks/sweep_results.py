"""Keeps the result of a sweep in the repository: sweep.json, table.md, best.toml, the page, and the images of the best run.

    python benchmarks/sweep_results.py runs/sweeps/temperature

writes benchmarks/results/sweeps/temperature. Places of the machine become STORAGE and STORE. The runs stay where they are, and with
them their reports.
"""

import argparse
import shutil
from pathlib import Path
from typing import Any

from raydd.files import atomic_write_bytes, atomic_write_json, read_json
from raydd.report.sweep import write_sweep_report
from raydd.report.sweepdata import read_sweep

RESULTS = Path(__file__).parent / "results" / "sweeps"


def without(value: Any, places: dict[str, str]) -> Any:
    """The same nested value with a word for each place in all texts."""
    if isinstance(value, str):
        for place, word in places.items():
            value = value.replace(place, word)
        return value
    if isinstance(value, dict):
        return {name: without(part, places) for name, part in value.items()}
    return [without(part, places) for part in value] if isinstance(value, list) else value


def keep(sweep: Path, out: Path) -> Path:
    """Copy what is worth keeping and write its page; returns the page."""
    found = read_json(sweep / "sweep.json")
    found["environment"].pop("host", None)
    places = {found["options"]["execution"]["store"]: "STORE", str(sweep.parent): "STORAGE"}
    atomic_write_json(out / "sweep.json", without(found, places))
    for name in ("table.md", "best.toml"):
        atomic_write_bytes(out / name, (sweep / name).read_bytes())
    best = read_sweep(sweep).best
    if best is not None:
        (out / best["run"]).mkdir(parents=True, exist_ok=True)
        shutil.copy(sweep / best["run"] / "synthetic.safetensors", out / best["run"])
    return write_sweep_report(out)


def main() -> None:
    """Keep each sweep that is named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sweeps", nargs="+", type=Path, help="sweep folders")
    for sweep in parser.parse_args().sweeps:
        folder = sweep.resolve()
        (RESULTS / folder.name).mkdir(parents=True, exist_ok=True)
        print(keep(folder, RESULTS / folder.name))


if __name__ == "__main__":
    main()
