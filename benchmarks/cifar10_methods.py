"""CIFAR-10, 10 images per class: DM and IDC for as many steps as there is time, beside random images and herding, on two networks.

    python benchmarks/cifar10_methods.py --data DIR --work runs/methods --dm-steps 1000 --idc-steps 400

DIR holds CIFAR-10 as Parquet. Each set is evaluated by the protocol of its own method, random and herding by that of DM, on a ConvNet-3
and on the thin ResNet-10 with batch norm of IDC's table; every set has its own row of random real images under the same protocol. Runs
are resumed, not repeated, when the script is started again. Writes cifar10_methods.json and .table.md to benchmarks/results.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from raydd.environment import environment

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    options = parse()
    work = Path(options.work)
    work.mkdir(parents=True, exist_ok=True)
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    orders = {
        "idc": ["distill", "cifar10-idc-ipc10", "--steps", str(options.idc_steps)],
        "dm": ["distill", "cifar10-dm-ipc10", "--steps", str(options.dm_steps)],
        "herding": ["select", "herding", "cifar10-dm-ipc10", "--select.epochs", str(options.select_epochs)],
    }
    common = [
        *("--data", f"parquet:{options.data}", "--model.width", str(options.width), "--workers", "0", "--seed", "0"),
        *("--evaluation.every", "0", "--evaluation.no_at_end"),
    ]

    def make(name: str) -> dict[str, Any]:
        folder = work / name
        if not (folder / "result.json").exists():
            command, *rest = orders[name]
            if command == "distill" and (folder / "config.json").exists():
                call(["distill", "--resume", str(folder)], environ)
            else:
                call([command, *rest, "--run", str(folder), *common], environ)
        record = folder / f"evaluated-{options.epochs}-{options.nets}.json"
        if not record.exists():
            sizes = ["--nets", str(options.nets), "--epochs", str(options.epochs), "--samples", "1", "--model", options.models]
            record.write_text(call(["evaluate", str(folder), "--json", *sizes], environ))
        return json.loads(record.read_text().splitlines()[-1])["models"]

    with ThreadPoolExecutor(options.parallel) as pool:
        found = dict(zip(orders, pool.map(make, orders), strict=True))
    write(options, found, {name: took(work / name) for name in orders if name != "herding"})


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with CIFAR-10 as Parquet")
    parser.add_argument("--work", default="runs/methods", help="folder of the runs")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--dm-steps", type=int, default=1000)
    parser.add_argument("--idc-steps", type=int, default=400)
    parser.add_argument("--select-epochs", type=int, default=10)
    parser.add_argument("--models", default="convnet,resnet10-thin")
    parser.add_argument("--nets", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=300, help="passes of the evaluation, for every protocol")
    parser.add_argument("--parallel", type=int, default=2, help="runs side by side")
    return parser.parse_args()


def call(arguments: list[str], environ: dict[str, str]) -> str:
    """The output of one raydd command; stop with its message when it fails."""
    done = subprocess.run([sys.executable, "-m", "raydd", *arguments], env=environ, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    print(" ".join(arguments[:2]), "done", flush=True)
    return done.stdout


def took(folder: Path) -> dict[str, float]:
    """Steps and hours of a run."""
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {"steps": len(steps), "hours": sum(step["seconds"]["total"] for step in steps) / 3600}


def write(options: argparse.Namespace, found: dict[str, dict[str, Any]], runs: dict[str, dict[str, float]]) -> None:
    """The JSON file and the table."""
    record = {"environment": environment(), "options": vars(options) | {"data": "CIFAR-10 as Parquet"}, "runs": runs, "accuracies": found}
    (RESULTS / "cifar10_methods.json").write_text(json.dumps(record, indent=1) + "\n")
    names = options.models.split(",")
    lines = ["| set | steps | " + " | ".join(f"{name}, % | random real images, % |" for name in names), "|---" * (2 + 2 * len(names)) + "|"]
    for title, models in found.items():
        cells = [
            f"{100 * models[name][f'{kind}accuracy_mean']:.1f} ± {100 * models[name][f'{kind}accuracy_std']:.1f}"
            for name in names
            for kind in ("", "random_")
        ]
        lines.append(f"| {title} | {int(runs[title]['steps']) if title in runs else ''} | " + " | ".join(cells) + " |")
    (RESULTS / "cifar10_methods.table.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
