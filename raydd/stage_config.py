"""The settings of progressive distillation (PDD) and of its curriculum, and what is wrong with them.

Sources: specs/mtt_pdd.md section 3.5, specs/dc_dsa_dm_cafe_selection_cl.md sections 9 and 11.
"""

import itertools
import math
from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class StagesConfig:
    """Progressive distillation (PDD): each stage distils its own images beside the finished, frozen ones of the stages before."""

    count: int = 1
    """P, stages; 1 is the base method. `ipc` and `steps` are those of each stage."""
    transition: bool = True
    """Later stages start from networks trained on the images so far. False: from fresh networks, mtt from later epochs of its experts.
    `transition_epochs`, `networks` and `real_lr` then say nothing."""
    conditioning: bool = True
    """The images of earlier stages take part in the matching. False: each stage is matched alone, and start networks are trained on the
    images of one stage after the other alone."""
    transition_epochs: int | None = None
    """Epochs of a start network on the images so far, at each stage. Default: mtt 1000; idc, dream, dreamplus 200; others 500."""
    networks: int = 20
    """Not mtt: start networks in the pool from which later stages draw theirs."""
    real_lr: float = 0.01
    """mtt: learning rate of later stages' experts on real data."""
    frozen_lr_scale: float = 0.0
    """Rate of earlier stages' images as a share of the stage's own; 0 freezes them. Above 0 they move; the paper found that worse."""
    scale_lr: bool = False
    """Multiply the image rate by the stage's number: the mean over i times as many images shrinks each one's gradient to 1/i."""
    batch_mode: Literal["union_chunks", "new_first"] = "union_chunks"
    """mtt: inner batches are chunks of all images so far, or always hold the stage's own and fill up with earlier ones."""


@dataclass(frozen=True)
class CurriculumConfig:
    """Which real images each stage distils: from easy to hard, by how often a network in training forgets them (`raydd.curriculum`)."""

    scores: Literal["none", "forgetting"] = "none"
    """none: every stage sees all images. forgetting: stage i sees those forgotten from `width` x (i - 1) to below `width` x i times."""
    width: float = 3.0
    """Width of a stage's range of scores."""
    edges: str = ""
    """The ends of the ranges instead, joined by commas: 0,1,4,inf are three stages. Each range leaves out its upper end."""
    quantiles: bool = False
    """Equal shares of every class for all stages instead. Depends on the number of stages."""
    never_learnt: Literal["first", "last", "exclude"] = "first"
    """Images that were never right: forgotten 0 times as counted, in the last stage (whose number then matters), or in none."""
    least: int | None = None
    """Images of each class that a stage needs; of fewer, easier ones are added. Default: what method and `init` need, and a range
    that is empty for a class is refused."""
    epochs: int = 60
    """Epochs of the network that gives the scores, of the run's own kind, on all real images."""
    lr: float = 0.01
    """Its learning rate, constant."""
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch_size: int = 256
    """Images per batch; the last, smaller batch of an epoch is used too."""
    augment: bool = True
    """Augment its batches with `augment.strategy`."""
    seed: int = 0
    """Its seed, apart from the run's, so that runs of several seeds share the scores."""


STAGE_AT_LEAST = {
    "stages.count": 1, "stages.transition_epochs": 1, "stages.networks": 1, "stages.frozen_lr_scale": 0, "curriculum.least": 1,
    "curriculum.epochs": 1, "curriculum.momentum": 0, "curriculum.weight_decay": 0, "curriculum.batch_size": 1, "curriculum.seed": 0,
}  # fmt: skip
STAGE_ABOVE = {"stages.real_lr": 0, "curriculum.width": 0, "curriculum.lr": 0}
STAGE_BELOW = {"curriculum.momentum": 1}


def stage_problems(config: Any) -> list[str]:
    """One sentence for every setting of `stages` that does not go with the others."""
    stages, found = config.stages, []
    if stages.count > 1 and not config.steps:
        found.append("--steps=0 with --stages.count above 1: a stage needs steps. Give --steps, or one stage.")
    if stages.frozen_lr_scale > 1:
        found.append(f"--stages.frozen_lr_scale={stages.frozen_lr_scale:g} is a share of the rate of the stage's own images: 0 to 1.")
    without = [
        (bool(stages.frozen_lr_scale), f"frozen_lr_scale={stages.frozen_lr_scale:g} moves the images of earlier stages, which"),
        (stages.scale_lr, "scale_lr makes up for the earlier images in the mean, which"),
        (stages.batch_mode == "new_first", "batch_mode=new_first fills batches up with earlier images, which"),
    ]
    if not stages.conditioning:
        found += [f"--stages.{what} --stages.no_conditioning leaves out. Use one of the two." for given, what in without if given]
    if stages.frozen_lr_scale and stages.batch_mode == "new_first":
        found.append("--stages.batch_mode=new_first puts earlier images behind the stage's own, but --stages.frozen_lr_scale moves both.")
    if config.method != "mtt" and stages.batch_mode != "union_chunks":
        found.append(f"--stages.batch_mode={stages.batch_mode} does not go with --method {config.method}; it is for mtt.")
    return found + _curriculum_problems(config)


def curriculum_edges(text: str) -> tuple[float, ...]:
    """The ends of the ranges that `curriculum.edges` names. Raises `ValueError` where that is no list of numbers."""
    return tuple(float(part) for part in text.split(","))


def of_the_count(config: Any) -> list[str]:
    """The settings by which the images of a stage depend on how many stages there are, as flags: such a run cannot grow."""
    own = config.curriculum
    if own.scores == "none":
        return []
    flags = {"--curriculum.quantiles": own.quantiles, "--curriculum.never_learnt=last": own.never_learnt == "last"}
    return [flag for flag, given in flags.items() if given]


def _curriculum_problems(config: Any) -> list[str]:
    own = config.curriculum
    if own.scores == "none":
        given = [name for name, value in asdict(own).items() if value != getattr(CurriculumConfig, name)]
        return [f"--curriculum.{name} says nothing without --curriculum.scores forgetting." for name in given]
    if not own.edges:
        return []
    if own.quantiles:
        return [f"--curriculum.edges={own.edges} and --curriculum.quantiles exclude each other; use one of the two."]
    try:
        edges = curriculum_edges(own.edges)
    except ValueError:
        edges = ()
    rising = all(low < high for low, high in itertools.pairwise(edges))
    if len(edges) < 2 or not rising or edges[0] < 0 or any(map(math.isnan, edges)):
        return [f"--curriculum.edges={own.edges} must be two or more rising numbers from 0 on, joined by commas, such as 0,3,6,inf."]
    if len(edges) <= config.stages.count:
        return [
            f"--curriculum.edges={own.edges} has ranges for {len(edges) - 1} stages, --stages.count={config.stages.count} asks for more. "
            "Give one edge more than there are stages."
        ]
    return []
