"""What is kept of the phases of continual learning: distilled images, each phase a run of its own, and real images by rule beside them."""

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from numpy.random import RandomState
from torch import Tensor

from raydd import artifact, devices
from raydd.artifact import Artifact
from raydd.config import Config, Execution, fingerprint, from_dict
from raydd.continual_config import ContinualConfig
from raydd.continual_training import Kept
from raydd.coreset import random_rows
from raydd.data import Dataset, Transform, load
from raydd.data.classes import class_numbers, spelled
from raydd.decode import training_images
from raydd.errors import CheckpointError, ConfigError
from raydd.experts.starts import TRAINED_LIKE
from raydd.files import atomic_write_json, read_json
from raydd.launch import Report, changed_settings, distill, resume, services_for, stop_on_signals
from raydd.run import identity
from raydd.runfolder import RunFolder, images_sha256
from raydd.select import choose, plain, record
from raydd.select_config import SelectConfig, resolved
from raydd.setup import prepare
from raydd.transition import Stopped

DISTILLED = "distilled"
_DONE = "complete.json"


@dataclass(frozen=True)
class Order:
    """One order of the classes, in a folder of its own.

    config   the settings of its phases, with the order's seed
    numbers  the classes of the data in order, as labels of `dataset`; `names` spells those of each phase for `data.classes`
    """

    config: Config
    execution: Execution
    settings: ContinualConfig
    folder: Path
    dataset: Dataset
    transform: Transform
    numbers: tuple[int, ...]
    names: tuple[str, ...]

    def phase(self, phase: int) -> Config:
        """The settings of a phase, from 0: its classes alone, and no evaluation of its own."""
        data, evaluation = self.config.data, self.config.evaluation
        return replace(self.config, data=replace(data, classes=self.names[phase]), evaluation=replace(evaluation, at_end=False))

    @property
    def images_per_class(self) -> int:
        """Images that are stored of each class, of all stages."""
        return self.config.ipc * self.config.stages.count


@dataclass(frozen=True)
class Source:
    """What is kept of all phases: `draws` once for all networks, or once for each; images and bytes stored after each phase."""

    draws: list[list[Kept]]
    images: list[int]
    bytes: list[int]

    def of(self, net: int) -> list[Kept]:
        """What a network is trained on."""
        return self.draws[net] if len(self.draws) > 1 else self.draws[0]


def class_order(classes: int, seed: int) -> list[int]:
    """The order of the classes that a seed gives in the reference programs: numpy's legacy permutation.

    Source: specs/dc_dsa_dm_cafe_selection_cl.md section 10.1.
    """
    return RandomState(seed).permutation(classes).tolist()


def order_of(config: Config, execution: Execution, settings: ContinualConfig, run: Path, dataset: Dataset, place: int) -> Order:
    """Order number `place` (from 0) of the classes of `dataset`, which is what `config.data` gives."""
    seed = config.seed + place
    numbers = class_order(len(dataset.classes), seed)
    whole = load(replace(config.data, classes="")).classes if config.data.classes else dataset.classes
    meant = class_numbers(config.data.classes, whole) if config.data.classes else range(len(whole))
    own = len(numbers) // settings.phases
    names = tuple(spelled([meant[number] for number in numbers[first : first + own]], whole) for first in range(0, len(numbers), own))
    return Order(
        config=replace(config, seed=seed),
        execution=execution,
        settings=settings,
        folder=run / f"order_{place + 1:02d}" if place else run,
        dataset=dataset,
        transform=Transform.fit(dataset, config.data, devices.resolve(execution.device)).to("cpu"),
        numbers=tuple(numbers),
        names=names,
    )


def kept_images(order: Order, select: SelectConfig, report: Report) -> dict[str, Source]:
    """What is kept of an order: distilled images, and those of the baselines by their names. Whatever is missing is made first.

    Real images are trained on at the rate of the distilled ones beside them, the mean over a phase's stages, so that the images alone
    make the difference.
    """
    distilled = _distilled_images(order, report)
    rates = [fmean(kept.rates) for kept in distilled.of(0)]
    real = {method: _real_images(order, method, rates, select, report) for method in order.settings.baseline_methods}
    return {DISTILLED: distilled, **real}


def _distilled_images(order: Order, report: Report) -> Source:
    found = []
    for phase, names in enumerate(order.names):
        report({"phase": "note", "text": f"phase {phase + 1} of {len(order.names)}: classes {names}"})
        found.append(_distilled(order, phase, report))
    images = [own.synthetic.images for own in found]
    kept = [_of_artifact(order, phase, own) for phase, own in enumerate(found)]
    return _source([kept], [len(own) for own in images], [4 * own.numel() for own in images])


def _real_images(order: Order, method: str, rates: Sequence[float], select: SelectConfig, report: Report) -> Source:
    """Chosen by a rule, or by lot and then other ones for each network, as everywhere in raydd. `rates` has the step size of each phase."""
    draws: list[list[Kept]] = [[] for _ in range(order.config.evaluation.nets if method == "random" else 1)]
    images, sizes = [], []
    for phase in range(len(order.names)):
        data = load(order.phase(phase).data)
        for draw, kept in enumerate(draws):
            rows = _random(order, phase, data, draw) if method == "random" else _chosen(order, phase, method, select, report)
            kept.append(_of_rows(order, phase, data, rows, rates[phase]))
        images.append(len(rows))
        sizes.append(len(rows) * data.train.images[0].nbytes)
    return _source(draws, images, sizes)


