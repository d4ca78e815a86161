"""Every setting of a run as frozen dataclasses, and the checks that report all errors at once, each naming its flag.

`Config` holds what decides the result: two runs with equal `Config` give equal bits on one kind of device.
`Execution` holds where and how it runs; resuming with another `Execution` changes nothing in the result.
Defaults are those of MTT on CIFAR-10 (`specs/mtt_pdd.md` sections 1 and 2); recipes override them.
"""

import math
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import tyro

from raydd.errors import ConfigError
from raydd.method_config import (
    METHOD_ABOVE,
    METHOD_AT_LEAST,
    METHOD_AT_MOST,
    METHOD_BELOW,
    CAFEConfig,
    DCConfig,
    DMConfig,
    DREAMConfig,
    IDCConfig,
    MTTConfig,
)
from raydd.places import secrets_in
from raydd.schema import fingerprint as fingerprint
from raydd.schema import flatten as flatten
from raydd.schema import from_dict as from_dict
from raydd.schema import to_dict as to_dict
from raydd.stage_config import STAGE_ABOVE, STAGE_AT_LEAST, STAGE_BELOW, CurriculumConfig, StagesConfig, stage_problems

DSA_STRATEGY = "color_crop_cutout_flip_scale_rotate"
DSA_OPERATIONS = ("color", "crop", "cutout", "flip", "scale", "rotate")


@dataclass(frozen=True)
class DataConfig:
    """The real data."""

    source: Annotated[str, tyro.conf.arg(aliases=["--data"])] = "digits"
    """digits, cifar10, cifar100, tiny-imagenet, mnist, fashionmnist, svhn, parquet:DIR or folder:DIR."""
    root: str = ""
    """Folder with the official archives of the named sets. Default: $RAYDD_DATA, else ~/.cache/raydd/data."""
    classes: str = ""
    """The classes to use, by name or number from 0, joined by commas, with ranges such as 0-4; their order is that of the labels.
    Default: all."""
    size: int | None = None
    """Side in pixels to which every image is resized. Default: the set's own side; needed when images differ in size."""
    channels: Literal[1, 3] | None = None
    """1 for grey, 3 for colour. Default: 3 as soon as one image has colour."""
    zca: bool = False
    """ZCA whitening in place of mean and standard deviation. Changes results."""
    zca_eps: float = 0.1
    """Added to the eigenvalues inside the root. Above 0."""


@dataclass(frozen=True)
class ModelConfig:
    """The network of experts, student and evaluation."""

    name: str = "convnet"
    """A registered model; `convnet` is the ConvNet of the papers."""
    width: int = 128
    """Channels of every block."""
    depth: int = 3
    """Blocks; each halves the side."""
    norm: Literal["instance", "batch", "layer", "group", "none"] = "instance"
    """instance is one group per channel (GroupNorm), group is 4 groups, layer normalises over (C, H, W)."""
    activation: Literal["relu", "sigmoid", "leakyrelu", "swish"] = "relu"
    """leakyrelu has slope 0.01."""
    pooling: Literal["avg", "max", "none"] = "avg"
    """2 x 2, stride 2."""


@dataclass(frozen=True)
class AugmentConfig:
    """Differentiable Siamese augmentation (DSA)."""

    strategy: str = DSA_STRATEGY
    """Operations joined by `_`, of which each batch draws one; `none` switches augmentation off."""
    parameters: Literal["per-image", "shared"] = "per-image"
    """Whether every image of a batch draws its own parameters (MTT) or all share one draw (DSA's Siamese form). For training networks
    and for mtt; matching in dsa, dm and cafe always shares one draw for a class, and their network training is per-image."""


