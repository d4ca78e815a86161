"""Some classes of a data set as a data set of its own, relabelled from 0 in the order in which they are named."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from raydd.config import fingerprint
from raydd.data.types import Dataset, ImageSet
from raydd.errors import DataError


def class_numbers(text: str, names: Sequence[str]) -> list[int]:
    """The numbers of the classes that `data.classes` names among `names`, in its order: names, numbers from 0, ranges a-b of either.

    A name wins over a number that reads alike. Raises `DataError` for what is no class, a range that falls, and a class named twice.
    """
    chosen: list[int] = []
    for part in (part.strip() for part in text.split(",")):
        chosen += _meant(part, text, names)
    again = sorted({number for number in chosen if chosen.count(number) > 1})
    if again:
        raise DataError(f"--data.classes={_short(text)} names class {names[again[0]]} ({again[0]}) more than once; name each one once.")
    return chosen


def spelled(numbers: Sequence[int], names: Sequence[str]) -> str:
    """A value of `data.classes` that means these classes, by name where that can be. Raises `DataError` where nothing can say it."""
    parts = []
    for number in numbers:
        ways = [way for way in (names[number], str(number)) if _single(way, names) == number and "," not in way and way == way.strip()]
        if not ways:
            raise DataError(f"class {number} is called {names[number]!r}, and its number is the name of another class; rename one of them.")
        parts.append(ways[0])
    return ",".join(parts)


def restricted(dataset: Dataset, text: str) -> Dataset:
    """The classes that `data.classes` names as a data set: labels from 0 in its order, images in the order of the whole set.

    Mean and standard deviation stay those of the whole set, so that parts of one set share their training space. Raises `DataError`
    for classes that do not exist and for fewer than two.
    """
    numbers = class_numbers(text, dataset.classes)
    if len(numbers) < 2:
        raise DataError(f"--data.classes={_short(text)} is one class; name at least two, to be told apart.")
    labels = np.full(len(dataset.classes), -1, np.int64)
    labels[numbers] = np.arange(len(numbers))
    return replace(
        dataset,
        train=_relabelled(dataset.train, labels),
        test=_relabelled(dataset.test, labels),
        classes=tuple(dataset.classes[number] for number in numbers),
        fingerprint=fingerprint({"data": dataset.fingerprint, "classes": numbers}),
    )


def _relabelled(images: ImageSet, labels: np.ndarray) -> ImageSet:
    new = labels[images.labels]
    return ImageSet(images.images[new >= 0], new[new >= 0])


def _meant(part: str, text: str, names: Sequence[str]) -> list[int]:
    number = _single(part, names)
    if number is not None:
        return [number]
    for place in (place for place, letter in enumerate(part) if letter == "-"):  # names may have dashes too
        first, last = (_single(end.strip(), names) for end in (part[:place], part[place + 1 :]))
        if first is not None and last is not None and first <= last:
            return list(range(first, last + 1))
    known = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    raise DataError(
        f"--data.classes={_short(text)}: {part!r} is no class. Give names ({known}), numbers from 0 to {len(names) - 1}, or rising ranges "
        "such as 0-4, joined by commas."
    )


def _single(part: str, names: Sequence[str]) -> int | None:
    if part in names:
        return names.index(part)
    return int(part) if part.isascii() and part.isdigit() and int(part) < len(names) else None


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
