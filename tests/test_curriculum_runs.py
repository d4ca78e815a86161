"""Runs with a curriculum: initial images, experts and matching use the images of their stage, and nothing else."""

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raydd import artifact, curriculum, curriculum_scores, data
from raydd.config import Config, Execution
from raydd.data import Dataset
from raydd.errors import ConfigError
from raydd.launch import extend
from raydd.progress import Progress
from raydd.runfolder import RunFolder
from raydd.setup import MethodFactory, prepare, staged
from tests.commands import raydd
from tests.runs import CONFIG, assert_equal_runs, but, execution, go, with_networks

pytestmark = pytest.mark.usefixtures("no_report")

CURRICULUM = {"curriculum__scores": "forgetting", "curriculum__quantiles": True, "curriculum__epochs": 2, "curriculum__batch_size": 512}
STAGES = {"stages__count": 2, "stages__transition_epochs": 1, "stages__networks": 2}


def rows_of(config: Config, root: Path, stage: int) -> tuple[Dataset, np.ndarray]:
    dataset = data.load(config.data)
    return dataset, curriculum.stage_rows(config, curriculum_scores.stored(config, str(root), dataset), dataset, stage)


def test_every_part_of_a_run_uses_the_images_of_the_stage(tmp_path: Path) -> None:
    config = with_networks("dm", init="real", data__zca=False, steps=2, **CURRICULUM, **STAGES)
    go(tmp_path / "run", tmp_path / "store", config)
    told = json.loads((tmp_path / "run" / "curriculum.json").read_text())
    assert [round(entry["share"], 2) for entry in told["shares"]] == [0.5, 0.5]
    found = artifact.read(tmp_path / "run" / "synthetic.safetensors")
    pixels = found.pixels(found.initial_images).mul(255).round().numpy()
    setup = prepare(config, Execution(store=str(tmp_path / "store"), device="cpu"))
    for stage in (1, 2):
        dataset, rows = rows_of(config, tmp_path / "store", stage)
        known = {image.astype(np.float32).tobytes() for image in dataset.train.images[rows]}
        own = found.synthetic.stages == stage
        assert all(pixels[place].tobytes() in known for place in torch.nonzero(own).flatten())
        method = MethodFactory.of(staged(setup, stage), None)()
        held = method._resources.real.resident
        assert torch.equal(held.labels, torch.tensor(dataset.train.labels[rows]))


def test_experts_are_trained_on_the_images_of_the_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []

    def spy(*arguments: Any, **options: Any) -> Any:
        counts.append(len(arguments[2].labels))
        return trajectories(*arguments, **options)

    from raydd.experts.worker import trajectories

    monkeypatch.setattr("raydd.experts.worker.trajectories", spy)
    config = but(CONFIG, steps=2, experts__count=1, selection__candidates=1, selection__policy="uniform", **CURRICULUM, **STAGES)
    go(tmp_path / "run", tmp_path / "store", but(config, mtt__max_start_epoch=1, mtt__expert_epochs=1))
    assert counts == [len(rows_of(config, tmp_path / "store", stage)[1]) for stage in (1, 2)]


def test_a_run_divided_by_the_number_of_stages_cannot_grow(tmp_path: Path) -> None:
    config = with_networks("dm", init="noise", steps=1, **CURRICULUM)
    go(tmp_path / "run", tmp_path / "store", config)
    with pytest.raises(ConfigError, match=r"--curriculum\.quantiles divides the images by the number of stages, so --extend .* cannot add"):
        extend(tmp_path / "run", 1)


def test_an_empty_range_leaves_no_checkpoint(tmp_path: Path) -> None:
    config = with_networks("dm", init="noise", steps=1, **CURRICULUM | {"curriculum__quantiles": False}, **STAGES)
    with pytest.raises(ConfigError, match=r"--curriculum\.width=3: stage 2 has 0 images of class"):
        go(tmp_path / "run", tmp_path / "store", config)
    assert not (tmp_path / "run" / "checkpoints").exists() or not list((tmp_path / "run" / "checkpoints").iterdir())


def test_a_refused_extension_changes_nothing(tmp_path: Path) -> None:
    """The curriculum of three stages, and where the run was taken up again, are written when the third is accepted, and not before."""
    ranges = {"curriculum__quantiles": False, "curriculum__edges": "0,1,2,3", "curriculum__least": 6}
    config, path = with_networks("dm", init="noise", steps=1, **CURRICULUM | ranges, **STAGES), tmp_path / "run"
    own = go(path, tmp_path / "store", config) and execution(path, tmp_path / "store")
    kept = {file.name: file.read_bytes() for file in path.iterdir() if file.is_file() and file.name != ".lock"}
    with pytest.raises(ConfigError, match="now training would differ"):
        extend(path, 1, but(config, evaluation__batch_size=32), own)
    assert {file.name: file.read_bytes() for file in path.iterdir() if file.is_file() and file.name != ".lock"} == kept
    extend(path, 1, execution=own)
    assert len(json.loads((path / "curriculum.json").read_text())["shares"]) == 3
    assert [entry["step"] for entry in json.loads((path / "environment.json").read_text())["resumed"]] == [2]


def interrupting(phase: str) -> Any:
    """A progress display on which Ctrl-C is pressed once, when a phase is heard of."""

    class Interrupting(Progress):
        asked = False

        def __call__(self, report: dict[str, Any]) -> None:
            if report["phase"] == phase and not Interrupting.asked:
                Interrupting.asked = True
                signal.raise_signal(signal.SIGINT)

    return Interrupting


def test_from_scores_to_stages_stopped_in_each_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores, their ranges, and three stages of these images: stopped by Ctrl-C in every phase and resumed, the same run."""
    ranges = {"curriculum__quantiles": False, "curriculum__edges": "0,1,2,9", "curriculum__least": 8, "curriculum__epochs": 4}
    config = with_networks("dm", init="mix", **CURRICULUM | ranges | STAGES | {"steps": 3, "stages__count": 3})
    whole, path, store = tmp_path / "whole", tmp_path / "run", tmp_path / "store"
    go(whole, tmp_path / "other-store", config)
    dataset = data.load(config.data)
    kept = [rows_of(config, tmp_path / "other-store", stage)[1] for stage in (1, 2, 3)]
    assert all(np.bincount(dataset.train.labels[rows], minlength=10).min() >= 8 for rows in kept)
    told = json.loads((whole / "curriculum.json").read_text())
    assert [entry["share"] for entry in told["shares"]] == pytest.approx([len(rows) / len(dataset.train) for rows in kept])

    RunFolder.create(path, config, execution(path, store)).close()
    outcomes = []
    for phase in ("curriculum", "distill", "transition"):
        with monkeypatch.context() as patch:
            patch.setattr("raydd.progress.Progress", interrupting(phase))
            outcomes.append(raydd("distill", "--resume", path))
    assert [outcome.code for outcome in outcomes] == [130, 130, 130]
    assert [f"stopped after step {step}; carry on" in outcome.err for step, outcome in zip((0, 1, 3), outcomes, strict=True)] == [True] * 3
    # Nothing is named that a run without images does not have.
    assert outcomes[0].out == "" and "images sha256: " in outcomes[1].out
    ended = raydd("distill", "--resume", path)
    assert ended.code == 0 and ended.last_line == f"images sha256: {json.loads((whole / 'result.json').read_text())['images_sha256']}"
    assert_equal_runs(path, whole)
    assert (path / "curriculum.json").read_bytes() == (whole / "curriculum.json").read_bytes()