@dataclass(frozen=True)
class ExpertConfig:
    """How expert trajectories are trained on the real data."""

    count: Annotated[int, tyro.conf.arg(aliases=["--experts"])] = 100
    """Experts in the pool."""
    epochs: int | None = None
    """Epochs of each trajectory, with stages of the first. Default: as many as the method reads, which gives the same snapshots."""
    lr: float = 0.01
    """SGD learning rate, constant unless `decay`."""
    momentum: float = 0.0
    weight_decay: float = 0.0
    batch_size: int = 256
    """Images per batch; the last, smaller batch of an epoch is used too."""
    decay: bool = False
    """Multiply the learning rate by 0.1 once, after epoch index epochs // 2 + 1. Needs `epochs`."""
    augment: bool = True
    """Augment every real batch."""
    seed: int = 0
    """Seed of the experts, apart from the run's, so that runs of several seeds share one store."""
    together: int = 1
    """Experts trained side by side in one batched pass. Rounding differs from 1, so it is part of the store's name."""


@dataclass(frozen=True)
class SelectionConfig:
    """Which candidate updates the images."""

    policy: Literal["uniform", "dynadistill", "greedy", "annealed"] = "uniform"
    """uniform: by lot. dynadistill: softmax of the scores. greedy: the best score. annealed: softmax with schedules."""
    candidates: int = 1
    """M, candidates scored at every step; 1 is the base method."""
    temperature: float = 0.5
    """Divides the scores inside the softmax. Above 0."""
    sign: float = -1.0
    """-1: a low loss is likelier (the paper's text). +1: a high loss is likelier (the paper's formula). 0: uniform."""
    final_temperature: float = 0.05
    """annealed: temperature at the last step, reached geometrically."""
    final_sign: float | None = None
    """annealed: sign at the last step, reached linearly. Default: `sign`."""
    temperature_place: Literal["divide", "multiply"] = "divide"
    """Whether the temperature divides the scores or multiplies them; the paper's formula shows neither."""
    normalise: Literal["none", "mean", "zscore", "relative"] = "none"
    """Scores as they are, divided by their mean, standardised, or divided by the size of what is matched. Changes results."""
    share_start: bool = False
    """mtt: one start epoch for all candidates of a step, so that only the expert differs."""
    pool: int | None = None
    """mtt: use only the first so many experts; default all. Others: network slots; default 1 for one candidate, else 10. Where slots are
    redrawn there are as many as candidates."""
    replacement: bool = True
    """mtt: draw experts anew at every step. False: each expert once before any comes again."""
    every: int = 0
    """Not mtt: image updates between two selections. 0 selects once for each network lifetime."""
    slots: Literal["put_back", "train_all", "reinit", "keep", "redraw"] | None = None
    """Not mtt: what becomes of the slots after a network lifetime. put_back: the chosen network goes back as trained. train_all:
    every slot trains along. reinit: the chosen slot starts anew. keep: the chosen slot goes back as it was. redraw: every slot
    starts anew. Default: put_back for idc, dream and dreamplus with several candidates, else redraw."""
    max_age: int = 5
    """Network lifetimes after which a slot that was put back starts anew; 0 is never."""
    warm_up_images: int | None = None
    """Real images that a new slot trains on before it competes, with several candidates; at the method's own network rate, in dm 0.01.
    Default: idc and dream one network update, others none."""
    warm_up_spread: int = 0
    """Further such warm-ups of a new slot, drawn from 0 to this, so that ages differ."""
    rank_batch: Literal["shared", "own"] = "shared"
    """dream, dreamplus: score candidates on one random batch, or each on its own representatives."""
    common_draws: bool = True
    """Candidates of a step share its real batches and augmentation. Not mtt when False."""
    rank_classes: int | None = None
    """Not mtt: score candidates on so many random classes, the same for all. The score is the mean over these; updates have all classes."""
    reuse_ranking_batch: bool = True
    """Update with the batches and augmentation on which candidates were scored. False: with those that the base method would draw; the
    reading that suits selection once for a network lifetime, where the chosen loss is else that of a batch it was chosen for."""


