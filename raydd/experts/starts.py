"""Start networks (PDD): network j of the start of stage i + 1 is network j of the start of stage i, trained on the images so far.

That training is a `Link`; a start is known by the chain of its links, so a later stage finds what earlier ones left in the store and
trains the last link alone. Stage 1 starts untrained: for MTT from snapshot 0 of expert j. Source: the PDD paper, section 4.1;
specs/mtt_pdd.md section 3.1 (step 4), specs/dc_dsa_dm_cafe_selection_cl.md section 11.1.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from raydd import devices
from raydd.config import Config, Execution
from raydd.data import Dataset, Transform
from raydd.decode import Decoding, training_images
from raydd.environment import versions
from raydd.errors import DivergenceError
from raydd.evaluate import Settings, TrainingSet, rate, settings_for, train_on
from raydd.evaluate.scratch import training_recipe
from raydd.experts.files import digest
from raydd.experts.identity import network_identity, training_identity
from raydd.experts.jobs import Job, Meter, Progress, RunJobs, check_space, groups_of, inline_jobs
from raydd.experts.store import Store
from raydd.experts.train import streams as expert_streams
from raydd.methods import method
from raydd.models import FlatModel, build
from raydd.training import Networks, Streams, initial
from raydd.types import SyntheticSet

PURPOSE = "start"
_EPOCHS = {"mtt": 1000, "idc": 200, "dream": 200, "dreamplus": 200}
_OTHER_EPOCHS = 500
TRAINED_LIKE = ("protocol", "lr", "momentum", "weight_decay", "batch_size", "augment", "strategy", "cutmix")
"""The settings of `evaluation` that decide start networks, which are trained as an evaluation trains."""


@dataclass(frozen=True)
class Link:
    """One training of start networks, on the images of the stages so far. Travels to workers whole.

    sha256    of these images as stored, and `decoding` how they are; `training` holds them as networks see them, with the rate
    settings  of the training, as an evaluation of these images would train
    """

    sha256: str
    decoding: Decoding
    training: TrainingSet
    settings: Settings

    @property
    def passes(self) -> int:
        """Passes over the images."""
        return sum(phase.epochs for phase in self.settings.phases(self.training.lr))

    @property
    def images(self) -> int:
        """Images that one network sees."""
        return self.passes * len(self.training.labels)

    def identity(self) -> dict[str, Any]:
        """What decides its bits besides the networks that it begins with, JSON-ready."""
        return {
            "images": self.sha256,
            "decoding": asdict(self.decoding),
            "phases": [asdict(phase) for phase in self.settings.phases(self.training.lr)],
            "training": training_identity(training_recipe(self.settings)),
        }


@dataclass(frozen=True)
class StartsPlace:
    """Where the start networks of a stage lie: as experts 0..count-1 of 0 epochs in a store. For any process."""

    root: str
    recipe: dict[str, Any]
    count: int

    @property
    def stage(self) -> int:
        """The stage that starts from them."""
        return len(self.recipe["links"]) + 1

    @property
    def key(self) -> str:
        """The name of their store."""
        return Store(self.root, self.recipe).key

    def open(self) -> Store:
        """Their store; its contents were checked when it was built."""
        return Store.open(self.root, self.recipe, verify=False)

    def thetas(self, networks: Sequence[int]) -> Tensor:
        """These networks: float32 (E, P) on the CPU."""
        store = self.open()
        return torch.stack([store.tensor(network, 0) for network in networks])


def transition_epochs(config: Config) -> int:
    """Epochs of one link, as the evaluation protocol counts them: `stages.transition_epochs`, else the method's own."""
    return config.stages.transition_epochs or _EPOCHS.get(config.method, _OTHER_EPOCHS)


def link_settings(config: Config, model: FlatModel, images: int) -> Settings:
    """How a link trains on so many decoded images: as an evaluation, but for the epochs."""
    evaluation = replace(config.evaluation, epochs=transition_epochs(config), updates=None, same_compute=False)
    return settings_for(replace(config, evaluation=evaluation), model, images)


