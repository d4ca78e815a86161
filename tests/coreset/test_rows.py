"""Random rows: different images, the right classes, independent draws."""

import pytest
import torch

from raydd.coreset import random_rows
from raydd.errors import DataError

LABELS = torch.tensor([2, 0, 1, 0, 2, 1, 0, 2, 1, 0])


def test_rows_are_class_major_and_different() -> None:
    rows = random_rows(LABELS, 3, 3, seed=0, purpose="test")
    assert LABELS[rows].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert len(set(rows.tolist())) == 9


def test_draws_repeat_and_differ() -> None:
    draws = [random_rows(LABELS, 3, 2, 0, "test", draw).tolist() for draw in range(8)]
    assert draws == [random_rows(LABELS, 3, 2, 0, "test", draw).tolist() for draw in range(8)]
    assert len(set(map(tuple, draws))) > 4


def test_a_small_class_is_named() -> None:
    with pytest.raises(DataError, match="--ipc=4 is more than the 3 training images of class 1"):
        random_rows(LABELS, 3, 4, 0, "test")
