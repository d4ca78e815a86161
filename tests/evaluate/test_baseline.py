"""Random real images: right classes, no image twice, drawn by the seed."""

import pytest
import torch

from raydd.errors import DataError
from raydd.evaluate import REAL_LR, evaluate, evaluate_random_real, random_real
from tests.evaluate.conftest import Digits


def test_every_class_gets_its_share_of_distinct_images(digits: Digits) -> None:
    images, labels = random_real(digits.train, 10, 30, seed=0)
    assert labels.tolist() == [label for label in range(10) for _ in range(30)]
    rows = [torch.nonzero((digits.train.images == image).flatten(1).all(1)).flatten().tolist() for image in images]
    assert len({row[0] for row in rows}) == 300
    assert all(digits.train.labels[row[0]] == label for row, label in zip(rows, labels, strict=True))


def test_the_draw_is_that_of_the_seed(digits: Digits) -> None:
    first, second, other = (random_real(digits.train, 10, 2, seed)[0] for seed in (0, 0, 1))
    assert torch.equal(first, second) and not torch.equal(first, other)


def test_a_class_too_small_is_named(digits: Digits) -> None:
    with pytest.raises(DataError, match=r"--ipc=500 is more than the \d+ training images of class 0"):
        random_real(digits.train, 10, 500, seed=0)


def test_the_baseline_is_the_common_protocol(digits: Digits) -> None:
    result = evaluate_random_real(digits.config, digits.model, digits.train, digits.test, "cpu")
    images, labels = random_real(digits.train, 10, digits.config.ipc, digits.config.seed)
    expected = evaluate(digits.config, digits.model, images, labels, REAL_LR, digits.test, "cpu")
    assert result.accuracies == expected.accuracies and result.lr == 0.01
    assert evaluate_random_real(digits.config, digits.model, digits.train, digits.test, "cpu", lr=0.05).lr == 0.05