@dataclass(frozen=True)
class EvaluationConfig:
    """Training networks from scratch on the synthetic set. What is left open here, the protocol fills in."""

    every: int = 0
    """Evaluate every so many steps during the run; 0 evaluates at the end only."""
    at_end: bool = True
    """Evaluate the final images, and random real images of the same number beside them."""
    nets: int = 5
    """Networks, each from a fresh initialisation."""
    protocol: str = "mtt"
    """How a paper trains and tests them: mtt, dc, dsa, dm, cafe, cafe-dsa or idc."""
    stages: Literal["progressive", "union", "sequential"] = "progressive"
    """Several stages: train on the images up to each stage in turn, on all at once, or on those of each stage alone in turn."""
    carry_momentum: bool = True
    """Several stages: momentum goes on from stage to stage and when the rate drops, as in PDD. False: it starts anew."""
    epochs: int | None = None
    """mtt, dsa, dm 1000; dc 300, cafe 600, both 1000 with augmentation; idc 1000. All but idc make one pass more.
    With P stages, progressive, 2/(P+1) of them on each, for as many image visits."""
    updates: int | None = None
    """Optimiser updates in all, in place of epochs: the fewest whole passes that make as many, equally many on each stage."""
    lr: float | None = None
    """Learning rate: 0.01, and in mtt the learned step size."""
    momentum: float | None = None
    """0.9 in all protocols."""
    weight_decay: float | None = None
    """5e-4 in all protocols."""
    batch_size: int | None = None
    """256, in idc 64."""
    augment: Literal["protocol", "none", "dsa", "diffaug", "dc"] = "protocol"
    """Augment the synthetic batches as the protocol does, not at all, or as DSA, IDC (diffaug) or DC do."""
    strategy: str = ""
    """Operations of that augmentation, joined by `_`. Default: for dsa `augment.strategy`, else the protocol's."""
    cutmix: float | None = None
    """Probability that a batch is mixed by CutMix: 0.5 in idc, 0 in all others."""
    same_compute: bool = False
    """Divide the epochs by the number of training images that a stored image holds."""
    samples: int | None = None
    """Epochs at which the test accuracy is taken, the last one included; `best` is the highest of them. 5, in idc 4."""


@dataclass(frozen=True)
class GuardConfig:
    """What happens when numbers stop being finite."""

    redraws: int = 3
    """Fresh draws of a step whose candidates all failed, before the step is skipped."""
    max_skips: int = 10
    """Steps skipped in a row before the run stops at its last good state."""


@dataclass(frozen=True)
class Config:
    """Everything that decides the result of a run."""

    recipe: Annotated[str, tyro.conf.Suppress] = ""
    """The recipe that these settings started from."""
    method: str = "mtt"
    """mtt, dc, dsa, idc, dream, dreamplus, dm or cafe."""
    ipc: Annotated[int, tyro.conf.arg(aliases=["--stages.ipc"])] = 1
    """Images per class; with several stages, of each stage."""
    steps: int = 5000
    """Distillation steps; with several stages, of each stage."""
    seed: int = 0
    """Seed of every random stream."""
    init: Literal["real", "noise", "mix", "kmeans", "first"] = "real"
    """Start from random real images of the class, from noise, from factor x factor real images in each (mix), from those nearest to
    cluster centres (kmeans), or from the first in data order (first), as IDC's program, so many in each as the factor says."""
    tf32: bool = False
    """Allow TF32 on CUDA: faster, about 1e-3 relative error. Changes results."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    experts: ExpertConfig = field(default_factory=ExpertConfig)
    mtt: MTTConfig = field(default_factory=MTTConfig)
    dc: DCConfig = field(default_factory=DCConfig)
    dm: DMConfig = field(default_factory=DMConfig)
    cafe: CAFEConfig = field(default_factory=CAFEConfig)
    idc: IDCConfig = field(default_factory=IDCConfig)
    dream: DREAMConfig = field(default_factory=DREAMConfig)
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    stages: StagesConfig = field(default_factory=StagesConfig)
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)


@dataclass(frozen=True)
class Execution:
    """Where and how a run executes. Nothing here changes the result on one kind of device, but `threads` its rounding."""

    run: str = ""
    """Run folder. Default: runs/RECIPE-SEED."""
    store: str = ""
    """Folder of expert stores. Default: $RAYDD_STORE, else ~/.cache/raydd/experts."""
    workers: int | None = None
    """Ray worker actors K; 0 runs inline without Ray. Default: min(candidates, devices)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = 1
    """CPU threads of each worker; 1 is fastest for small networks. Another number adds in another order, which changes rounding."""
    deterministic: bool = False
    """On CUDA: deterministic kernels only, for equal bits between runs."""
    address: str = "local"
    """Ray cluster to join; `local` starts one for this run."""
    checkpoint_every: int = 100
    """Steps between checkpoints."""
    keep_checkpoints: int = 3
    """Checkpoints kept in the run folder."""
    max_restarts: int = 10
    """Worker deaths that a run survives before it stops at its last checkpoint."""
    answer_timeout: float = 600.0
    """Seconds without any answer from the workers before they are replaced."""
    train_experts: bool = True
    """Train missing experts on demand; False refuses instead."""


