"""Does each method beat random real images of the same number on digits, and does the choice of networks or experts matter?

    python benchmarks/digits_methods.py --work runs/digits --ipc 1 10

Every method runs its recipe digits-METHOD-ipcN with three candidates drawn by lot (uniform), with three scored ones (dynadistill), and
with --policies base with one. Every run evaluates its images, and random real ones under the same protocol, on fresh networks.
Protocols differ between methods as their papers' do, so a row compares with the random images beside it, not with other rows.
Runs are resumed, not repeated, when the script is started again. Writes digits_methods.json, .table.md and .png to --results.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from raydd.environment import environment

RESULTS = Path(__file__).parent / "results"
METHODS = {"mtt": "MTT", "dc": "DC", "dsa": "DSA", "idc": "IDC", "dream": "DREAM", "dreamplus": "DREAM+", "dm": "DM", "cafe": "CAFE"}
POLICIES = {
    "base": ("M = 1", ()),
    "uniform": ("uniform, M = 3", ("--selection.policy", "uniform", "--selection.candidates", "3")),
    "dynadistill": ("DynaDistill, M = 3", ("--selection.policy", "dynadistill", "--selection.candidates", "3")),
}
COLOURS = {"base": "#000000", "uniform": "#009e73", "dynadistill": "#0072b2"}


@dataclass(frozen=True)
class Order:
    """One run."""

    ipc: int
    method: str
    policy: str
    seed: int

    @property
    def recipe(self) -> str:
        """Its settings."""
        return f"digits-{self.method}-ipc{self.ipc}"

    @property
    def folder(self) -> str:
        """Its place below --work."""
        return f"{self.recipe}-{self.policy}-{self.seed}"


def main() -> None:
    options = parse()
    work = Path(options.work)
    work.mkdir(parents=True, exist_ok=True)
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    common = ["--store", str(work / "experts"), "--workers", "0"]
    orders = [Order(*parts) for parts in product(options.ipc, options.methods, options.policies, range(options.seeds))]
    orders.sort(key=lambda order: order.seed)  # one seed of everything first, so that a table can be made early

    # Runs side by side share the experts, so these are there before the first of them.
    for recipe in sorted({order.recipe for order in orders if order.method == "mtt"}):
        call(["experts", recipe, *common], environ)

    def run(order: Order) -> None:
        folder = work / order.folder
        if finished(folder, options):
            return
        start = ["--resume", str(folder)] if (folder / "config.json").exists() else [order.recipe, "--run", str(folder)]
        steps = ["--steps", str(options.steps)] if options.steps else []
        epochs = ["--evaluation.epochs", str(options.epochs)] if options.epochs else []
        flags = [*POLICIES[order.policy][1], "--seed", str(order.seed), "--evaluation.nets", str(options.nets)]
        call(["distill", *start, *common, *flags, *steps, *epochs], environ)

    with ThreadPoolExecutor(options.parallel) as pool:
        list(pool.map(run, orders))
    write(options, [{**vars(order), **read(work / order.folder)} for order in orders])


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", default="runs/digits_methods", help="folder of the runs and experts")
    parser.add_argument("--ipc", type=int, nargs="+", choices=(1, 10), default=[1])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=["uniform", "dynadistill"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--nets", type=int, default=5, help="networks for each evaluation")
    parser.add_argument("--steps", type=int, help="steps of every run; default: the recipe's")
    parser.add_argument("--epochs", type=int, help="epochs of every evaluation; default: the recipe's")
    parser.add_argument("--parallel", type=int, default=1, help="runs side by side, one core each")
    parser.add_argument("--results", default=str(RESULTS), help="folder of the three result files")
    return parser.parse_args()


def call(arguments: list[str], environ: dict[str, str]) -> None:
    """Run one raydd command; stop with its message when it fails."""
    done = subprocess.run([sys.executable, "-m", "raydd", *arguments], env=environ, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"raydd {' '.join(arguments)}\n{done.stderr}")
    print(" ".join(arguments[:4]), "done:", done.stdout.strip().splitlines()[-1], flush=True)


def finished(folder: Path, options: argparse.Namespace) -> bool:
    """Whether a run is there with its evaluation, as far and on as many networks as asked for now."""
    if not (folder / "result.json").exists():
        return False
    result = json.loads((folder / "result.json").read_text())
    enough = result["steps"] >= (options.steps or 0)
    return enough and result["evaluation"] is not None and result["evaluation"]["nets"] == options.nets


def read(folder: Path) -> dict[str, Any]:
    """Accuracies of every network, on synthetic and on random real images, and the seconds of the run."""
    result = json.loads((folder / "result.json").read_text())
    records = [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]
    last = {record["kind"]: record for record in records if record["step"] == result["steps"]}
    return {
        "steps": result["steps"],
        "accuracies": last["synthetic"]["accuracies"],
        "random_accuracies": last["random"]["accuracies"],
        "evaluation": last["synthetic"]["settings"],
        "evaluation_seconds": last["synthetic"]["seconds"] + last["random"]["seconds"],
        "seconds": result["seconds"],
    }


def summary(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each ipc, method and policy, the best first."""
    rows = []
    for ipc, method, policy in dict.fromkeys((run["ipc"], run["method"], run["policy"]) for run in runs):
        own = [run for run in runs if (run["ipc"], run["method"], run["policy"]) == (ipc, method, policy)]
        mean, deviation = spread([accuracy for run in own for accuracy in run["accuracies"]])
        random_mean, random_deviation = spread([accuracy for run in own for accuracy in run["random_accuracies"]])
        rows.append(
            {
                "ipc": ipc,
                "method": method,
                "policy": policy,
                "accuracy_mean": mean,
                "accuracy_std": deviation,
                "std_over_seeds": spread([statistics.fmean(run["accuracies"]) for run in own])[1],
                "random_accuracy_mean": random_mean,
                "random_accuracy_std": random_deviation,
                "protocol": own[0]["evaluation"]["protocol"],
                "steps": own[0]["steps"],
                "seconds": statistics.median(run["seconds"] for run in own),
            }
        )
    return sorted(rows, key=lambda row: (row["ipc"], -row["accuracy_mean"]))


