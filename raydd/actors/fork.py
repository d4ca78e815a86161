"""Population based training: what one trial hands to another, and how the other takes it up.

A setting that decides images cannot change within a run: its checkpoints belong to these settings. So a trial that is given another's
checkpoint forks the run: a new folder begins as a copy of the donor's records up to that checkpoint, which is sealed anew for the new
settings. `fork.json` in it says from which run, at which step, and what was changed; `faults.jsonl` says so too. Forks of forks keep
the whole line. A fork is no run that its settings alone would give, and nobody should take it for one.
"""

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from raydd import checkpoint, sealed
from raydd.config import Config, Execution, fingerprint, flatten, to_dict
from raydd.environment import environment, versions
from raydd.errors import CheckpointError, ConfigError
from raydd.files import append_line, atomic_write_json, read_json
from raydd.run import identity
from raydd.runfolder import RunFolder

LINE = "fork.json"
_ORIGIN = "origin.json"
_RECORDS = ("config.json", "metrics.jsonl", "evaluations.jsonl", "faults.jsonl", LINE)
FORKABLE = (
    "selection.temperature", "selection.sign", "selection.final_temperature", "selection.final_sign", "selection.normalise",
    "selection.temperature_place", "mtt.lr_img", "mtt.lr_lr", "mtt.momentum", "mtt.syn_steps", "dc.lr_img", "dc.momentum", "dm.lr_img",
    "dm.momentum", "cafe.lr_img", "cafe.momentum", "idc.lr_img", "idc.momentum",
)  # fmt: skip
"""Settings that may differ between a checkpoint and the run that takes it up: none of them shapes what a checkpoint holds."""


def pack(folder: RunFolder, place: Path) -> bool:
    """Copy the newest checkpoint of a run with its records into `place`; False while there is none."""
    files = sorted(folder.checkpoints.glob("step_*.safetensors"))
    if not files:
        return False
    (place / "checkpoints").mkdir()
    shutil.copy(files[-1], place / "checkpoints")
    for name in _RECORDS:
        if (folder.path / name).exists():
            shutil.copy(folder.path / name, place)
    if (folder.path / "stages").exists():
        shutil.copytree(folder.path / "stages", place / "stages")
    atomic_write_json(place / _ORIGIN, {"run": folder.path.name, "step": int(files[-1].stem.split("_")[1])})
    return True


def adopted(place: Path, runs: Path, name: str, config: Config, execution: Execution) -> tuple[str, str]:
    """(name of the run folder under `runs` to carry on in, what to tell) for a trial that was given the packed run in `place`.

    `name` is what the trial's own run is called when it starts by itself: a run that bears it, or that was forked for this trial and
    these settings, is carried on. Any other is forked first. Raises `ConfigError` when a setting differs that no fork can change.
    """
    origin = read_json(place / _ORIGIN)
    settings = read_json(place / "config.json")["config"]
    trial = name.rsplit("-", 1)[-1]
    own = flatten(identity(config))
    changed = {key: [flatten(settings).get(key), value] for key, value in own.items() if flatten(settings).get(key) != value}
    changed = {key: pair for key, pair in changed.items() if key in _deciding(config)}
    if not changed and origin["run"].endswith(f"-{trial}"):
        return origin["run"], ""
    forked = f"{name.rsplit('-', 1)[0]}-from-{fingerprint([origin, name])[:6]}-{trial}"
    refused = sorted(changed.keys() - set(FORKABLE))
    if refused:
        raise ConfigError([f"{', '.join(refused)} cannot change between checkpoints of a run. PBT may perturb: {', '.join(FORKABLE)}."])
    if (runs / forked / "config.json").exists():
        return forked, ""
    text = f"forked from {origin['run']} after {origin['step']} steps" + "".join(
        f"; {key} {before} -> {after}" for key, (before, after) in changed.items()
    )
    _write(place, runs / forked, config, execution, {**origin, "changed": changed}, text)
    return forked, text


def line(path: Path) -> list[dict[str, Any]]:
    """The forks behind a run, first one first: {"run", "step", "changed": {setting: [before, after]}}; none for a run of its own."""
    return read_json(path / LINE) if (path / LINE).exists() else []


def _deciding(config: Config) -> set[str]:
    """Settings that a checkpoint belongs to, but for the places that identity leaves out."""
    return set(flatten(identity(config))) - {"data.source", "data.root", "recipe"}


def _write(place: Path, path: Path, config: Config, execution: Execution, origin: dict[str, Any], text: str) -> None:
    """Make the forked run under a temporary name, and put it in place whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".fork-", dir=path.parent))
    try:
        for name in ("metrics.jsonl", "evaluations.jsonl", "faults.jsonl"):
            if (place / name).exists():
                shutil.copy(place / name, scratch)
        if (place / "stages").exists():
            shutil.copytree(place / "stages", scratch / "stages")
        _reseal(place, scratch, config)
        atomic_write_json(scratch / LINE, [*line(place), origin])
        append_line(scratch / "faults.jsonl", {"step": max(0, origin["step"] - 1), "kind": "fork", "text": text})
        atomic_write_json(scratch / "environment.json", environment())
        settings = {"config": to_dict(config), "execution": to_dict(execution), "raydd": versions()["raydd"]}
        atomic_write_json(scratch / "config.json", settings)
        os.replace(scratch, path)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def _reseal(place: Path, scratch: Path, config: Config) -> None:
    """The checkpoint for the new settings; its content stays."""
    (file,) = (place / "checkpoints").glob("step_*.safetensors")
    tensors, metadata = sealed.read(file, checkpoint.KIND, checkpoint.FORMAT)
    try:
        belongs = {**identity(config), "data_fingerprint": metadata["identity"]["data_fingerprint"]}
    except KeyError as error:
        raise CheckpointError(f"{file}: does not say which data it belongs to.") from error
    checkpoint.save(scratch / "checkpoints", metadata["step"], tensors, metadata["state"], json.loads(json.dumps(belongs)))
