"""What the recipes digits-METHOD-ipc1 and -ipc10 come to as they stand: one candidate, their own steps, five networks, seed 0.

    python benchmarks/digits_recipes.py --work runs/digits_recipes

One recipe after another in this process, without Ray, on one thread. What is done is kept in --work, so that the script may be stopped and
started again; a recipe that was under way is then run anew, and its seconds are whole. Writes digits_recipes.json and .table.md to
--results; the numbers of `expected` in raydd/recipes are from there.
"""

import argparse
import json
import os
import shutil
import time
from itertools import product
from pathlib import Path
from typing import Any

import raydd
from raydd.environment import environment

RESULTS = Path(__file__).parent / "results"
METHODS = ("mtt", "dc", "dsa", "idc", "dream", "dreamplus", "dm", "cafe")


def main() -> None:
    options = parse()
    work = Path(options.work)
    names = [f"digits-{method}-ipc{ipc}" for ipc, method in product(options.ipc, options.methods)]
    for name in names:
        if not row_file(work, name).exists():
            measure(work, name)
        print(line(read(work, name)), flush=True)
    write(Path(options.results), [read(work, name) for name in names])


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", default="runs/digits_recipes", help="folder of the runs and experts")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--ipc", type=int, nargs="+", choices=(1, 10), default=[1, 10])
    parser.add_argument("--results", default=str(RESULTS), help="folder of the two result files")
    return parser.parse_args()


def row_file(work: Path, name: str) -> Path:
    return work / name / "row.json"


def read(work: Path, name: str) -> dict[str, Any]:
    return json.loads(row_file(work, name).read_text())


def measure(work: Path, name: str) -> None:
    """Train the experts of a recipe, if it has any, distil and evaluate; leaves its row."""
    folder = work / name
    shutil.rmtree(folder, ignore_errors=True)
    config = raydd.load_recipe(name).config
    execution = raydd.Execution(run=str(folder / "run"), store=str(folder / "store"), workers=0, device="cpu", threads=1)
    load, wall, processor = os.getloadavg(), time.perf_counter(), time.process_time()
    if config.method == "mtt":
        raydd.train_experts(config, execution)
    experts = time.perf_counter() - wall if config.method == "mtt" else 0.0
    result = raydd.distill(config, execution)
    seconds = {
        "experts": experts,
        "distilling": sum(record["seconds"]["total"] for record in records(folder / "run" / "metrics.jsonl")),
        "evaluating": sum(record["seconds"] for record in records(folder / "run" / "evaluations.jsonl")),
        "all": time.perf_counter() - wall,
        "all_processor": time.process_time() - processor,
    }
    row = {
        "recipe": name,
        "steps": result["steps"],
        "candidates": config.selection.candidates,
        "protocol": config.evaluation.protocol,
        **{key: result["evaluation"][key] for key in EVALUATION},
        "images_sha256": result["images_sha256"],
        "seconds": seconds,
        "load": {"before": load, "after": os.getloadavg()},
    }
    row_file(work, name).write_text(json.dumps(row))


EVALUATION = ("accuracy_mean", "accuracy_std", "random_accuracy_mean", "random_accuracy_std", "nets", "epochs")


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in path.read_text().splitlines()]


HEAD = """| recipe | steps | accuracy, % | random real, % | experts, s | distilling, s | in all, s | processor, s | load before, after |
|---|---|---|---|---|---|---|---|---|"""


def line(row: dict[str, Any]) -> str:
    """A recipe as a row of the table."""
    accuracies = [f"{100 * row[f'{kind}accuracy_mean']:.1f} ± {100 * row[f'{kind}accuracy_std']:.1f}" for kind in ("", "random_")]
    seconds = [f"{row['seconds'][part]:.0f}" for part in ("experts", "distilling", "all", "all_processor")]
    load = ", ".join(f"{row['load'][when][0]:.1f}" for when in ("before", "after"))
    return f"| {' | '.join([row['recipe'], str(row['steps']), *accuracies, *seconds, load])} |"


def write(results: Path, rows: list[dict[str, Any]]) -> None:
    """Both result files."""
    machine = {key: value for key, value in environment().items() if key not in ("command", "host")}
    content = {"settings": {"seed": 0, "threads": 1, "workers": 0}, "environment": machine, "rows": rows}
    results.mkdir(parents=True, exist_ok=True)
    (results / "digits_recipes.json").write_text(json.dumps(content, indent=1) + "\n")
    (results / "digits_recipes.table.md").write_text("\n".join([HEAD, *map(line, rows)]) + "\n")


if __name__ == "__main__":
    main()
