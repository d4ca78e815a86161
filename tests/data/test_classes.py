"""Some classes of a set: how they are named, and their images and labels against a plain loop."""

from pathlib import Path

import numpy as np
import pytest

from raydd.config import DataConfig
from raydd.data import load
from raydd.data.classes import class_numbers, spelled
from raydd.errors import DataError

NAMES = ("ant", "t-shirt", "cat", "dog", "2", "a,b")


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("0,3", [0, 3]),
        ("dog,ant", [3, 0]),
        ("cat-2", [2, 3, 4]),  # a name wins over a number
        ("t-shirt-dog", [1, 2, 3]),
        ("t-shirt", [1]),
        (" 3 - 5 , ant", [3, 4, 5, 0]),
        ("1,3,5", [1, 3, 5]),
    ],
)
def test_names_numbers_and_ranges(text: str, numbers: list[int]) -> None:
    assert class_numbers(text, NAMES) == numbers


@pytest.mark.parametrize("text", ["", "cow", "6", "3-1", "-1", "0,,1", "0-6", "²"])
def test_what_is_no_class_is_named(text: str) -> None:
    with pytest.raises(DataError, match=r"--data\.classes=.*is no class\. Give names \(ant, .*and 1 more\), numbers from 0 to 5"):
        class_numbers(text, NAMES)


def test_a_class_named_twice_is_refused() -> None:
    with pytest.raises(DataError, match=r"names class dog \(3\) more than once"):
        class_numbers("0-3,dog", NAMES)


def test_spelled_reads_back() -> None:
    for numbers in ([5, 0, 1], [4, 3], [0, 1, 2, 3, 4, 5]):
        assert class_numbers(spelled(numbers, NAMES), NAMES) == numbers
    assert spelled([5, 0, 4], NAMES) == "5,ant,2"
    with pytest.raises(DataError, match="class 1 is called 'x,y', and its number is the name of another class"):
        spelled([1], ("1", "x,y"))


def test_relabelled_as_a_plain_loop_does(cache: Path) -> None:
    whole, part = load(DataConfig()), load(DataConfig(classes="7,2,4-5"))
    order = [7, 2, 4, 5]
    for theirs, ours in ((whole.train, part.train), (whole.test, part.test)):
        pairs = [(image, order.index(label)) for image, label in zip(theirs.images, theirs.labels, strict=True) if label in order]
        assert np.array_equal(ours.images, np.stack([image for image, _ in pairs]))
        assert ours.labels.tolist() == [label for _, label in pairs] and ours.labels.dtype == np.int64
    assert part.classes == ("7", "2", "4", "5") and part.mean == whole.mean and part.std == whole.std
    others = [load(DataConfig(classes=text)).fingerprint for text in ("7,2,4,5", "2,7,4,5", "7,2,4", "")]
    assert others[0] == part.fingerprint and len({*others}) == 4 and others[3] == whole.fingerprint


def test_one_class_is_refused(cache: Path) -> None:
    with pytest.raises(DataError, match=r"--data\.classes=3 is one class; name at least two"):
        load(DataConfig(classes="3"))
