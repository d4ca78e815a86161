"""The flags of every command, as dataclasses: settings of a run, and the options of commands that take a finished one."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from raydd.config import Config, Execution
from raydd.continual_config import ContinualConfig
from raydd.select_config import SelectConfig


@dataclass(frozen=True)
class Settings:
    """Settings of a run."""

    config: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)
    execution: Annotated[Execution, tyro.conf.arg(name="")] = field(default_factory=Execution)


@dataclass(frozen=True)
class SelectSettings(Settings):
    """Settings of a selection: of the recipe, its data, network and evaluation count."""

    select: SelectConfig = field(default_factory=SelectConfig)


@dataclass(frozen=True)
class ContinualSettings(SelectSettings):
    """Learn classes phase by phase: distil each phase's classes as the recipe says, and train on the images kept so far."""

    continual: Annotated[ContinualConfig, tyro.conf.arg(name="")] = field(default_factory=ContinualConfig)
    json: bool = False
    """Print one JSON object and nothing else."""


@dataclass(frozen=True)
class RecipesOptions:
    """List the settings that raydd ships: one recipe for each published row, and small ones for digits."""

    words: tyro.conf.Positional[tuple[str, ...]] = ()
    """Only recipes whose names have all of these in them, such as: cifar10 pdd."""
    method: str = ""
    """Only recipes of this base method: mtt, dc, dsa, dm, cafe, idc, dream or dreamplus."""
    verbose: bool = False
    """Also where the numbers stand, and the memory that each asks for."""


@dataclass(frozen=True)
class EvaluateOptions:
    """Train fresh networks on a result, and on random real images of the same number."""

    path: tyro.conf.Positional[str]
    """A run folder, or its synthetic.safetensors."""
    model: str = ""
    """Networks to train, joined by commas, such as convnet,resnet18-bn,vgg11. Default: the run's own."""
    protocol: str | None = None
    """How a paper trains and tests: mtt, dc, dsa, dm, cafe, cafe-dsa or idc, with all of its own values. Default: as the run does."""
    nets: int | None = None
    """Networks of each kind. Default: the run's own setting; so for everything below, unless a protocol is named."""
    epochs: int | None = None
    """Passes over the images, of each stage; all protocols but idc train one more than they name."""
    updates: int | None = None
    """Optimiser updates in all, in place of epochs."""
    stages: Literal["progressive", "union", "sequential"] | None = None
    """A set of several stages: on the images up to each stage in turn, on all at once, or on those of each stage alone in turn."""
    carry_momentum: bool | None = None
    """A set of several stages: momentum goes on from stage to stage."""
    lr: float | None = None
    """Learning rate, for the synthetic and for the real images."""
    momentum: float | None = None
    weight_decay: float | None = None
    batch_size: int | None = None
    """Images in a batch."""
    augment: Literal["protocol", "none", "dsa", "diffaug", "dc"] | None = None
    """What augments the batches."""
    strategy: str | None = None
    """Its operations, joined by `_`."""
    cutmix: float | None = None
    """Probability that a batch is mixed by CutMix."""
    same_compute: bool = False
    """Divide the epochs by the number of training images that a stored image holds."""
    samples: int | None = None
    """Epochs at which the test accuracy is taken; `best` is the highest of them."""
    data: str = ""
    """Where the real images are now, if they have moved: as --data of raydd distill."""
    data_root: str = ""
    """Folder with the official archives, as --data.root of raydd distill."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto is CUDA where there is one."""
    threads: int = 1
    """CPU threads."""
    json: bool = False
    """Print one JSON object and nothing else."""


@dataclass(frozen=True)
class ReportOptions:
    """Write report.html and the figures of a run, or the report.html of a sweep."""

    run: tyro.conf.Positional[str]
    """The run folder, or the folder of a sweep, which has a sweep.json."""


@dataclass(frozen=True)
class CompareOptions:
    """Set runs side by side: a row for those that differ in nothing but the seed, as the papers' ablation tables have them."""

    runs: tyro.conf.Positional[tuple[str, ...]]
    """Run folders with an evaluation. Later rows are held against that of the first."""
    out: str = "comparison.html"
    """The page to write."""
    json: bool = False
    """Print one JSON object and nothing else."""


@dataclass(frozen=True)
class ExportOptions:
    """Write a result in another form."""

    run: tyro.conf.Positional[str]
    """A run folder, or its synthetic.safetensors."""
    out: tyro.conf.Positional[str]
    """The folder to write."""
    to: Literal["png", "parquet", "mtt", "dc"]
    """png: pictures by class. parquet: as on the Hugging Face hub. mtt, dc: tensor files of the MTT and the DC programs."""