def needed_epochs(config: Config) -> int:
    """Last snapshot that the method reads: max_start_epoch - 1 + expert_epochs (specs/mtt_pdd.md section 1.2).

    Without transition every stage has its own range of start epochs, one after the other (section 3.1, ablations).
    """
    ranges = 1 if config.stages.transition else config.stages.count
    return ranges * config.mtt.max_start_epoch - 1 + config.mtt.expert_epochs


def expert_epochs(config: Config) -> int:
    """Epochs of the trajectories that this configuration asks for."""
    return config.experts.epochs if config.experts.epochs is not None else needed_epochs(config)


def problems(config: Config, execution: Execution | None = None) -> list[str]:
    """One sentence for every problem that shows without the method or the data: ranges and contradictions, each naming its flag.

    Raises `ConfigError` for wrong types. `raydd.methods.base.check` adds what the method knows.
    """
    given = [part for part in (config, execution) if part is not None]
    for part in given:
        from_dict(type(part), to_dict(part))
    found = [problem for part in given for problem in _ranges(part) + _secrets(part)] + _choices(config) + stage_problems(config)
    return found + (_relations(config) if config.method == "mtt" else [])


_AT_LEAST = {
    "ipc": 1, "steps": 0, "seed": 0, "model.width": 1, "model.depth": 1, "experts.count": 1, "experts.epochs": 1,
    "experts.batch_size": 1, "experts.seed": 0, "experts.together": 1, "selection.every": 0, "selection.max_age": 0,
    "selection.warm_up_images": 0, "selection.rank_classes": 1, "selection.warm_up_spread": 0, "selection.candidates": 1,
    "selection.pool": 1, "evaluation.every": 0, "evaluation.nets": 1, "evaluation.cutmix": 0,
    "evaluation.epochs": 0, "evaluation.samples": 1, "evaluation.updates": 1, "evaluation.batch_size": 1,
    "guard.redraws": 0, "guard.max_skips": 1, "data.size": 1,
    "experts.momentum": 0, "experts.weight_decay": 0, "evaluation.momentum": 0,
    "evaluation.weight_decay": 0, "workers": 0, "threads": 1, "checkpoint_every": 1, "keep_checkpoints": 1, "max_restarts": 0,
} | METHOD_AT_LEAST | STAGE_AT_LEAST  # fmt: skip
_ABOVE = {
    "data.zca_eps": 0, "experts.lr": 0,
    "selection.temperature": 0, "selection.final_temperature": 0, "evaluation.lr": 0, "answer_timeout": 0,
} | METHOD_ABOVE | STAGE_ABOVE  # fmt: skip
_BELOW = {"experts.momentum": 1, "evaluation.momentum": 1} | METHOD_BELOW | STAGE_BELOW
_AT_MOST = {"evaluation.cutmix": 1} | METHOD_AT_MOST
_BOUNDS = (
    (_AT_LEAST, "at least", lambda value, bound: value >= bound),
    (_ABOVE, "above", lambda value, bound: value > bound),
    (_BELOW, "below", lambda value, bound: value < bound),
    (_AT_MOST, "at most", lambda value, bound: value <= bound),
)


