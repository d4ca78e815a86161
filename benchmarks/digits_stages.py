"""What stages, transition, conditioning, the curriculum and continual learning bring on digits: the tables of PDD made small.

    python benchmarks/digits_stages.py --work runs/digits_stages

Recipes `digits-pdd-mtt-ipc6` and `digits-pdd-idc-ipc6`, changed in one thing at a time. One process, no Ray. One run of three
stages serves P = 1, 2 and 3: the result after each stage is a file, and every file is evaluated. All runs take equally many steps in
all, but for those that look for reasons. Runs and evaluations that are there are kept when the script is started again, and one seed
of everything comes first, so that a table can be made early. Writes digits_stages.json, .table.md and .png to --results.
"""

import argparse
import contextlib
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from digits_stages_runs import BASES, MODES, MOVED, NARROW, SPLITS, VARIANTS, Order, orders, parts, splits, wanted
from digits_stages_tables import PAPER, WORDS, draw, learned, markdown, of_paper, spread

import raydd
from raydd import artifact
from raydd.config import Config, from_dict
from raydd.data import Resident
from raydd.environment import environment
from raydd.evaluate import TrainingSet, evaluate
from raydd.files import append_line, read_lines
from raydd.setup import Evaluator, prepare, random_job, synthetic_job
from raydd.stage_files import stage_path

RESULTS = Path(__file__).parent / "results"
TABLES = ("ablation", "split", "curriculum", "continual", "narrow", "long")
PROTOCOLS = ("scratch", "sequential", "sequential+kd")
SHARED: dict[str, Any] = {"evaluation.at_end": False, "evaluation.samples": 1}
LONG = 4


@dataclass(frozen=True)
class Bench:
    """The options, and where things lie."""

    options: argparse.Namespace

    @property
    def work(self) -> Path:
        """Folder of the runs."""
        return Path(self.options.work).resolve()

    def execution(self, name: str) -> raydd.Execution:
        """Of a run by its folder's name."""
        return raydd.Execution(run=str(self.work / name), store=str(self.work / "experts"), workers=0)

    def config(self, order: Order) -> Config:
        """The settings of a run; its evaluations are made here, one by one."""
        recipe = raydd.load_recipe(f"digits-pdd-{order.base}-ipc6").config
        steps = recipe.steps if order.variant in ("short", "full") else recipe.stages.count * recipe.steps // order.stages
        size = {"ipc": order.ipc, "stages.count": order.stages, "steps": steps, "seed": order.seed}
        return raydd.override(recipe, {**SHARED, **size, "evaluation.nets": self.options.nets, **VARIANTS[order.variant]})


class NotMeasured(Exception):
    """Raised with --only-write for what is not there."""


def main() -> None:
    bench = Bench(parse())
    bench.work.mkdir(parents=True, exist_ok=True)
    if not bench.options.only_write:
        measure(bench)
    write(bench)


def measure(bench: Bench) -> None:
    """Every run and evaluation that is not there yet; those last that look for reasons."""
    options = bench.options
    ceiling(bench)
    for seed, base in product(range(options.seeds), options.bases):
        _measure_runs(bench, base, seed, reasons=False)
        if "continual" in options.tables:
            for stages, protocol in product((3, 1), PROTOCOLS):
                continual(bench, base, stages, protocol, seed)
            continual(bench, base, 3, PROTOCOLS[0], seed, "union")
            continual(bench, base, 3, PROTOCOLS[0], seed, variant=MOVED[base])
    for seed, base in product(range(options.seeds), options.bases):
        _measure_runs(bench, base, seed, reasons=True)
    if "long" in options.tables:
        long_rows(bench)


