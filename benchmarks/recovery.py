"""How long it takes until what was lost is there again: the cases of the fault matrix (docs/faults.md), repeated, with times.

Every run ends with the images of the undisturbed one, or the case fails. Seconds are from the stroke until the answer that it kept
back had been computed by somebody else, so they hold the noticing (Ray's health checks, here about 1.5 s for a dead node and 6 s for one
that does not answer), the start of whoever takes over, and the work itself. `total` is the whole run, with the starts of its actors.
Rows of other cases that are in the file already stay.

    python benchmarks/recovery.py [--repeats 3] [--cases score update ...] [--json benchmarks/results/recovery.json]
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the tests, which are no part of the installed package

from benchmarks.chaos import spread
from benchmarks.machine import described
from tests.actors.case_process import case_process
from tests.actors.fault_cases import ALERT, CASES
from tests.commands import SMALL, raydd


def _kept(path: Path | None, measured: set[str]) -> list[dict[str, Any]]:
    """Rows of the file for cases that were not measured now."""
    if path is None or not path.exists():
        return []
    return [row for row in json.loads(path.read_text())["rows"] if row["case"] not in measured]


def written(arguments: argparse.Namespace, machine: dict[str, Any], found: dict[str, list[dict]], failed: list[dict]) -> None:
    """Write what is known so far."""
    rows = [
        {
            "case": case,
            "load": machine["hardware"]["load_at_start"],
            "n": len(answers),
            **spread([answer["seconds"] for answer in answers if answer["seconds"] is not None]),
            "total_mean": spread([answer["total"] for answer in answers])["mean"],
        }
        for case, answers in found.items()
        if answers
    ]
    result = {
        "question": "How soon does a run go on after a loss?",
        **machine,
        "load_after": round(os.getloadavg()[0], 2),
        "settings": {"repeats": arguments.repeats, "health_checks": ALERT, "nodes": 4, "workers": 2},
        "failed": failed,
        "rows": [*_kept(arguments.json, {row["case"] for row in rows}), *rows],
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    machine, found, failed = described(), {case: [] for case in arguments.cases}, []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        assert raydd("experts", "digits-mtt-ipc1", *SMALL, "--store", folder / "store").code == 0
        with case_process(folder, "tests.actors.fault_cases", folder / "store") as process:
            for _ in range(arguments.repeats):
                for case, answers in found.items():
                    try:
                        answers.append(process.go(case))
                        print(case, json.dumps(answers[-1]), flush=True)
                    except AssertionError as error:
                        failed.append({"case": case, "said": str(error)[-2000:]})
                        print(case, "failed", error, flush=True)
                    written(arguments, machine, found, failed)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
