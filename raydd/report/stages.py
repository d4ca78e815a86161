"""The stages of a run (PDD) in a report: what each came to, how its images look, and as what they were distilled."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from raydd import pictures
from raydd.artifact import Artifact
from raydd.experts.starts import transition_epochs
from raydd.methods import method
from raydd.progressive import of_stage
from raydd.report.full_data import FullData
from raydd.report.gallery import PER_CLASS, PIXELS, data_uri
from raydd.report.rundata import RunData
from raydd.report.tables import spread

COLUMNS = 20
"""Classes shown at most, one beside the other."""
_SIDE, _WIDTH = 64, 1000
_NONE = "–"  # noqa: RUF001


@dataclass(frozen=True)
class Row:
    """One stage as text: images per class so far, learned step size, colours of its own images, accuracies, share of the real images."""

    stage: str
    ipc: str
    step_size: str
    mean: str
    std: str
    saturation: str
    synthetic: str
    random: str
    share: str


@dataclass(frozen=True)
class Block:
    """The images of one stage as a picture (data URI) of so many CSS pixels: a column for each class."""

    stage: int
    source: str
    width: int
    height: int


def by_stage(record: dict[str, Any] | None) -> dict[int, dict[str, Any]]:
    """The rows of an evaluation record by their stage; none for a set of one stage."""
    return {row["stage"]: row for row in (record or {}).get("by_stage", [])}


def points(record: dict[str, Any] | None) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """(ipc, mean, std), each (P,), of an evaluation record; None without stages."""
    rows = list(by_stage(record).values())
    if not rows:
        return None
    ipc, mean, std = (np.array([row[name] for row in rows]) for name in ("ipc", "accuracy_mean", "accuracy_std"))
    return ipc, mean, std


def table(run: RunData) -> list[Row]:
    """A row for what the images of all stages started from, and one for each stage of the result."""
    found = run.artifact
    if found is None:
        return []
    whole = found.synthetic
    learned = found.stage_step_sizes if method(run.config.method).networks is None else ()
    synthetic, random = by_stage(run.evaluations[-1] if run.evaluations else None), by_stage(run.random)
    shares = {entry["stage"]: f"{entry['share']:.1%}" for entry in (run.curriculum or {}).get("shares", [])}
    rows = [Row("start", "", "", *_colours(found, found.initial_images), "", "", "")]
    for stage in range(1, len(found.stage_step_sizes) + 1):
        own = of_stage(whole, stage).images
        rows.append(
            Row(
                str(stage),
                str(int((whole.stages <= stage).sum()) // len(found.classes)),
                f"{learned[stage - 1]:.4g}" if learned else _NONE,
                *_colours(found, own),
                spread(synthetic[stage]) if stage in synthetic else _NONE,
                spread(random[stage]) if stage in random else _NONE,
                shares.get(stage, "100%"),
            )
        )
    return rows


def _colours(found: Artifact, images: Tensor) -> tuple[str, str, str]:
    told = pictures.colours(found.pixels(images))
    return f"{told.mean:.3f}", f"{told.std:.3f}", _NONE if told.saturation is None else f"{told.saturation:.3f}"


def settings(run: RunData) -> list[tuple[str, str]]:
    """How the stages begin and what they match, in words."""
    config, stages = run.config, run.config.stages
    over_experts = method(config.method).networks is None
    rows = [("stages", f"{stages.count} of {config.ipc} images per class and {config.steps:,} steps each")]
    if stages.transition:
        networks = "each expert's network" if over_experts else f"{stages.networks} networks"
        then = f", then on the real images at {stages.real_lr:g}" if over_experts else ""
        on = "the images so far" if stages.conditioning else "each earlier stage's own images in turn"
        rows.append(("later stages start from", f"{networks}, trained {transition_epochs(config)} epochs on {on}{then}"))
    else:
        rows.append(("later stages start from", "later epochs of the experts" if over_experts else "fresh networks"))
    rows.append(("images of earlier stages", _earlier(run)))
    rows.append(("image learning rate", "multiplied by the stage's number" if stages.scale_lr else "the same in every stage"))
    if over_experts:
        batches = {"union_chunks": "cut from all images so far", "new_first": "the stage's own images, filled up with earlier ones"}
        rows.append(("inner batches", batches[stages.batch_mode]))
    if run.curriculum is not None:
        rows.append(("real images", run.curriculum["text"]))
    return rows


def _earlier(run: RunData) -> str:
    stages = run.config.stages
    if not stages.conditioning:
        return "take no part"
    return f"move at {stages.frozen_lr_scale:g} times the rate" if stages.frozen_lr_scale else "take part in the matching, frozen"


def experts_label(full: FullData) -> str:
    """What the line of all real images is of."""
    return f"{full.experts} experts on all real images, {full.epochs} epochs"


_TRAINED_ON = {
    "progressive": "the images up to each stage in turn",
    "union": "all images at once",
    "sequential": "each stage's own images in turn",
}


def caption(run: RunData) -> str:
    """What stands below the figure of accuracies after each stage."""
    last: dict[str, Any] = run.evaluations[-1] if run.evaluations else {"nets": 0}
    told = f"Mean and standard deviation of {last['nets']} networks, trained on {_TRAINED_ON.get(last.get('stages', ''), 'the images')}."
    if run.full is not None:
        return f"{told} Dashed: {experts_label(run.full)}, {100 * run.full.mean:.1f} ± {100 * run.full.std:.1f} %."
    return f"{told} An accuracy with all real images is not known here: no experts on all of them are in the store that the run names."


def blocks(found: Artifact) -> list[Block]:
    """The images of each stage, a row of classes for each image of a class; no more than a page can hold."""
    shown = []
    for stage, rows in enumerate(_images(found), start=1):
        scale = max(1, min(round(_SIDE / rows[0].shape[-1]), _WIDTH // (len(rows[0]) * (rows[0].shape[-1] + 1))))
        picture = pictures.grid(rows)
        shown.append(Block(stage, data_uri(pictures.png(picture)), picture.shape[2] * scale, picture.shape[1] * scale))
    return shown


def picture(found: Artifact, scale: int) -> bytes:
    """All of them as one PNG file, stage below stage."""
    return pictures.png(pictures.stacked([pictures.grid(rows, scale, gap=4) for rows in _images(found)], gap=24))


def _images(found: Artifact) -> list[list[np.ndarray]]:
    """For each stage rows of uint8 images (classes, C, H, W), row j with image j of each of the first classes."""
    whole, count = found.synthetic, len(found.stage_step_sizes)
    side = whole.images.shape[-1]
    room = max(1, PIXELS // (count * side**2))
    classes = min(len(found.classes), COLUMNS, room)
    visible, shown = replace(whole, images=found.pixels(whole.images)), []
    for stage in range(1, count + 1):
        own = of_stage(visible, stage)
        by_class = own.images.unflatten(0, (len(found.classes), -1))[:classes]
        depth = min(PER_CLASS, max(1, room // classes), by_class.shape[1])
        shown.append([pictures.pixels(by_class[:, place]) for place in range(depth)])
    return shown