def spread(values: list[float]) -> tuple[float, float]:
    """Mean and population standard deviation."""
    return statistics.fmean(values), statistics.pstdev(values)


def write(options: argparse.Namespace, runs: list[dict[str, Any]]) -> None:
    """The three result files."""
    rows, results = summary(runs), Path(options.results)
    settings = {name: value for name, value in vars(options).items() if name not in ("work", "results")}
    machine = {key: value for key, value in environment().items() if key not in ("command", "host")}
    results.mkdir(parents=True, exist_ok=True)
    content = {"settings": settings, "environment": machine, "summary": rows, "runs": runs}
    (results / "digits_methods.json").write_text(json.dumps(content, indent=1) + "\n")
    text = "\n".join(table(ipc, [row for row in rows if row["ipc"] == ipc], options) for ipc in sorted(set(options.ipc)))
    (results / "digits_methods.table.md").write_text(text)
    draw(rows).savefig(results / "digits_methods.png", dpi=120)
    print(text)


def table(ipc: int, rows: list[dict[str, Any]], options: argparse.Namespace) -> str:
    """The rows of one ipc in Markdown. Deviations are over all networks of all seeds, and over the means of the seeds."""
    lines = [
        f"### {ipc} image{'s' * (ipc > 1)} per class, {options.seeds} seeds x {options.nets} networks",
        "",
        "| method | networks or experts | accuracy, % | std | std over seeds | random real, % | std | protocol | steps | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        shares = ("accuracy_mean", "accuracy_std", "std_over_seeds", "random_accuracy_mean", "random_accuracy_std")
        numbers = " | ".join(f"{100 * row[name]:.1f}" for name in shares)
        words = (METHODS[row["method"]], POLICIES[row["policy"]][0], numbers, row["protocol"], str(row["steps"]), f"{row['seconds']:.0f}")
        lines.append(f"| {' | '.join(words)} |")
    return "\n".join(lines) + "\n"


def draw(rows: list[dict[str, Any]]) -> Figure:
    """A panel for each ipc, a line for each method: mean and deviation over all networks, and the same of random real images in grey."""
    panels = {ipc: [row for row in rows if row["ipc"] == ipc] for ipc in dict.fromkeys(row["ipc"] for row in rows)}
    figure = Figure(figsize=(6 * len(panels), 4.5), layout="constrained")
    for axes, (ipc, own) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        methods = list(dict.fromkeys(row["method"] for row in reversed(own)))  # the best on top
        policies = [policy for policy in POLICIES if any(row["policy"] == policy for row in own)]
        for row in own:
            height = methods.index(row["method"]) + 0.2 * (policies.index(row["policy"]) - (len(policies) - 1) / 2)
            for name, colour in (("random_accuracy", "#bbbbbb"), ("accuracy", COLOURS[row["policy"]])):
                mean, deviation = 100 * row[f"{name}_mean"], 100 * row[f"{name}_std"]
                axes.errorbar(mean, height, xerr=deviation, color=colour, marker="o", markersize=4, capsize=2)
        axes.set_yticks(range(len(methods)), [METHODS[method] for method in methods])
        axes.set(xlabel="test accuracy, %", title=f"digits, {ipc} image{'s' * (ipc > 1)} per class")
        axes.grid(axis="x", alpha=0.3)
    for policy in policies:
        axes.plot([], [], color=COLOURS[policy], marker="o", label=POLICIES[policy][0])
    axes.plot([], [], color="#bbbbbb", marker="o", label="random real images")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=len(policies) + 1)
    return figure


if __name__ == "__main__":
    main()