def _ranges(config: Config | Execution) -> list[str]:
    """One sentence for every number that is not finite or out of its bounds."""
    problems = []
    for name, value in flatten(to_dict(config)).items():
        if isinstance(value, float) and not math.isfinite(value):
            problems.append(f"--{name}={value} must be a finite number.")
        elif isinstance(value, (int, float)):
            broken = [f"{word} {bounds[name]}" for bounds, word, holds in _BOUNDS if name in bounds and not holds(value, bounds[name])]
            problems += [f"--{name}={value} must be {bound}." for bound in broken]
    return problems


def _secrets(config: Config | Execution) -> list[str]:
    """One sentence for every URI that holds a password: settings are written into records."""
    texts = {name: value for name, value in flatten(to_dict(config)).items() if isinstance(value, str)}
    return [problem for name, value in texts.items() for problem in secrets_in(f"--{name}", value)]


def _choices(config: Config) -> list[str]:
    problems = []
    for name in ("sign", "final_sign"):
        value = getattr(config.selection, name)
        if value is not None and not -1 <= value <= 1:
            problems.append(f"--selection.{name}={value} must be between -1 (low loss likelier) and 1 (high loss likelier).")
    strategies = {"augment.strategy": config.augment, "idc.match_strategy": config.idc, "idc.net_strategy": config.idc}
    for name, section in strategies.items():
        value = getattr(section, name.split(".")[1])
        unknown = [operation for operation in value.split("_") if operation not in DSA_OPERATIONS]
        if value != "none" and unknown:
            known = ", ".join(DSA_OPERATIONS)
            problems.append(f"--{name}={value}: unknown operation {unknown[0]!r}; join any of {known} with '_', or use none.")
    return problems


def _relations(config: Config) -> list[str]:
    problems = []
    pool, available = config.selection.pool or config.experts.count, config.experts.count
    if pool > available:
        problems.append(f"--selection.pool={pool} is more than --experts={available}; train more experts or lower the pool.")
    if config.selection.candidates > min(pool, available):
        problems.append(
            f"--selection.candidates={config.selection.candidates} is more than the pool of {min(pool, available)} experts; "
            "lower it, or raise --experts (and --selection.pool)."
        )
    if config.experts.epochs is not None and config.experts.epochs < needed_epochs(config):
        problems.append(
            f"--mtt.max_start_epoch={config.mtt.max_start_epoch} with --mtt.expert_epochs={config.mtt.expert_epochs} needs "
            f"experts of {needed_epochs(config)} epochs; --experts.epochs={config.experts.epochs}. Raise --experts.epochs "
            "(or leave it out) or lower --mtt.max_start_epoch."
        )
    if config.experts.decay and config.experts.epochs is None:
        problems.append("--experts.decay needs --experts.epochs, because the rate drops after half of them.")
    return problems


def override(config: Config, settings: dict[str, Any]) -> Config:
    """A copy with dotted settings changed, for example {"mtt.syn_steps": 10}. Raises `ConfigError` for unknown names and wrong types."""
    values = to_dict(config)
    for name, value in settings.items():
        *path, last = name.split(".")
        place: Any = values
        for part in path:
            place = place.get(part) if isinstance(place, dict) else None
        if not isinstance(place, dict) or last not in place:
            raise ConfigError([f"{name} is not a setting; known: {', '.join(flatten(to_dict(config)))}."])
        place[last] = value
    return from_dict(Config, values)