def _measure_runs(bench: Bench, base: str, seed: int, reasons: bool) -> None:
    for order in orders(bench.options.tables, base, seed, reasons):
        made(bench, order)
        for what in wanted(order):
            measured(bench, order, **what)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", default="runs/digits_stages", help="folder of the runs and experts")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--nets", type=int, default=5, help="networks for each evaluation")
    parser.add_argument("--phases", type=int, default=2, help="phases of continual learning")
    parser.add_argument("--tables", nargs="*", default=list(TABLES), choices=TABLES)
    parser.add_argument("--bases", nargs="+", default=["idc", "mtt"], choices=BASES, help="base methods")
    parser.add_argument("--only-write", action="store_true", help="make the tables of what is there, and leave the other rows out")
    parser.add_argument("--results", default=str(RESULTS), help="folder of the three result files")
    return parser.parse_args()


def made(bench: Bench, order: Order) -> None:
    """See a run through, unless it is finished."""
    config, execution, folder = bench.config(order), bench.execution(order.name), bench.work / order.name
    result = folder / "result.json"
    if result.exists() and json.loads(result.read_text())["complete"]:
        return
    started = time.perf_counter()
    begun = (folder / "config.json").exists()
    found = raydd.resume(folder, config, execution) if begun else raydd.distill(config, execution)
    if not found["complete"]:
        raise SystemExit(f"stopped in {folder}; the same command carries on")
    print(f"{order.name}: {time.perf_counter() - started:.0f} s", flush=True)


def measured(bench: Bench, order: Order, stage: int, mode: str, kind: str = "synthetic", longer: int = 1) -> dict[str, Any]:
    """The accuracies of fresh networks on the images after a stage, from the file of measurements or anew. `longer` multiplies updates."""
    folder, usual = bench.work / order.name, bench.config(order).evaluation.updates or 0
    settings = {"stages": mode, "nets": bench.options.nets, "updates": longer * usual}
    key = {"run": order.name, "stage": stage, "kind": kind, **settings}

    def record() -> dict[str, Any]:
        path = folder / "synthetic.safetensors" if stage == order.stages else stage_path(folder, stage)
        found = artifact.read(path)
        config = raydd.override(from_dict(Config, found.config), {f"evaluation.{name}": value for name, value in settings.items()})
        setup = prepare(config, bench.execution(order.name))
        if kind == "random":
            job = random_job(setup, found.synthetic, found.step, found.stage_step_sizes)
        else:
            job = synthetic_job(config, found.synthetic, found.step, found.decode, found.stage_step_sizes)
        return {**Evaluator(setup)(job), "rates": list(job.rates)}

    return kept(bench, "evaluations.jsonl", key, record)