def _source(draws: list[list[Kept]], images: list[int], sizes: list[int]) -> Source:
    return Source(draws, list(itertools.accumulate(images)), list(itertools.accumulate(sizes)))


def _distilled(order: Order, phase: int, report: Report) -> Artifact:
    """The result of a phase's run, which is started, carried on, or there already."""
    folder, config = order.folder / f"phase_{phase + 1:02d}", order.phase(phase)
    found = _finished(folder, config)
    if found is not None:
        return found
    execution = replace(order.execution, run=str(folder))
    try:
        if (folder / "config.json").exists():
            _refuse_other_settings(folder, config)
            result = resume(folder, config, execution, report)
        else:
            result = distill(config, execution, report)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(f"stopped in {folder}; the same command carries on") from stop
    if not result["complete"]:
        raise KeyboardInterrupt(f"stopped in {folder} after step {result['steps']}; the same command carries on")
    found = artifact.read(folder / "synthetic.safetensors")
    atomic_write_json(folder / _DONE, _mark(config, result["images_sha256"]))
    return found


def _refuse_other_settings(folder: Path, config: Config) -> None:
    changed = changed_settings(config, RunFolder.view(folder).settings()[0])
    if changed:
        raise ConfigError(
            [f"{folder} was distilled with other settings: {', '.join(changed)}. Give those, or another --run, where phases begin anew."]
        )


def _finished(folder: Path, config: Config) -> Artifact | None:
    """The result of a run that is known to have finished with these settings; None where it is to be carried on, or refused."""
    try:
        mark, found = read_json(folder / _DONE), artifact.read(folder / "synthetic.safetensors")
        same = identity(from_dict(Config, found.config)) == identity(config)
    except (CheckpointError, ConfigError):
        return None
    return found if same and mark == _mark(config, images_sha256(found.synthetic.images)) else None


def _mark(config: Config, sha256: str) -> dict[str, Any]:
    """What a finished phase is known by: how far it was to go, its images, and how its start networks were trained.

    These train as the evaluation does, which is no part of a run's identity; other phases must not train theirs otherwise.
    """
    stages = config.stages
    starts = {name: getattr(config.evaluation, name) for name in TRAINED_LIKE} if stages.count > 1 and stages.transition else None
    return {"steps": config.steps, "stages": stages.count, "images_sha256": sha256, "starts": starts}


def _of_artifact(order: Order, phase: int, found: Artifact) -> Kept:
    """Distilled images as networks are trained on them, stage by stage, in the training space of the whole data."""
    synthetic, own = found.synthetic, found.pixel_transform()
    images, labels, stages = [], [], []
    for stage in range(1, int(synthetic.stages.max()) + 1):
        chosen = synthetic.stages == stage
        decoded, targets = training_images(synthetic.images[chosen], synthetic.labels[chosen], found.decode, own)
        images.append(_moved(decoded, own, order.transform))
        labels.append(targets)
        stages.append(torch.full_like(targets, stage))
    classes = len(found.classes)
    rates, stored = found.stage_step_sizes, len(synthetic.labels) // classes
    return Kept(torch.cat(images), torch.cat(labels) + phase * classes, torch.cat(stages), rates, stored)


def _moved(images: Tensor, own: Transform, common: Transform) -> Tensor:
    """Images from the training space of a phase, whose ZCA is its own, to that of the whole data, by way of pixels."""
    ours, theirs = own.state(), common.state()
    if ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours):
        return images
    return common.forward(own.inverse(images))


def _of_rows(order: Order, phase: int, data: Dataset, rows: Tensor, step_size: float) -> Kept:
    """Real images, class-major, of the training split of a phase."""
    labels = torch.tensor(data.train.labels)[rows]
    images = order.transform.forward(torch.tensor(data.train.images[rows.numpy()]))
    stored = len(rows) // len(data.classes)
    return Kept(images, labels + phase * len(data.classes), torch.ones_like(labels), (step_size,), stored)


def _random(order: Order, phase: int, data: Dataset, draw: int) -> Tensor:
    labels, count = torch.tensor(data.train.labels), order.images_per_class
    return random_rows(labels, len(data.classes), count, order.config.seed, f"continual-random-{phase + 1}", draw)


def _chosen(order: Order, phase: int, method: str, select: SelectConfig, report: Report) -> Tensor:
    """Rows that a selection method takes, from the file of an earlier call where that is of the same settings."""
    path = order.folder / "baselines" / method / f"phase_{phase + 1:02d}.json"
    settings = resolved(method, select)
    config = plain(order.phase(phase), method)
    key = fingerprint({"method": method, "settings": asdict(settings), "config": identity(config), "data": order.dataset.fingerprint})
    found = read_json(path) if path.exists() else {}
    if found.get("key") == key:
        return torch.tensor(found["rows"]).flatten()
    execution = order.execution if (settings.nets or 0) > 1 else replace(order.execution, workers=0)
    setup = prepare(config, execution)
    with services_for(config, execution) as services, stop_on_signals(report) as should_stop:
        try:
            choice = choose(method, setup, settings, services, report, should_stop)
        except Stopped:
            raise KeyboardInterrupt(f"stopped while {method} chose images of phase {phase + 1}; the same command carries on") from None
    images = setup.transform.forward(torch.tensor(setup.dataset.train.images[choice.rows.numpy()]).to(setup.device)).cpu()
    atomic_write_json(path, {"key": key, **record(method, setup, settings, choice, images)})
    return choice.rows
