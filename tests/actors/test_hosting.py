"""Whole runs: the same bits inline, on Ray, and on Ray with a worker and then the driver killed."""

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from raydd.config import Config, Execution, ExpertConfig, ModelConfig, MTTConfig, SelectionConfig
from raydd.errors import ResourceError
from raydd.files import read_lines
from raydd.launch import distill, train_experts

pytestmark = pytest.mark.usefixtures("ray_cluster")


def small() -> Config:
    base = Config()
    return replace(
        base,
        steps=40,
        model=ModelConfig(width=8, depth=2),
        augment=replace(base.augment, strategy="crop_scale_rotate"),
        experts=ExpertConfig(count=3, batch_size=256),
        mtt=MTTConfig(syn_steps=2, expert_epochs=1, max_start_epoch=2, lr_img=10.0),
        selection=SelectionConfig(policy="dynadistill", candidates=3),
        evaluation=replace(base.evaluation, at_end=False),
    )


def test_inline_and_ray_with_deaths_give_the_same_bits(tmp_path: Path) -> None:
    """On Ray a worker is killed, and once a checkpoint knows of it the driver; soon after its restart Ctrl-C ends the run."""
    victims, restarted = ["ray::Worker", "ray::Driver"], []

    def follow(status: dict[str, Any]) -> None:
        if status["phase"] == "warning":
            restarted.append(status["text"])
        elif status["phase"] == "distill" and restarted:
            if len(restarted) == 1:
                os.kill(os.getpid(), signal.SIGINT)
            restarted.append("told to stop")
        elif status["phase"] == "distill" and (len(victims) == 2 or (victims and death_is_behind_a_checkpoint(tmp_path / "ray"))):
            kill_one(victims.pop(0))

    store = str(tmp_path / "store")
    execution = Execution(run=str(tmp_path / "ray"), store=store, workers=2, checkpoint_every=5)
    result = distill(replace(small(), steps=5000), execution, follow)
    assert not victims and not result["complete"] and "driver died" in restarted[0]
    kinds = {line.split('"kind":"')[1].split('"')[0] for line in (tmp_path / "ray" / "faults.jsonl").read_text().splitlines()}
    assert {"death", "driver"} <= kinds
    inline = distill(replace(small(), steps=result["steps"]), Execution(run=str(tmp_path / "inline"), store=store, workers=0))
    assert inline["images_sha256"] == result["images_sha256"]


def death_is_behind_a_checkpoint(run: Path) -> bool:
    """Whether a run that is taken up again keeps the record of a worker's death."""
    deaths = [fault["step"] for fault in read_lines(run / "faults.jsonl") if fault["kind"] == "death"]
    steps = [int(path.stem.removeprefix("step_")) for path in (run / "checkpoints").glob("step_*.safetensors")]
    return bool(deaths) and max(steps, default=0) > deaths[0]


def kill_one(title: str) -> None:
    """SIGKILL to an actor of the cluster that this process started; Ray titles an actor's process after its class."""
    family = psutil.Process().children(recursive=True)
    next(process for process in family if (process.as_dict(["cmdline"])["cmdline"] or [""])[0].startswith(title)).kill()


def test_experts_are_the_same_on_ray(tmp_path: Path) -> None:
    stores = []
    for workers in (0, 2):
        store = train_experts(small(), Execution(store=str(tmp_path / str(workers)), workers=workers))
        stores.append({path.name: path.read_bytes() for path in Path(store).glob("*.arrow")})
    assert len(stores[0]) == 3 and stores[0].keys() == stores[1].keys()


def test_what_cannot_be_had_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="--workers=9 asks for 10 CPUs"):
        distill(small(), Execution(run=str(tmp_path / "run"), store=str(tmp_path / "store"), workers=9))
