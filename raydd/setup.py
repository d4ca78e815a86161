"""From settings to the things a process computes with: data, transform, network, experts, method.

The factories are small and picklable: a worker on any node builds its own copy from them, memory-mapped where it can be.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from raydd import data, devices, initial
from raydd.config import Config, Execution, expert_epochs, to_dict
from raydd.coreset import random_rows
from raydd.curriculum_scores import training_split
from raydd.data import Dataset, Progress, RealData, Resident, Transform
from raydd.decode import Decoding, training_images
from raydd.decode import count as decoded_count
from raydd.errors import ConfigError, DataError
from raydd.evaluate import Evaluation, TrainingSet, evaluate, improvement_over_random, rate, settings_for, stage_counts, stage_sequence
from raydd.experts.build import open_store, store_root
from raydd.experts.snapshots import Snapshots
from raydd.experts.starts import StartsPlace
from raydd.experts.store import Store
from raydd.methods import method
from raydd.methods.base import DataFacts, Method, Resources, check
from raydd.models import FlatModel, build
from raydd.rng import stream
from raydd.types import SyntheticSet


@dataclass(frozen=True)
class Setup:
    """What the driver of a run holds. With a curriculum `staged` gives that of one stage, whose `dataset` has its images alone."""

    config: Config
    execution: Execution
    dataset: Dataset
    transform: Transform
    model: FlatModel
    device: torch.device
    stage: int = 1


def staged(setup: Setup, stage: int) -> Setup:
    """The setup with the real training images of a stage: without a curriculum all of them (`raydd.curriculum_scores`).

    The transform stays that of all images. Raises `StoreError` where the scores are not ready.
    """
    own = training_split(setup.config, store_root(setup.execution), setup.dataset, stage)
    return replace(setup, dataset=own, stage=stage)


def prepare(config: Config, execution: Execution, progress: Progress | None = None) -> Setup:
    """Check the settings, load the data and build the network.

    Raises `ConfigError`, `DataError` or `ResourceError` before anything costly starts.
    """
    check(config, execution)
    device = devices.resolve(execution.device)
    devices.prepare(execution.threads, execution.deterministic, config.tf32)
    dataset = data.load(config.data, progress)
    if config.init == "real" or config.evaluation.at_end:  # the random baseline needs real images too
        data.require_per_class(dataset, config.ipc, config.stages.count if config.evaluation.at_end else 1)
    problems = method(config.method).problems(config, facts(dataset))
    if problems:
        raise ConfigError(problems)
    model = build(config.model, dataset.shape, len(dataset.classes))
    if config.evaluation.every or config.evaluation.at_end:
        _check_evaluation(config, model)
    return Setup(config, execution, dataset, Transform.fit(dataset, config.data, device), model, device)


def _check_evaluation(config: Config, model: FlatModel) -> None:
    """Raise `ConfigError` for what cannot be evaluated after every one of the stages."""
    for stages in range(1, config.stages.count + 1):
        counts = stage_counts(config.evaluation.stages, model.classes * config.ipc, stages)
        settings_for(config, model, *counts, ipc=stages * config.ipc).phases(rate(config, 1.0))


def facts(dataset: Dataset) -> DataFacts:
    """What a method may refuse about the data."""
    counts = torch.bincount(torch.tensor(dataset.train.labels), minlength=len(dataset.classes))
    return DataFacts(dataset.classes, tuple(counts.tolist()), dataset.shape)


def initial_set(setup: Setup, stage: int = 1, starts: StartsPlace | None = None) -> SyntheticSet:
    """The images of a stage before its first step, class-major, as `init` says: `raydd.initial` has the kinds.

    Stored in the space of the method's decoding: training space, or pixels. `starts` are the networks that the stage starts from,
    whose features k-means is of. Raises `ConfigError` where a class has too few images.
    """
    config, classes, entry = setup.config, len(setup.dataset.classes), method(setup.config.method)
    labels = torch.arange(classes).repeat_interleave(config.ipc)
    decoding = entry.decoding(config)
    if config.init == "noise":
        images = initial.noise((len(labels), *setup.model.shape), decoding.space, stream(config.seed, 0, _of_stage("init-noise", stage)))
    elif config.init == "real":
        images = real_images(setup, _of_stage("init-images", stage))
        images = images if decoding.space == "training" else setup.transform.inverse(images.to(setup.device)).cpu()
    else:
        images = _composed(setup, decoding, stage, starts)
    step_size = torch.tensor(entry.step_size(config), dtype=torch.float32)
    return SyntheticSet(images, labels, step_size, torch.full_like(labels, stage))


def _of_stage(purpose: str, stage: int) -> str:
    """The random stream of a stage."""
    return purpose if stage == 1 else f"{purpose}-{stage}"


def _composed(setup: Setup, decoding: Decoding, stage: int, starts: StartsPlace | None) -> Tensor:
    """One or several real images in each stored one: by lot (mix), the first ones (first), or those nearest to cluster centres (kmeans).

    Of the first ones every stage takes those that come after the stage before's, unless a curriculum gives each stage its own.
    """
    config, train = setup.config, setup.dataset.train
    count = config.ipc * decoding.factor**2
    setting = f"--init={config.init} with --ipc={config.ipc}"
    before = count * (stage - 1) if config.init == "first" and config.curriculum.scores == "none" else 0
    rows = initial.class_rows(torch.tensor(train.labels), setup.dataset.classes, before + count, setting)
    pixels = torch.from_numpy(train.images.copy()).float() / 255
    if config.init == "mix":
        chosen = initial.random_rows(rows, count, config.seed, _of_stage("init-images", stage))
    elif config.init == "first":
        chosen = initial.first_rows(rows, before + count)[:, before:]
    else:
        theta = _initial_network(setup, starts)

        def embed(own: Tensor) -> Tensor:
            with torch.no_grad():
                return torch.cat([setup.model.embed(theta, pixels[part].to(setup.device)) for part in own.split(512)])

        chosen = initial.central_rows(rows, count, embed, config.seed, _of_stage("init-kmeans", stage), reseed=config.dream.reseed)
    images = initial.mix(pixels[chosen.flatten()].unflatten(0, chosen.shape), decoding.factor)
    if decoding.space == "pixels":
        return images
    return setup.transform.forward(images.to(setup.device)).cpu()


def _initial_network(setup: Setup, starts: StartsPlace | None) -> Tensor:
    """The network whose features the clusters are of: network 0 of the stage as the method begins it, so with DREAM+'s epoch."""
    if method(setup.config.method).networks is not None:
        return MethodFactory.of(setup, None, starts)().begin(0).theta
    theta = starts.thetas([0])[0] if starts else setup.model.init(stream(setup.config.seed, 0, "network"))
    return theta.to(setup.device)


