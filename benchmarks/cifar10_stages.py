"""CIFAR-10: DM in three stages against DM in one, at the same number of images, of steps and of training updates.

    python benchmarks/cifar10_stages.py --data DIR --work runs/stages --steps 400

DIR holds CIFAR-10 as Parquet. The staged run distils 3 x 3 images per class with --steps steps for each stage, the other 9 with three
times as many; a third run is staged without transition, so on fresh networks. Networks are trained as DM evaluates: on staged sets
progressively and on their union, on the other with as many updates. Random real images of the same number stand beside each. Runs are
resumed, not repeated, when the script is started again.
Writes cifar10_stages.json and .table.md to benchmarks/results.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

from cifar10_methods import RESULTS, call, took

from raydd.environment import environment

STAGES, IPC = 3, 3


def main() -> None:
    options = parse()
    work = Path(options.work)
    work.mkdir(parents=True, exist_ok=True)
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    staged = ["--stages.count", str(STAGES), "--ipc", str(IPC), "--steps", str(options.steps)]
    arms = {
        "staged": staged,
        "no-transition": [*staged, "--stages.no_transition"],
        "single": ["--ipc", str(STAGES * IPC), "--steps", str(STAGES * options.steps)],
    }
    common = [
        *("--data", f"parquet:{options.data}", "--model.width", str(options.width), "--workers", "0", "--seed", str(options.seed)),
        *("--dm.batch_real", str(options.batch_real), "--stages.networks", str(options.networks)),
        *("--stages.transition_epochs", str(options.transition_epochs), "--evaluation.every", "0", "--evaluation.no_at_end"),
    ]
    for name, settings in arms.items():
        folder = work / name
        if not (folder / "result.json").exists():
            again = ["distill", "--resume", str(folder)]
            call(
                again if (folder / "config.json").exists() else ["distill", "cifar10-dm-ipc10", *settings, "--run", str(folder), *common],
                environ,
            )
    passes = round(2 * options.epochs / (STAGES + 1))
    updates = str(STAGES * (passes + 1))  # the protocol makes one pass more; each set is one batch
    judged = {
        "staged, progressive": ["staged", "--epochs", str(options.epochs)],
        "staged, union": ["staged", "--stages", "union", "--updates", updates],
        "without transition, progressive": ["no-transition", "--epochs", str(options.epochs)],
        "without transition, union": ["no-transition", "--stages", "union", "--updates", updates],
        "single stage": ["single", "--updates", updates],
    }
    found = {}
    for title, (name, *settings) in judged.items():
        record = work / f"{title.replace(', ', '-').replace(' ', '-')}-{options.epochs}-{options.nets}.json"
        if not record.exists():
            record.write_text(
                call(["evaluate", str(work / name), "--json", "--nets", str(options.nets), "--samples", "1", *settings], environ)
            )
        found[title] = json.loads(record.read_text().splitlines()[-1])
    write(options, found, {name: took(work / name) for name in arms})


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with CIFAR-10 as Parquet")
    parser.add_argument("--work", default="runs/stages", help="folder of the runs")
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--steps", type=int, default=400, help="of each stage")
    parser.add_argument("--batch-real", type=int, default=128, help="real images of a class in a step")
    parser.add_argument("--networks", type=int, default=10, help="start networks")
    parser.add_argument("--transition-epochs", type=int, default=100)
    parser.add_argument("--nets", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=300, help="E of the evaluation; each of the three sets gets 2 E / 4")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def write(options: argparse.Namespace, found: dict[str, dict[str, Any]], runs: dict[str, dict[str, float]]) -> None:
    """The JSON file and the table."""
    record = {"environment": environment(), "options": vars(options) | {"data": "CIFAR-10 as Parquet"}, "runs": runs, "accuracies": found}
    (RESULTS / "cifar10_stages.json").write_text(json.dumps(record, indent=1) + "\n")
    lines = ["| set, trained | images per class | updates | accuracy, % | random real images, % |", "|---|---|---|---|---|"]
    for title, one in found.items():
        rows = one.get("by_stage", [{"ipc": STAGES * IPC, **one}])
        real = one.get("random_by_stage", [{"accuracy_mean": one["random_accuracy_mean"], "accuracy_std": one["random_accuracy_std"]}])
        for ours, other in zip(rows, real, strict=True):
            cells = [f"{100 * each['accuracy_mean']:.1f} ± {100 * each['accuracy_std']:.1f}" for each in (ours, other)]
            last = ours["ipc"] == STAGES * IPC
            lines.append(f"| {title} | {ours['ipc']} | {one['updates'] if last else ''} | {' | '.join(cells)} |")
    (RESULTS / "cifar10_stages.table.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