def links(config: Config, model: FlatModel, transform: Transform, unions: Sequence[SyntheticSet]) -> list[Link]:
    """The links up to the stage after `unions`: the images after each earlier stage, with the step size that its last stage learned."""
    decoding, found = method(config.method).decoding(config), []
    for union in unions:
        images, labels = (part.cpu() for part in training_images(union.images, union.labels, decoding, transform))
        training = TrainingSet(images, labels, rate(config, union.step_size.item()))
        found.append(Link(digest([union.images.cpu().numpy()]), decoding, training, link_settings(config, model, len(labels))))
    return found


def starts_recipe(config: Config, dataset: Dataset, chain: Sequence[Link]) -> dict[str, Any]:
    """Everything that decides the bits of a start network besides its index, JSON-ready; its hash names the store.

    How many there are is no part of it. `origin` says what the first link begins with: snapshot 0 of an expert, or a network of its
    own stream.
    """
    expert = _from_experts(config)
    return {
        **network_identity(config, dataset),
        "origin": "expert" if expert else "network",
        "seed": config.experts.seed if expert else config.seed,
        "links": [link.identity() for link in chain],
    }


def build_starts(
    config: Config,
    dataset: Dataset,
    chain: Sequence[Link],
    count: int,
    root: str,
    run_jobs: RunJobs = inline_jobs,
    progress: Callable[[Progress], None] = lambda progress: None,
    execution: Execution | None = None,
) -> StartsPlace:
    """Make networks 0..count-1 of the start after `chain`, at least one link, exist under `root`, training what is missing.

    With `experts.together` above 1 whole groups are trained side by side. The start of every earlier stage stays in the store too,
    so when this is interrupted, the networks under way lose what they did of one link, and nothing else. What is there is checked by its
    sha-256 before it is used. `progress` is as in `raydd.experts.build.train_missing`.

    Raises `StoreError` for a damaged file, `ResourceError` when the disk cannot hold the result, and `DivergenceError`.
    """
    recipes = tuple(starts_recipe(config, dataset, chain[: place + 1]) for place in range(len(chain)))
    stores = [Store.open(root, recipe, verify=recipe is recipes[-1]) for recipe in recipes]
    jobs = groups_of(stores[-1].missing(count, 0), config.experts.together)
    place = StartsPlace(root, recipes[-1], count)
    if not jobs:
        return place
    left = {tuple(job): chain[links_done(stores, job) :] for job in jobs}
    files = sum(len(job) * len(rest) for job, rest in left.items())
    check_space(
        stores[-1].folder,
        files * recipes[-1]["parameters"] * 4,
        f"{files} start networks",
        "--experts" if _from_experts(config) else "--stages.networks",
    )
    images = sum(len(job) * link.images for job, rest in left.items() for link in rest)
    meter = Meter(sum(map(len, jobs)), images, progress)
    worker = StartWorker(config, root, recipes, tuple(chain), dataset.shape, len(dataset.classes), execution or Execution(), meter.epoch)
    run_jobs(worker, jobs, lambda result: meter.job(len(result.networks), result.images))
    return place


def links_done(stores: Sequence[Store], job: Job) -> int:
    """How many links of the chain all networks of a job have behind them: the most for which all are in the store."""
    return next((place + 1 for place in reversed(range(len(stores))) if all(stores[place].reaches(one, 0) for one in job)), 0)


@dataclass(frozen=True)
class StartResult:
    """What a job did: its networks, wall seconds, and images put through training."""

    networks: tuple[int, ...]
    seconds: float
    images: int