def real_images(setup: Setup, purpose: str, draw: int = 0) -> Tensor:
    """`ipc` different random training images of each class in training space, (N, C, H, W) on the CPU, class-major."""
    train, classes = setup.dataset.train, len(setup.dataset.classes)
    rows = random_rows(torch.tensor(train.labels), classes, setup.config.ipc, setup.config.seed, purpose, draw)
    pixels = torch.tensor(train.images[rows.numpy()])
    return setup.transform.forward(pixels.to(setup.device)).cpu()


def expert_store(setup: Setup, verify: bool = True) -> Store:
    """The store of this configuration's experts. Raises `StoreError` for damaged files."""
    return open_store(setup.config, store_root(setup.execution), setup.dataset, verify)


@dataclass(frozen=True)
class MethodFactory:
    """Builds the method of a run, or of one of its stages, in whichever process calls it.

    experts  (root, recipe) of the store; None without experts
    starts   where the networks lie of which a later stage's are copies; None for fresh ones, and not read by a method over experts
    stage    whose real images it matches
    """

    config: Config
    execution: Execution
    shape: tuple[int, int, int]
    classes: int
    experts: tuple[str, dict[str, Any]] | None
    starts: StartsPlace | None = None
    stage: int = 1

    @classmethod
    def of(cls, setup: Setup, store: Store | None, starts: StartsPlace | None = None) -> "MethodFactory":
        """The factory of a prepared run."""
        experts = store and (store.root, store.recipe)
        return cls(setup.config, setup.execution, setup.model.shape, setup.model.classes, experts, starts, setup.stage)

    def __call__(self) -> Method:
        config, execution = self.config, self.execution
        devices.prepare(execution.threads, execution.deterministic, config.tf32)
        device = devices.resolve(execution.device)
        model = build(config.model, self.shape, self.classes)
        entry = method(config.method)
        if self.experts is not None:
            store = Store.open(*self.experts, verify=False)
            return entry.build(config, Resources(model, Snapshots(store, device), device))
        dataset = data.load(config.data)
        train = training_split(config, store_root(execution), dataset, self.stage).train
        real = RealData.load(train, Transform.fit(dataset, config.data, device), self.classes, device)
        starts = self.starts and Snapshots(self.starts.open(), device)
        return entry.build(config, Resources(model, None, device, real, starts, self.starts.count if self.starts else 0))


