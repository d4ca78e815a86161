"""Many storms: whole runs in which random processes and nodes are killed at random moments, on a cluster of nodes on this machine.

Each run must end with the images of the undisturbed one, to the bit. See `tests/chaos/storm.py`; `--first` and `--seed` make any of
them again.

    python benchmarks/chaos.py [--minutes 15] [--seed 1] [--first 0] [--json benchmarks/results/chaos.json]
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the tests, which are no part of the installed package

from benchmarks.machine import described
from tests.actors.case_process import case_process
from tests.commands import SMALL, raydd


def storms(minutes: float, seed: int, first: int, folder: Path) -> list[dict[str, Any]]:
    """The storms of so many minutes, the first of them numbered `first`; one that fails is told of and counted."""
    store = folder / "store"
    assert raydd("experts", "digits-mtt-ipc1", *SMALL, "--store", store).code == 0
    made, number, end = [], first, time.monotonic() + 60 * minutes
    with case_process(folder, "tests.chaos.storm", seed, store) as process:
        while time.monotonic() < end:
            try:
                made.append(process.go(number, patience=2400.0))
            except AssertionError as error:
                made.append({"number": number, "failed": str(error)[-2000:], "kills": []})
            print(json.dumps(made[-1]), flush=True)
            number += 1
    return made


def table(made: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each place and victim: strokes, how many the command survived, and the seconds until the run was further than before."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for storm in made:
        for kill in storm["kills"]:
            groups[storm["where"], kill["victim"]].append(kill)
    return [{"where": where, "victim": victim, **row(kills)} for (where, victim), kills in sorted(groups.items())]


def row(kills: list[dict[str, Any]]) -> dict[str, Any]:
    """n, survivals and recovery times (s) of the strokes of one kind; `measured` is how many left something to recover."""
    seconds = sorted(kill["recovery"] for kill in kills if kill["recovery"] is not None)
    return {"kills": len(kills), "survived": sum(kill["survived"] for kill in kills), "measured": len(seconds), **spread(seconds)}


def spread(seconds: Sequence[float]) -> dict[str, float | None]:
    """Mean, standard deviation, median and largest of these, rounded; None where there are too few."""
    if not seconds:
        return {"mean": None, "sd": None, "median": None, "max": None}
    sd = round(statistics.stdev(seconds), 2) if len(seconds) > 1 else None
    return {
        "mean": round(statistics.fmean(seconds), 2),
        "sd": sd,
        "median": round(statistics.median(seconds), 2),
        "max": round(max(seconds), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    machine = described()
    with tempfile.TemporaryDirectory() as folder:
        made = storms(arguments.minutes, arguments.seed, arguments.first, Path(folder))
    whole = [storm for storm in made if "failed" not in storm]
    result = {
        "question": "Does a run that loses processes and nodes at random moments end with the same images?",
        **machine,
        "settings": {"minutes": arguments.minutes, "seed": arguments.seed, "first": arguments.first},
        "load_after": round(os.getloadavg()[0], 2),
        "storms": len(made),
        "same": sum(storm["same"] for storm in whole),
        "failed": [storm for storm in made if "failed" in storm],
        "kills": sum(len(storm["kills"]) for storm in whole),
        "survived": sum(kill["survived"] for storm in whole for kill in storm["kills"]),
        "commands": sum(len(storm["codes"]) for storm in whole),
        "steps_done_again": sum(storm["steps_lost"] for storm in whole),
        "rows": table(whole),
        "runs": whole,
    }
    print(json.dumps({name: value for name, value in result.items() if name != "runs"}, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(0 if len(whole) == result["same"] == len(made) else 1)


if __name__ == "__main__":
    main()
