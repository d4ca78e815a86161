"""Selection baselines: real images chosen by a rule, as a run folder and a result file like any distilled set.

The run has no steps: its images are its own start. It keeps the recipe's data, network, augmentation and evaluation; the settings of the
recipe's method play no part. `selected.json` says which rows of the training split were chosen, and how.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from raydd import data, plan
from raydd.config import Config, Execution, MTTConfig
from raydd.coreset import Forgetting, herding, highest, k_center, per_class, random_rows
from raydd.coreset.forgetting import combined, save
from raydd.coreset.networks import NetworkWorker, TrainedNetwork, features_of
from raydd.data import Dataset, Resident
from raydd.distill import State
from raydd.errors import ConfigError, DataError
from raydd.files import atomic_write_json
from raydd.launch import absolute, services_for, silent, stop_on_signals
from raydd.methods.base import check
from raydd.places import absolute as absolute_place
from raydd.run import Report, identity
from raydd.runfolder import RunFolder, images_sha256
from raydd.select_config import SelectConfig, resolved
from raydd.services import Services
from raydd.session import Session
from raydd.setup import Setup, prepare
from raydd.transition import Stopped, never

RECORD = "selected.json"
SCORES = "forgetting.safetensors"
RATE = 0.01
"""Rate of evaluations whose protocol asks the set for one: real images have learned none. Source: section 3 of
specs/dc_dsa_dm_cafe_selection_cl.md, where every program trains at it."""
_RULES: dict[str, Callable[[Tensor, int], Tensor]] = {"herding": herding, "k_center": k_center}
_REPORTS = 10


@dataclass(frozen=True)
class Choice:
    """Rows of the training split, int64 (classes x ipc,), class-major and in the order of choice; and what they were chosen by.

    networks    those that were trained, in order
    scores      float64 (n,) of every training image, what the choice maximises; None where there is no such number
    forgetting  the counts behind the scores, for the method of that name
    """

    rows: Tensor
    networks: tuple[TrainedNetwork, ...] = ()
    scores: Tensor | None = None
    forgetting: Forgetting | None = None


def select(
    method: str, config: Config, execution: Execution | None = None, settings: SelectConfig | None = None, report: Report = silent
) -> dict[str, Any]:
    """Choose `config.ipc` real images of each class, times the number of stages, and evaluate them beside random ones.

    Returns the content of result.json with `run`, the folder, `complete`, and `rows`, the chosen rows of the training split. What is
    refused, or stopped before the choice is made, leaves no folder behind; a stopped evaluation is carried on by `raydd.resume`.
    Raises `RayddError`s, and `KeyboardInterrupt` when stopped before the choice.
    """
    config, execution, settings = _settings(method, config, execution or Execution(), settings or SelectConfig())
    plan.refuse_missing_devices(config, execution)
    dataset = data.load(config.data, lambda done, total: report({"phase": "data", "done": done, "total": total}))
    _refuse_small_classes(dataset, config.ipc)
    setup = prepare(config, execution)
    _refuse_used(config, execution)
    with services_for(config, execution, report) as services, stop_on_signals(report) as should_stop:
        try:
            choice = choose(method, setup, settings, services, report, should_stop)
        except Stopped:
            raise KeyboardInterrupt("stopped before the choice was made; nothing is kept") from None
        with RunFolder.create(execution.run, config, execution) as folder:
            result = _finish(folder, method, setup, settings, choice, services, report, should_stop)
    return {**result, "run": execution.run, "rows": choice.rows.tolist()}


def plain(config: Config, method: str) -> Config:
    """The settings of a selection's run: the recipe's data, network and evaluation, and nothing of its method.

    A selection has no stages: of a recipe with several it takes as many images as these have together, at once.
    """
    return Config(
        recipe=f"{config.recipe} ({method})" if config.recipe else method,
        ipc=config.ipc * config.stages.count,
        steps=0,
        seed=config.seed,
        tf32=config.tf32,
        data=config.data,
        model=config.model,
        augment=config.augment,
        mtt=MTTConfig(lr_init=RATE),
        evaluation=replace(config.evaluation, every=0),
    )


def choose(
    method: str, setup: Setup, settings: SelectConfig, services: Services, report: Report = silent, should_stop: Callable[[], bool] = never
) -> Choice:
    """The rows that a method chooses, training what networks it needs. `settings` are resolved.

    Raises `DivergenceError`, and `Stopped` soon after `should_stop()`.
    """
    config, classes = setup.config, len(setup.dataset.classes)
    labels = torch.tensor(setup.dataset.train.labels)
    if method == "random":
        return Choice(random_rows(labels, classes, config.ipc, config.seed, "select-random"))
    networks = train(method, setup, settings, services, report, should_stop)
    if method in _RULES:
        resident = Resident.load(setup.dataset.train, setup.transform, setup.device)
        thetas, statistics = (_tensors(networks, name, setup.device) for name in ("theta", "statistics"))

        def by_features(label: int, rows: Tensor) -> Tensor:
            return _RULES[method](features_of(setup.model, thetas, resident, rows, statistics), config.ipc)

        return Choice(per_class(labels, classes, config.ipc, by_features), networks)
    found, second = None, None
    if method == "forgetting":
        parts = [{name: torch.tensor(array) for name, array in network.arrays.items()} for network in networks]
        found = combined([Forgetting(**part) for part in parts])
        scores, second = found.ranking(settings.never_learnt), found.loss
    else:
        scores = torch.stack([torch.tensor(network.arrays["score"]).double() for network in networks]).mean(0)

    def by_score(label: int, rows: Tensor) -> Tensor:
        return highest(scores[rows], config.ipc, None if second is None else second[rows])

    return Choice(per_class(labels, classes, config.ipc, by_score), networks, scores, found)


def _tensors(networks: tuple[TrainedNetwork, ...], name: str, device: torch.device) -> list[Tensor]:
    """One array of every network; [] where they have none of that name."""
    return [torch.tensor(network.arrays[name]).to(device) for network in networks if name in network.arrays]


def train(
    method: str, setup: Setup, settings: SelectConfig, services: Services, report: Report, should_stop: Callable[[], bool]
) -> tuple[TrainedNetwork, ...]:
    """The networks of a method in order, trained by the services, with what it reads from them."""
    nets, epochs = settings.nets or 0, settings.epochs or 0
    meter = _Meter(nets, epochs, report)

    def heed() -> None:
        if should_stop():
            raise Stopped

    def on_epoch() -> None:
        meter.epoch()
        heed()

    worker = NetworkWorker(
        method=method,
        config=setup.config,
        settings=settings,
        fingerprint=setup.dataset.fingerprint,
        transform=setup.transform,
        execution=setup.execution,
        dataset=setup.dataset,
        on_epoch=on_epoch,
    )
    services.run_jobs(worker, list(range(nets)), meter.job, heed)
    return tuple(sorted(meter.results, key=lambda network: network.index))


class _Meter:
    """Counts epochs; tells of them some ten times in all, and whenever a network is done."""

    def __init__(self, nets: int, epochs: int, report: Report):
        self.results: list[TrainedNetwork] = []
        self._nets, self._epochs, self._report = nets, epochs, report
        self._done, self._told = 0, -1

    def epoch(self) -> None:
        self._done += 1
        self._tell(self._done * _REPORTS // (self._nets * self._epochs))

    def job(self, network: TrainedNetwork) -> None:
        self.results.append(network)
        # Epochs on another machine are heard of only here.
        self._done = max(self._done, len(self.results) * self._epochs)
        self._tell(_REPORTS * len(self.results) // self._nets)

    def _tell(self, share: int) -> None:
        if share == self._told:
            return
        self._told = share
        done, total = (self._done, self._nets * self._epochs) if self._epochs else (len(self.results), self._nets)
        unit = "epochs" if self._epochs else "networks"
        self._report({"phase": "select", "done": done, "total": total, "text": f"training networks: {done}/{total} {unit}"})


def _settings(method: str, config: Config, execution: Execution, settings: SelectConfig) -> tuple[Config, Execution, SelectConfig]:
    """All settings as the run has them. Raises `ConfigError` with every problem of all three."""
    problems: list[str] = []
    try:
        settings = resolved(method, settings)
    except ConfigError as error:
        problems += error.problems
    own = plain(absolute(config), method)
    try:
        check(own, execution)
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems)
    path = execution.run or f"runs/{config.recipe or 'select'}-{method}-ipc{own.ipc}-{config.seed}"
    workers = execution.workers
    if workers is None:
        # Several networks train side by side; one needs no worker.
        several = replace(own, selection=replace(own.selection, candidates=max(1, settings.nets or 0)))
        workers = plan.worker_count(several, execution) if (settings.nets or 0) > 1 else 0
    return own, replace(execution, run=absolute_place(path), workers=workers), settings


def _refuse_small_classes(dataset: Dataset, ipc: int) -> None:
    counts = torch.bincount(torch.tensor(dataset.train.labels), minlength=len(dataset.classes))
    smallest = int(counts.argmin())
    if counts[smallest] < ipc:
        raise DataError(
            f"--ipc={ipc} is more than the {counts[smallest]} training images of class {dataset.classes[smallest]} in {dataset.name}; "
            f"lower --ipc to at most {counts[smallest]}."
        )


def _refuse_used(config: Config, execution: Execution) -> None:
    """Refuse a folder that is in use before anything costly starts; nothing is left in it meanwhile."""
    folder = RunFolder.create(execution.run, config, execution)
    folder.close()
    folder.withdraw()


def _finish(
    folder: RunFolder,
    method: str,
    setup: Setup,
    settings: SelectConfig,
    choice: Choice,
    services: Services,
    report: Report,
    should_stop: Callable[[], bool],
) -> dict[str, Any]:
    """Write the run of a choice and evaluate it; the content of result.json."""
    session = Session(folder, setup, {**identity(setup.config), "data_fingerprint": setup.dataset.fingerprint}, services, report)
    try:
        images = _images(setup, choice.rows)
        session.state, session.initial_images = State.start(replace(session.state.synthetic, images=images)), images
        # First, so that whoever takes up a run killed from here on finds these images.
        session.save()
        if choice.forgetting is not None:
            details = {"fingerprint": setup.dataset.fingerprint, "settings": asdict(settings), "seed": setup.config.seed}
            save(folder.path / SCORES, choice.forgetting, details)
        atomic_write_json(folder.path / RECORD, record(method, setup, settings, choice, images))
        return session.finish(should_stop)
    finally:
        session.close()


def _images(setup: Setup, rows: Tensor) -> Tensor:
    """The chosen images in training space, (N, C, H, W) on the CPU."""
    pixels = torch.tensor(setup.dataset.train.images[rows.numpy()])
    return setup.transform.forward(pixels.to(setup.device)).cpu()


def record(method: str, setup: Setup, settings: SelectConfig, choice: Choice, images: Tensor) -> dict[str, Any]:
    """The content of selected.json: enough to take the same images without choosing again.

    `rows` has one list for each class, in the order of the choice; `scores` stand beside them, null where an image was never learnt and
    therefore counts as forgotten most.
    """
    ipc = setup.config.ipc
    return {
        "method": method,
        "settings": asdict(settings),
        "recipe": setup.config.recipe,
        "seed": setup.config.seed,
        "ipc": ipc,
        "dataset": setup.dataset.name,
        "fingerprint": setup.dataset.fingerprint,
        "classes": list(setup.dataset.classes),
        "rows": [part.tolist() for part in choice.rows.split(ipc)],
        "scores": None if choice.scores is None else [choice.scores[part].tolist() for part in choice.rows.split(ipc)],
        "networks": [
            {"index": network.index, "train_loss": network.loss, "train_accuracy": network.accuracy, "seconds": network.seconds}
            for network in choice.networks
        ],
        "images_sha256": images_sha256(images),
    }