@dataclass(frozen=True)
class StartWorker:
    """Call it in the process that shall train; it returns `job -> StartResult`. The stores are those of `recipes`, one for each link.

    `on_epoch` hears how many images every pass took, in the process that made it: it is left out when this is pickled for another.
    """

    config: Config
    root: str
    recipes: tuple[dict[str, Any], ...]
    chain: tuple[Link, ...]
    shape: tuple[int, int, int]
    classes: int
    execution: Execution = field(default_factory=Execution)
    on_epoch: Callable[[int], None] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "on_epoch": None}

    def __call__(self) -> Callable[[Job], StartResult]:
        devices.prepare(self.execution.threads, self.execution.deterministic, self.config.tf32)
        stores = [Store.open(self.root, recipe, verify=False) for recipe in self.recipes]
        return _Trainer(self, stores, build(self.config.model, self.shape, self.classes), devices.resolve(self.execution.device))


@dataclass(frozen=True)
class _Trainer:
    order: StartWorker
    stores: list[Store]
    model: FlatModel
    device: torch.device

    def __call__(self, job: Job) -> StartResult:
        """Train the links that the job's networks lack, writing them after each."""
        started, images = time.perf_counter(), 0
        done = links_done(self.stores, job)
        thetas = self._origin(job) if done == 0 else self._read(self.stores[done - 1], job)
        for place in range(done, len(self.stores)):
            thetas = self._train(thetas, job, place)
            images += len(job) * self.order.chain[place].images
        return StartResult(tuple(job), time.perf_counter() - started, images)

    def _origin(self, job: Job) -> Tensor:
        """The untrained networks: those of the experts, or the method's own."""
        config = self.order.config
        streams = expert_streams(config, job) if _from_experts(config) else Streams(config.seed, PURPOSE, tuple(job))
        return initial(self.model, streams, self.device).thetas

    def _read(self, store: Store, job: Job) -> Tensor:
        store.verify(job)  # what goes on from a damaged file would be damaged too
        return torch.stack([store.tensor(network, 0) for network in job]).to(self.device)

    def _train(self, thetas: Tensor, job: Job, place: int) -> Tensor:
        """The networks (E, P) after link number `place`, which begins without momentum; they are in the store when this returns."""
        order, link, networks = self.order, self.order.chain[place], Networks(thetas)
        config = order.config
        seed = config.experts.seed if _from_experts(config) else config.seed
        streams = Streams(seed, f"{PURPOSE}-{place + 2}", tuple(job))
        passes = train_on(self.model, networks, link.training, link.settings, streams, vectorised=config.experts.together > 1)
        for done in passes:
            losses, accuracies = done.loss.tolist(), done.accuracy.tolist()
            _refuse_divergence(config, link, job, place, done.number, losses)
            if order.on_epoch:
                order.on_epoch(done.images)
        # The last step moved the networks once more.
        _refuse_divergence(config, link, job, place, link.passes, networks.thetas.sum(1).tolist())
        kept = networks.thetas.cpu()
        for at, network in enumerate(job):
            told = {"train_loss": [losses[at]], "train_accuracy": [accuracies[at]], "versions": versions(), "layout": self.model.layout}
            self.stores[place].write(network, [kept[at].numpy()], told)
        return networks.thetas


def _from_experts(config: Config) -> bool:
    return method(config.method).networks is None


def _refuse_divergence(config: Config, link: Link, job: Job, place: int, number: int, values: Sequence[float]) -> None:
    """Raise `DivergenceError` for the first network of which a value is not finite."""
    for network, value in zip(job, values, strict=True):
        if not math.isfinite(value):
            raise DivergenceError(
                f"Start network {network} of stage {place + 2} diverged in pass {number} over the images of the stages before it, at "
                f"rate {link.training.lr:g}. {_advice(config, link, place)}"
            )


def _advice(config: Config, link: Link, place: int) -> str:
    """What may be changed: all links of a run are trained alike, so after the first one they stay as they are."""
    momentum = f"--evaluation.momentum={link.settings.momentum:g}" if link.settings.momentum else ""
    if place == 0:
        return f"Give a lower one with --evaluation.lr{f', or lower {momentum}' if momentum else ''}."
    return (
        f"The run has trained those of stage {place + 1} with these settings and keeps them: start anew under another --run with a lower "
        f"--evaluation.lr{f', lower {momentum}' if momentum else ''} or fewer --stages.transition_epochs than {transition_epochs(config)}."
    )
