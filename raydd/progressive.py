"""The rules of stages (PDD): which images a stage moves, which it holds fixed, and where its steps begin. Pure; no networks.

Stage i distils `ipc` images of each class beside U_{i-1}, the images of all stages before it, which are frozen bit for bit and take
part in the matching (conditioning). Networks start where training on U_{i-1} ended (transition): `raydd.starts`. Sources: the PDD
paper, sections 4 and 5; specs/mtt_pdd.md section 3, specs/dc_dsa_dm_cafe_selection_cl.md section 11.
"""

from dataclasses import replace

import torch

from raydd.config import Config
from raydd.methods.base import Optimiser
from raydd.types import SyntheticSet


def joined(earlier: SyntheticSet | None, own: SyntheticSet) -> SyntheticSet:
    """All images so far, class-major and by stage within a class; those of `earlier` are frozen. The step size is that of `own`."""
    if earlier is None:
        return own
    classes = int(own.labels.max()) + 1
    parts = {}
    for name in ("images", "labels", "stages"):
        both = [getattr(part, name).unflatten(0, (classes, -1)) for part in (earlier, own)]
        parts[name] = torch.cat(both, dim=1).flatten(0, 1)
    return replace(own, **parts, frozen=own.frozen + len(earlier.labels) // classes)


def matched(config: Config, earlier: SyntheticSet | None, own: SyntheticSet) -> SyntheticSet:
    """What the method sees: all images so far, or without conditioning those of the stage alone."""
    return joined(earlier, own) if config.stages.conditioning else own


def up_to(whole: SyntheticSet, stage: int) -> SyntheticSet:
    """U_stage: the images of the stages 1..stage, none of them frozen. The step size stays that of `whole`."""
    kept = whole.stages <= stage
    return replace(whole, images=whole.images[kept], labels=whole.labels[kept], stages=whole.stages[kept], frozen=0)


def of_stage(whole: SyntheticSet, stage: int) -> SyntheticSet:
    """S_stage: the images of one stage alone."""
    own = whole.stages == stage
    return replace(whole, images=whole.images[own], labels=whole.labels[own], stages=whole.stages[own], frozen=0)


def first_step(config: Config, stage: int) -> int:
    """The number of the first step of a stage: steps are numbered through, so that every stage has random streams of its own."""
    return (stage - 1) * config.steps


def total_steps(config: Config) -> int:
    """Steps of all stages."""
    return config.stages.count * config.steps


def progress(config: Config, step: int) -> float:
    """How much of its stage lies behind a step, 0..1: the schedules of a selection policy begin anew with every stage."""
    return step % max(config.steps, 1) / max(config.steps - 1, 1)


def start_epoch_offset(config: Config, stage: int) -> int:
    """Where a stage's start epochs begin: without transition, MTT's stage i matches epochs from (i - 1) x max_start_epoch on."""
    return 0 if config.stages.transition else (stage - 1) * config.mtt.max_start_epoch


def staged_optimiser(config: Config, optimiser: Optimiser, synthetic: SyntheticSet, stage: int) -> Optimiser:
    """The method's optimiser as a stage steps with it: `stages.scale_lr` and `stages.frozen_lr_scale`."""
    if config.stages.scale_lr:
        optimiser = replace(optimiser, lr_images=optimiser.lr_images * stage)
    if config.stages.frozen_lr_scale and stage > 1:
        own = (synthetic.stages == stage)[:, None, None, None]
        optimiser = replace(optimiser, rates=torch.where(own, 1.0, config.stages.frozen_lr_scale))
    return optimiser
