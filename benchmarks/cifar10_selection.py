"""Does choosing the expert by its score help? MTT, DynaDistill with both signs, and the uniform control on CIFAR-10, ipc 1.

    python benchmarks/cifar10_selection.py --data DIR --work runs/selection

DIR holds CIFAR-10 as Parquet. Every arm runs with the same seeds, experts, start images and step count; plain MTT goes on for as
many steps as give it the compute of an arm with three candidates. Runs are resumed, not repeated, when the script is started again.
Writes cifar10_selection.json, .table.md and .png to benchmarks/results.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from raydd.environment import environment

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Arm:
    """One way to choose the expert; `longer` multiplies the steps, to spend the same compute."""

    name: str
    title: str
    flags: tuple[str, ...]
    longer: float = 1.0


def arms(same_compute: float) -> list[Arm]:
    """The four arms. `same_compute` is the cost of a step with three candidates in steps of plain MTT."""
    three = ("--selection.candidates", "3")
    return [
        Arm("mtt", "MTT (M = 1)", (), same_compute),
        Arm("low", "DynaDistill, low loss likelier", (*three, "--selection.policy", "dynadistill", "--selection.sign", "-1")),
        Arm("high", "DynaDistill, high loss likelier (as printed)", (*three, "--selection.policy", "dynadistill", "--selection.sign", "1")),
        Arm("uniform", "uniform control (M = 3)", (*three, "--selection.policy", "uniform")),
    ]


def main() -> None:
    options = parse()
    work = Path(options.work)
    work.mkdir(parents=True, exist_ok=True)
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    common = [
        *("--data", f"parquet:{options.data}", "--model.width", str(options.width), "--mtt.syn_steps", str(options.syn_steps)),
        *("--experts", str(options.experts), "--store", str(work / "experts"), "--workers", "0"),
    ]
    evaluation = [
        *("--evaluation.every", str(options.steps // 10), "--evaluation.nets", str(options.nets)),
        *("--evaluation.epochs", str(options.epochs), "--evaluation.samples", "1", "--evaluation.no_at_end"),
    ]
    call(["experts", "cifar10-mtt-ipc1", *common], environ)
    chosen = arms(options.same_compute)
    orders = [(arm, seed) for seed in range(options.seeds) for arm in chosen]

    def run(order: tuple[Arm, int]) -> None:
        arm, seed = order
        folder, steps = work / f"{arm.name}-{seed}", round(options.steps * arm.longer)
        if (folder / "result.json").exists() and json.loads((folder / "result.json").read_text())["steps"] >= steps:
            return
        start = ["--resume", str(folder)] if (folder / "config.json").exists() else ["cifar10-mtt-ipc1", "--run", str(folder)]
        # One step more than the last evaluation, because the end of a run is not evaluated here.
        call(["distill", *start, *common, *evaluation, *arm.flags, "--seed", str(seed), "--steps", str(steps + 1)], environ)

    with ThreadPoolExecutor(options.parallel) as pool:
        list(pool.map(run, orders))
    write(options, chosen, [{"arm": arm.name, "seed": seed, **read(work / f"{arm.name}-{seed}")} for arm, seed in orders])


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with CIFAR-10 as Parquet")
    parser.add_argument("--work", default="runs/selection", help="folder of the runs and experts")
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--syn-steps", type=int, default=20)
    parser.add_argument("--experts", type=int, default=10)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--nets", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--same-compute", type=float, default=1.6, help="cost of a step with M = 3 in steps with M = 1, as measured")
    parser.add_argument("--parallel", type=int, default=2, help="runs side by side")
    return parser.parse_args()


def call(arguments: list[str], environ: dict[str, str]) -> None:
    """Run one raydd command; stop with its message when it fails."""
    done = subprocess.run([sys.executable, "-m", "raydd", *arguments], env=environ, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    print(" ".join(arguments[:2]), "done:", done.stdout.strip().splitlines()[-1], flush=True)


def read(folder: Path) -> dict[str, Any]:
    """Accuracy by step, and the median seconds of scoring and updating."""
    records = [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    chosen = [record["candidates"][record["chosen"]] for record in steps if record["chosen"] is not None]
    return {
        "accuracy": {record["step"]: record["accuracy_mean"] for record in records},
        "score_seconds": statistics.median(record["seconds"]["score"] for record in steps),
        "update_seconds": statistics.median(record["seconds"]["update"] for record in steps),
        "last_step_size": steps[-1]["step_size"],
        "mean_loss": statistics.fmean(record["loss"] for record in steps if record["loss"] is not None),
        "start_epochs": [sum(one["epoch"] == epoch for one in chosen) for epoch in range(max(one["epoch"] for one in chosen) + 1)],
        "mean_entropy": statistics.fmean(record["entropy"] or 0.0 for record in steps),
    }


def steps_to_peak(accuracy: dict[int, float], last: int, share: float = 0.95) -> int:
    """First evaluated step up to `last` whose accuracy reaches `share` of the highest up to `last`."""
    within = {step: value for step, value in accuracy.items() if step <= last}
    return min(step for step, value in within.items() if value >= share * max(within.values()))


def write(options: argparse.Namespace, chosen: list[Arm], runs: list[dict[str, Any]]) -> None:
    """The three result files."""
    rows, curves = [], {}
    for arm in chosen:
        own = [run for run in runs if run["arm"] == arm.name]
        points = sorted(own[0]["accuracy"])
        curves[arm.name] = [(step, *spread([run["accuracy"][step] for run in own])) for step in points]
        for last in sorted({options.steps, max(points)}):
            mean, deviation = spread([run["accuracy"][last] for run in own])
            reached = [steps_to_peak(run["accuracy"], last) for run in own]
            rows.append(f"| {arm.title} | {last} | {100 * mean:.2f} | {100 * deviation:.2f} | {', '.join(map(str, reached))} |")
    settings = {name: value for name, value in vars(options).items() if name not in ("data", "work")}
    machine = {key: value for key, value in environment().items() if key not in ("command", "host")}
    RESULTS.mkdir(exist_ok=True)
    content = {"settings": settings, "environment": machine, "runs": runs}
    (RESULTS / "cifar10_selection.json").write_text(json.dumps(content, indent=1) + "\n")
    header = "| arm | steps | accuracy, % | std over seeds | steps to 95 % of the peak, by seed |\n|---|---|---|---|---|\n"
    (RESULTS / "cifar10_selection.table.md").write_text(header + "\n".join(rows) + "\n")
    draw(chosen, curves).savefig(RESULTS / "cifar10_selection.png", dpi=120)
    print(header + "\n".join(rows))


def spread(values: list[float]) -> tuple[float, float]:
    """Mean and population standard deviation."""
    return statistics.fmean(values), statistics.pstdev(values)


def draw(chosen: list[Arm], curves: dict[str, list[tuple[int, float, float]]]) -> Figure:
    """Accuracy over steps, mean and spread over seeds."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for arm, colour in zip(chosen, ("#000000", "#0072b2", "#d55e00", "#009e73"), strict=True):
        steps, means, deviations = zip(*curves[arm.name], strict=True)
        axes.plot(steps, [100 * mean for mean in means], color=colour, label=arm.title, marker=".")
        low, high = ([100 * (m + side * d) for m, d in zip(means, deviations, strict=True)] for side in (-1, 1))
        axes.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.set(xlabel="distillation steps", ylabel="test accuracy, %", title="CIFAR-10, ipc 1: mean and deviation over seeds")
    axes.legend()
    return figure


if __name__ == "__main__":
    main()