@dataclass(frozen=True)
class EvaluationJob:
    """Images to train networks on; `kind` is synthetic or random.

    images  (S, N, C, H, W) as stored: one set for all networks (S = 1), or one for each (S = nets); `decoding` says how
    labels  int64 (N,), and `stages`, from 1
    rates   the learning rate of each stage
    """

    step: int
    kind: str
    images: Tensor
    labels: Tensor
    stages: Tensor
    rates: tuple[float, ...]
    decoding: Decoding

    @property
    def lr(self) -> float:
        """The rate of the last stage."""
        return self.rates[-1]

    @property
    def place(self) -> tuple[int, str]:
        """What an evaluation is known by within a run."""
        return self.step, self.kind


@dataclass(frozen=True)
class EvaluatorFactory:
    """Builds a function that turns an `EvaluationJob` into a record of `evaluations.jsonl`."""

    config: Config
    execution: Execution

    def __call__(self) -> "Evaluator":
        return Evaluator(prepare(self.config, self.execution))


class Evaluator:
    """Trains fresh networks on a set and tests them on the real test split, which it holds resident.

    The networks are `setup.model`; `of` gives the same for others. `on_pass(nets)` hears of every pass of so many networks.
    """

    def __init__(self, setup: Setup, on_pass: Callable[[int], None] = lambda nets: None, test: Resident | None = None):
        self._setup, self._on_pass = setup, on_pass
        self._test = test or Resident.load(setup.dataset.test, setup.transform, setup.device)

    def of(self, model: FlatModel) -> "Evaluator":
        """The same evaluation with other networks."""
        return Evaluator(replace(self._setup, model=model), self._on_pass, self._test)

    def passes(self, job: EvaluationJob) -> int:
        """How many passes of one network over its sets a job takes. Raises `ConfigError` for settings that cannot be."""
        config, model = self._setup.config, self._setup.model
        whole = replace(job.decoding, kind="single") if job.decoding.kind == "bound" else job.decoding  # as `training_images` does
        sequence = stage_sequence(config.evaluation.stages, job.stages)
        counts = [model.classes * decoded_count(whole, int(own.sum()) // model.classes) for _, own in sequence]
        return config.evaluation.nets * len(counts) * settings_for(config, model, *counts, ipc=self._ipc(job)).passes()

    def __call__(self, job: EvaluationJob) -> dict[str, Any]:
        config, model, ipc = self._setup.config, self._setup.model, self._ipc(job)
        nets = config.evaluation.nets if len(job.images) == 1 else 1
        parts = [
            evaluate(
                config, model, self._sets(job, images), self._test, self._setup.device, nets, ipc=ipc, first=first, on_pass=self._on_pass
            )
            for first, images in enumerate(job.images)
        ]
        accuracies = torch.tensor([accuracy for part in parts for accuracy in part.accuracies], dtype=torch.float64)
        best = torch.tensor([accuracy for part in parts for accuracy in part.best], dtype=torch.float64)
        return {
            "step": job.step,
            "kind": job.kind,
            "model": model.config.name,
            "norm": model.config.norm,
            **_mean_std(accuracies),
            "best_mean": best.mean().item(),
            "accuracies": accuracies.tolist(),
            "nets": len(accuracies),
            "epochs": parts[0].epochs,
            "updates": parts[0].updates,
            "lr": job.lr,
            "protocol": protocol(config),
            "settings": asdict(parts[0].settings),
            "seconds": sum(part.seconds for part in parts),
            **self._staged(job, parts),
        }

    def _sets(self, job: EvaluationJob, images: Tensor) -> list[TrainingSet]:
        """What networks are trained on in turn: the stored images (N, C, H, W) of each set, decoded, at the rate of its last stage."""
        sets = []
        for stage, own in stage_sequence(self._setup.config.evaluation.stages, job.stages):
            decoded, labels = training_images(images[own], job.labels[own], job.decoding, self._setup.transform)
            sets.append(TrainingSet(decoded, labels, job.rates[stage - 1]))
        return sets

    def _ipc(self, job: EvaluationJob) -> int:
        """Stored images of each class, of all stages."""
        return len(job.labels) // self._setup.model.classes

    def _staged(self, job: EvaluationJob, parts: list[Evaluation]) -> dict[str, Any]:
        """How a set of several stages was trained on, and what every stage added; nothing for a set of one."""
        if len(job.rates) == 1:
            return {}
        mode = self._setup.config.evaluation.stages
        rows = []
        for place, (stage, _) in enumerate(stage_sequence(mode, job.stages)):
            accuracies = torch.tensor([accuracy for part in parts for accuracy in part.stages[place]], dtype=torch.float64)
            ipc = int((job.stages <= stage).sum()) // self._setup.model.classes
            rows.append({"stage": stage, "ipc": ipc, "lr": job.rates[stage - 1], **_mean_std(accuracies)})
        return {"stages": mode, "by_stage": rows}


def _mean_std(accuracies: Tensor) -> dict[str, float]:
    """Of the networks (E,); the standard deviation is the population's, as the reference prints it."""
    return {"accuracy_mean": accuracies.mean().item(), "accuracy_std": accuracies.std(correction=0).item()}


def protocol(config: Config) -> dict[str, Any]:
    """The settings that decide what an evaluation finds: records of another protocol do not count as done."""
    values = to_dict(config.evaluation)
    return {name: value for name, value in values.items() if name not in ("every", "at_end")}


def job_decoding(config: Config, kind: str) -> Decoding:
    """How the images of an evaluation are stored: synthetic ones as the method does, real ones in training space."""
    return method(config.method).decoding(config) if kind == "synthetic" else Decoding()


def synthetic_job(
    config: Config, synthetic: SyntheticSet, step: int, decoding: Decoding | None = None, step_sizes: Sequence[float | Tensor] = ()
) -> EvaluationJob:
    """The evaluation of a synthetic set at the rates of `raydd.evaluate.rate`; `decoding` is the method's by default.

    `step_sizes` are what the stages have learned, one for each; a set of one stage brings its own. Raises `DataError` when they are
    not as many as stages.
    """
    learned = tuple(float(size) for size in step_sizes) or (synthetic.step_size.item(),)
    if len(learned) != int(synthetic.stages.max()):
        raise DataError(f"{len(learned)} learned step sizes for images of {int(synthetic.stages.max())} stages; give one for each stage.")
    rates = tuple(rate(config, size) for size in learned)
    decoding = decoding or job_decoding(config, "synthetic")
    return EvaluationJob(step, "synthetic", synthetic.images[None], synthetic.labels, synthetic.stages, rates, decoding)


def random_job(setup: Setup, synthetic: SyntheticSet, step: int, step_sizes: Sequence[float | Tensor] = ()) -> EvaluationJob:
    """The baseline that any distilled set must beat: random real images of the same number, another draw for each network.

    They are different ones in all stages together, and divided among the stages alike. Everything else, the rates included, is as
    for the synthetic set.
    """
    job = synthetic_job(setup.config, synthetic, step, step_sizes=step_sizes)
    whole = replace(setup, config=replace(setup.config, ipc=len(job.labels) // setup.model.classes))
    draws = [real_images(whole, "random-baseline", draw) for draw in range(setup.config.evaluation.nets)]
    return replace(job, kind="random", images=torch.stack(draws), decoding=job_decoding(setup.config, "random"))


def compared(synthetic: dict[str, Any], random: dict[str, Any]) -> dict[str, Any]:
    """The evaluation of a synthetic set beside that of random real images, from their records; accuracies are fractions.

    It stands in result.json, and `raydd evaluate --json` prints it. `ior` is DD-Ranking's improvement over random
    (`raydd.evaluate.ranking`, which makes its scores of several such numbers).
    """
    staged = {name: synthetic[name] for name in ("updates", "stages", "by_stage") if name in synthetic}
    staged |= {"random_by_stage": random["by_stage"]} if "by_stage" in random else {}
    return {
        "accuracy_mean": synthetic["accuracy_mean"],
        "accuracy_std": synthetic["accuracy_std"],
        "best_accuracy_mean": synthetic["best_mean"],
        "nets": synthetic["nets"],
        "epochs": synthetic["epochs"],
        "lr": synthetic["lr"],
        "model": synthetic["model"],
        "norm": synthetic["norm"],
        "settings": synthetic["settings"],
        "random_accuracy_mean": random["accuracy_mean"],
        "random_accuracy_std": random["accuracy_std"],
        "ior": improvement_over_random(synthetic["accuracy_mean"], random["accuracy_mean"]),
        **staged,
    }


def needed_snapshots(config: Config) -> tuple[int, int]:
    """(experts, epochs) that a run of this configuration reads."""
    count = config.selection.pool or config.experts.count
    if count > config.experts.count:
        raise ConfigError([f"--selection.pool={count} is more than --experts={config.experts.count}."])
    return count, expert_epochs(config)