def continual(
    bench: Bench, base: str, stages: int, protocol: str, seed: int, mode: str = "progressive", variant: str = "pdd"
) -> dict[str, Any]:
    """Continual learning with the images of PDD (three stages, with real images beside them) or of its base (one)."""
    options, order = bench.options, Order(base, stages, 6 // stages, variant, seed)
    phases = {"protocol": protocol, "phases": options.phases}
    key = {"run": order.name, **phases, "nets": options.nets, "stages": mode}

    def record() -> dict[str, Any]:
        settings = raydd.ContinualConfig(
            **phases, baselines="random,herding" if (stages, mode, variant) == (3, "progressive", "pdd") else ""
        )
        execution = bench.execution(f"continual-{order.name}-{options.phases}")
        config = raydd.override(bench.config(order), {"evaluation.stages": mode})
        found = raydd.continual_learning(config, execution, settings, raydd.SelectConfig(epochs=20))
        return {name: found[name] for name in ("sources", "images_per_class", "orders")}

    return kept(bench, "continual.jsonl", key, record)


def ceiling(bench: Bench) -> dict[str, Any]:
    """The same networks trained on all real images: nothing distilled can be expected to come above."""
    options = bench.options
    key = {"nets": options.nets, "epochs": 60}

    def record() -> dict[str, Any]:
        lengths = {"evaluation.updates": None, "evaluation.epochs": key["epochs"]}
        config = raydd.override(bench.config(Order("mtt", 1, 6, "pdd", 0)), lengths)
        setup = prepare(config, bench.execution("all"))
        images = setup.transform.forward(torch.from_numpy(setup.dataset.train.images.copy()))
        training = TrainingSet(images, torch.tensor(setup.dataset.train.labels), 0.05)
        test = Resident.load(setup.dataset.test, setup.transform, setup.device)
        found = evaluate(config, setup.model, [training], test, "cpu")
        return {"accuracies": found.accuracies, "images": len(images), "epochs": found.epochs, "updates": found.updates}

    return kept(bench, "ceiling.jsonl", key, record)


def kept(bench: Bench, name: str, key: dict[str, Any], record: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The record of this key in a file below --work, made if it is not there."""
    path = bench.work / name
    for line in read_lines(path):
        if line["key"] == key:
            return line["record"]
    if bench.options.only_write:
        raise NotMeasured
    started = time.perf_counter()
    found = record()
    print(f"{key}: {time.perf_counter() - started:.1f} s", flush=True)
    append_line(path, {"key": key, "record": found})
    return found


def write(bench: Bench) -> None:
    """The three result files."""
    options, results = bench.options, Path(bench.options.results)
    tables = {"stages": stages_rows(bench)}
    makers = {"long": long_rows, "ablation": ablation_rows, "split": split_rows, "curriculum": curriculum_rows, "continual": continual_rows}
    makers["narrow"] = narrow_rows
    tables |= {name: make(bench) for name, make in makers.items() if name in options.tables}
    tables = {name: [row for row in rows if row["n"]] for name, rows in tables.items()}
    tables = {name: rows for name, rows in tables.items() if rows}
    settings = {name: value for name, value in vars(options).items() if name not in ("work", "results")}
    machine = {key: value for key, value in environment().items() if key not in ("command", "host")}
    content = {"settings": settings, "environment": machine, "full_data": full_data(bench), "tables": tables}
    singles = {name: read_lines(bench.work / name) for name in ("evaluations.jsonl", "continual.jsonl", "ceiling.jsonl")}
    results.mkdir(parents=True, exist_ok=True)
    (results / "digits_stages.json").write_text(json.dumps({**content, "single": singles}, indent=1) + "\n")
    text = "\n".join(markdown(name, rows) for name, rows in tables.items())
    (results / "digits_stages.table.md").write_text(text)
    draw(tables, content["full_data"]["mean"]).savefig(results / "digits_stages.png", dpi=120)
    print(f"full data: {content['full_data']}\n\n{text}")


def full_data(bench: Bench) -> dict[str, Any]:
    """Accuracy of networks trained on all real images."""
    found = present(iter([partial(ceiling, bench)]))
    return spread(found[0]["accuracies"] if found else [])


def pooled(bench: Bench, base: str, stages: int, variant: str, **what: Any) -> dict[str, Any]:
    """Accuracies over all networks of all seeds of one kind of run; n is 0 where none is measured."""
    orders = [Order(base, stages, 6 // stages, variant, seed) for seed in range(bench.options.seeds)]
    found = [record["accuracies"] for record in present(partial(measured, bench, order, **what) for order in orders)]
    over_seeds = spread([statistics.fmean(own) for own in found])["std"]
    return {**spread([accuracy for own in found for accuracy in own]), "std_over_seeds": over_seeds}


def present(records: Iterator[Callable[[], dict[str, Any]]]) -> list[dict[str, Any]]:
    """Those that are there; without --only-write all of them."""
    found = []
    for record in records:
        with contextlib.suppress(NotMeasured):
            found.append(record())
    return found


def stages_rows(bench: Bench) -> list[dict[str, Any]]:
    """Table 3: by stages and by what networks are trained on in turn; random real images as many as three stages have."""
    rows = []
    for base in bench.options.bases:
        for stage in (1, 2, 3):
            for mode in MODES if stage > 1 else MODES[:1]:
                found = pooled(bench, base, 3, "pdd", stage=stage, mode=mode)
                paper = PAPER["stages"][base, stage, mode]
                rows.append({"base": BASES[base], "stages": stage, "training": mode if stage > 1 else "-", **found, "paper": paper})
        found = pooled(bench, base, 3, "pdd", stage=3, mode="progressive", kind="random")
        rows.append({"base": BASES[base], "stages": 3, "training": "random real images, progressive", **found, "paper": ""})
    return rows


def long_rows(bench: Bench) -> list[dict[str, Any]]:
    """Table 3 once more for three stages, with networks that train four times as long."""
    rows = []
    for base in bench.options.bases:
        for mode in MODES:
            found = pooled(bench, base, 3, "pdd", stage=3, mode=mode, longer=LONG)
            rows.append({"base": BASES[base], "stages": 3, "training": mode, **found, "paper": PAPER["stages"][base, 3, mode]})
    return rows


def ablation_rows(bench: Bench) -> list[dict[str, Any]]:
    """Table 4: with and without transition and conditioning, trained progressively."""
    rows = []
    for base in bench.options.bases:
        for variant in ("pdd", "no_transition", "no_conditioning"):
            for stage in (2, 3):
                found = pooled(bench, base, 3, variant, stage=stage, mode="progressive")
                paper = of_paper(base, PAPER["ablation"][variant, stage])
                rows.append({"base": BASES[base], "variant": WORDS[variant], "stages": stage, **found, "paper": paper})
    return rows


def narrow_rows(bench: Bench) -> list[dict[str, Any]]:
    """Tables 4 and 5 once more, where one stage is shown no more than the first two epochs of the experts."""
    kinds = [(1, "narrow", "one stage")] + [(3, name, WORDS[name.replace("narrow_", "").replace("narrow", "pdd")]) for name in NARROW]
    rows = []
    for stages, variant, words in kinds if "mtt" in bench.options.bases else []:
        found = pooled(bench, "mtt", stages, variant, stage=stages, mode="progressive")
        rows.append({"base": "MTT", "stages x images": f"{stages} x {6 // stages}", "variant": words, **found})
    return rows


def split_rows(bench: Bench) -> list[dict[str, Any]]:
    """Table 5: six images per class in one to six stages."""
    rows = []
    for base in bench.options.bases:
        for stages, variant in splits(base):
            words = SPLITS[stages, variant]
            found = pooled(bench, base, stages, variant, stage=stages, mode="progressive")
            paper = of_paper(base, PAPER["split"][stages]) if not words else ""
            rows.append({"base": BASES[base], "stages x images": f"{stages} x {6 // stages}{words}", **found, "paper": paper})
    return rows


def curriculum_rows(bench: Bench) -> list[dict[str, Any]]:
    """Table 6: each stage distils all images, or part of them by how often they are forgotten."""
    rows = []
    for base in bench.options.bases:
        for variant, words in parts(base).items():
            found = pooled(bench, base, 3, variant, stage=3, mode="progressive")
            paper = of_paper(base, PAPER["curriculum"].get(variant, ""))
            rows.append({"base": BASES[base], "real images": words, **found, "paper": paper})
    return rows


def continual_rows(bench: Bench) -> list[dict[str, Any]]:
    """Table 7: accuracy on all classes seen after each phase, and forgetting at the end."""
    rows = []
    for base, protocol in product(bench.options.bases, PROTOCOLS):
        name = BASES[base]
        kinds = [(f"PDD+{name}", 3, "distilled", "progressive", "pdd"), (name, 1, "distilled", "progressive", "pdd")]
        kinds += [(real, 3, real, "progressive", "pdd") for real in ("herding", "random")]
        if protocol == PROTOCOLS[0]:
            kinds += [(f"PDD+{name}, union", 3, "distilled", "union", "pdd")]
            kinds += [(f"PDD+{name}, moved as far", 3, "distilled", "progressive", MOVED[base])]
        for kept_, stages, source, mode, variant in kinds:
            seeds = range(bench.options.seeds)
            found = present(partial(continual, bench, base, stages, protocol, seed, mode, variant) for seed in seeds)
            if found:
                row = {"base": name, "protocol": protocol, "kept": kept_, **learned(found, source)}
                rows.append({**row, "paper": of_paper(base, PAPER["continual"].get(kept_.replace(name, "MTT"), ""))})
    return rows


if __name__ == "__main__":
    main()
