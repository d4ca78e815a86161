"""What a data set must fulfil before raydd uses it: every class present in both splits, and enough images per class."""

import numpy as np

from raydd.data.types import Content, Dataset, RawSplit
from raydd.errors import DataError


def check_content(name: str, content: Content) -> None:
    """Raise `DataError` for fewer than two classes, labels outside 0..C-1, or a class without images in a split."""
    if len(content.classes) < 2:
        found = ", ".join(content.classes) or "none"
        raise DataError(f"{name}: needs at least two classes to tell apart; found: {found}.")
    for split, raw in (("training", content.train), ("test", content.test)):
        _check_split(f"{name}, {split} split", content.classes, raw)


def _check_split(what: str, classes: tuple[str, ...], raw: RawSplit) -> None:
    if len(raw.labels) == 0:
        raise DataError(f"{what}: holds no images.")
    outside = np.flatnonzero((raw.labels < 0) | (raw.labels >= len(classes)))
    if len(outside):
        row = int(outside[0])
        hint = " A label of -1 marks unlabelled images: remove those files." if raw.labels[row] == -1 else ""
        raise DataError(f"{what}: image {row} has label {raw.labels[row]}; allowed are 0 to {len(classes) - 1}.{hint}")
    counts = np.bincount(raw.labels, minlength=len(classes))
    if not counts.all():
        missing = ", ".join(f"{classes[c]} ({c})" for c in np.flatnonzero(counts == 0)[:5])
        raise DataError(f"{what}: no image of class {missing}. Add images of every class, or take the class out of both splits.")


def require_per_class(dataset: Dataset, ipc: int, stages: int = 1) -> None:
    """Raise `DataError`, naming the smallest class, when some class has fewer than `ipc` training images for each of the stages."""
    count = ipc * stages
    asked = f"--ipc={ipc} is" if stages == 1 else f"--ipc={ipc} in --stages.count={stages} stages is"
    counts = np.bincount(dataset.train.labels, minlength=len(dataset.classes))
    smallest = int(counts.argmin())
    if counts[smallest] < count:
        raise DataError(
            f"{asked} more than the {counts[smallest]} training images of class {dataset.classes[smallest]} in {dataset.name}; "
            f"lower --ipc to at most {counts[smallest] // stages}, or start from --init noise with --evaluation.no_at_end."
        )
