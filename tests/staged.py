"""Small runs of several stages, and what holds for each of them."""

import shutil
from pathlib import Path
from typing import Any

import torch

from raydd import artifact
from raydd.config import Config
from raydd.files import read_json
from raydd.progressive import up_to
from raydd.stage_files import stage_path
from raydd.types import SyntheticSet
from tests.runs import but, with_networks

STAGES = {"stages__count": 3, "stages__transition_epochs": 2, "steps": 3}
NETWORKS = {**STAGES, "stages__networks": 2}
STAGED = but(**STAGES)


def config_of(name: str, **settings: Any) -> Config:
    """Three stages of three steps each."""
    return but(**{**STAGES, **settings}) if name == "mtt" else with_networks(name, **{**NETWORKS, **settings})


def first_stage_store(store: Path, copy: Path) -> Path:
    """A copy of the stores without anything that belongs to later stages."""
    shutil.copytree(store, copy)
    for folder in copy.iterdir():
        recipe = read_json(folder / "recipe.json")["recipe"]
        if "links" in recipe or "starts" in recipe:
            shutil.rmtree(folder)
    return copy


def stage_sets(path: Path, count: int) -> list[SyntheticSet]:
    """The set after each stage; the last is the result."""
    files = [stage_path(path, stage) for stage in range(1, count)] + [path / "synthetic.safetensors"]
    return [artifact.read(file).synthetic for file in files]


def assert_frozen(path: Path, count: int = 3) -> None:
    """Every stage has its images, in their places, and later ones leave them alone."""
    sets = stage_sets(path, count)
    for stage, found in enumerate(sets, start=1):
        assert found.stages.bincount().tolist() == [0] + [10] * stage
        assert found.labels.tolist() == sorted(found.labels.tolist())
        for later in sets[stage:]:
            assert torch.equal(up_to(later, stage).images, found.images)
    result = read_json(path / "result.json")
    initial = artifact.read(path / "synthetic.safetensors").initial_images
    assert not torch.equal(initial, sets[-1].images) and [entry["stage"] for entry in result["stages"]] == list(range(1, count + 1))
