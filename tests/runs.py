"""Small runs, in this process or as a command in another, and what must be equal between two of them."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from raydd import artifact
from raydd.config import Config, Execution, override
from raydd.files import read_json, read_lines
from raydd.recipes import load_recipe
from raydd.run import run
from raydd.runfolder import RunFolder
from raydd.services import InlineServices, Services

# The experts are those of the fixture `store`. Few inner steps; batches and augmentation draw from every random stream of a step.
SETTINGS = {
    "steps": 8,
    "model.width": 8,
    "experts.count": 3,
    "mtt.syn_steps": 3,
    "mtt.batch_syn": 7,
    "selection.policy": "dynadistill",
    "selection.candidates": 3,
    "selection.temperature": 0.02,
    "evaluation.at_end": False,
    "evaluation.nets": 2,
    "evaluation.epochs": 2,
}
CONFIG = override(load_recipe("digits-mtt-ipc1").config, SETTINGS)

# Small networks that train between updates: two lifetimes and a half, two candidates in each selection.
NETWORKS = {
    "steps": 5,
    "init": "mix",
    "model.width": 4,
    "model.depth": 2,
    "dc.outer": 2,
    "dc.inner": 1,
    "dc.batch_real": 6,
    "dm.batch_real": 6,
    "cafe.batch_real": 6,
    "cafe.queries": 6,
    "cafe.window": 2,
    "cafe.max_outer": 2,
    "cafe.max_inner": 2,
    "idc.inner_steps": 2,
    "idc.batch_real": 6,
    "idc.batch_net": 256,
    "idc.net_images": 300,
    "dream.interval": 1,
    "dream.iterations": 2,
    "selection.policy": "dynadistill",
    "selection.candidates": 2,
    "selection.pool": 2,
    "selection.slots": "put_back",
    "evaluation.at_end": False,
}


def with_networks(name: str, **settings: Any) -> Config:
    """A small run of a method whose networks train between updates; a dot is written as two underscores."""
    return but(override(load_recipe("digits-mtt-ipc1").config, {"method": name, **NETWORKS}), **settings)


def but(config: Config = CONFIG, **settings: Any) -> Config:
    """The configuration with other settings; a dot is written as two underscores."""
    return override(config, {name.replace("__", "."): value for name, value in settings.items()})


def execution(path: Path, store: Path, **settings: Any) -> Execution:
    return Execution(run=str(path), store=str(store), device="cpu", **{"workers": 0, "checkpoint_every": 3, **settings})


def go(
    path: Path,
    store: Path,
    config: Config = CONFIG,
    services: Services | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    report: Callable[[dict[str, Any]], None] = lambda progress: None,
    **settings: Any,
) -> dict[str, Any]:
    """Start the run at `path`, or carry on with it; inline unless other services are given."""
    how = execution(path, store, **settings)
    if not (path / "config.json").exists():
        RunFolder.create(path, config, how).close()
    with RunFolder.open(path) as folder:
        return run(folder, config, how, services or InlineServices(torch.device("cpu")), should_stop, report)


def metrics(path: Path) -> list[dict[str, Any]]:
    """The record of every step, without its times."""
    return [{name: value for name, value in record.items() if name != "seconds"} for record in read_lines(path / "metrics.jsonl")]


def evaluations(path: Path) -> list[dict[str, Any]]:
    """The record of every evaluation, without its times, in order of steps."""
    records = [{name: value for name, value in record.items() if name != "seconds"} for record in read_lines(path / "evaluations.jsonl")]
    return sorted(records, key=lambda record: (record["step"], record["kind"]))


def faults(path: Path) -> list[dict[str, Any]]:
    return read_lines(path / "faults.jsonl")


def assert_equal_runs(path: Path, other: Path) -> None:
    """Two runs agree in everything but times: images to the bit, every record, and the settings."""
    assert read_json(path / "result.json")["images_sha256"] == read_json(other / "result.json")["images_sha256"]
    one, two = (artifact.read(folder / "synthetic.safetensors") for folder in (path, other))
    assert torch.equal(one.synthetic.images, two.synthetic.images) and torch.equal(one.synthetic.step_size, two.synthetic.step_size)
    assert one.config == two.config and one.step == two.step
    assert metrics(path) == metrics(other)
    assert [record["step"] for record in metrics(path)] == list(range(one.step))
    assert evaluations(path) == evaluations(other)
    assert read_json(path / "config.json")["config"] == read_json(other / "config.json")["config"]


def command(path: Path, store: Path, settings: dict[str, Any], **how: Any) -> list[str]:
    """The command line that starts this run; of a bool only False can be given."""
    given = {"store": store, "run": path, "device": "cpu", "workers": 0, "checkpoint_every": 3, **settings, **how}
    flags = [f"--{name}={value}" for name, value in given.items() if value is not False]
    parts = [name.rpartition(".") for name, value in given.items() if value is False]
    flags += [f"--{group}{dot}no_{name}" for group, dot, name in parts]
    return [sys.executable, "-m", "raydd", "distill", "digits-mtt-ipc1", *flags]


def resuming(path: Path, *more: str) -> list[str]:
    """The command line that carries on with a run."""
    return [sys.executable, "-m", "raydd", "distill", "--resume", str(path), *more]


def launch(arguments: list[str]) -> subprocess.Popen[str]:
    """Start a command as the leader of a process group of its own."""
    pipe = subprocess.PIPE
    return subprocess.Popen(arguments, stdout=pipe, stderr=pipe, text=True, start_new_session=True, cwd=Path(__file__).parents[1])


def wait_for_steps(process: subprocess.Popen[str], path: Path, steps: int) -> None:
    """Return once the run has recorded so many steps. Fails when the process ends before."""
    end = time.monotonic() + 120
    while not (path / "metrics.jsonl").exists() or (path / "metrics.jsonl").read_bytes().count(b"\n") < steps:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "the run does not get anywhere"
        time.sleep(0.002)
