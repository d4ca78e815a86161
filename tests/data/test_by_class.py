"""Real images by class: which rows a batch has, and that passes repeat nothing."""

import numpy as np
import pytest
import torch

from raydd.data import ImageSet, RealData, Transform

COUNTS = (7, 12, 5)


@pytest.fixture(scope="module")
def real() -> RealData:
    """Classes of different sizes in mixed order; every pixel of an image is its row."""
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(3), COUNTS))
    images = np.arange(24, dtype=np.uint8).reshape(-1, 1, 1, 1) * np.ones((1, 3, 2, 2), np.uint8)
    return RealData.load(ImageSet(images, labels), Transform.standard((3, 2, 2), (0.0,) * 3, (1 / 255,) * 3), 3, "cpu")


def test_rows_of_every_class_in_order(real: RealData) -> None:
    assert tuple(map(len, real.rows)) == COUNTS
    for label, rows in enumerate(real.rows):
        assert (real.resident.labels[rows] == label).all() and (rows.diff() > 0).all()


def test_images_of_rows_keep_their_arrangement(real: RealData) -> None:
    rows = torch.tensor([[3, 0, 23], [5, 5, 1]])
    images = real.images(rows)
    assert images.shape == (2, 3, 3, 2, 2)
    assert torch.equal(images[..., 0, 0, 0].round().long(), rows)


def test_random_rows_are_different_images_of_their_class(real: RealData) -> None:
    drawn = [real.random_rows(4, 0, step, "batch") for step in range(40)]
    for rows in drawn:
        assert rows.shape == (3, 4)
        for label, own in enumerate(rows):
            assert len(set(own.tolist())) == 4 and (real.resident.labels[own] == label).all()
    assert {row for rows in drawn for row in rows.flatten().tolist()} == set(range(24))


@pytest.mark.parametrize("pick", ["random_rows", "next_rows"])
def test_rows_depend_on_seed_place_purpose_and_index_alone(real: RealData, pick: str) -> None:
    draw = getattr(real, pick)
    assert torch.equal(draw(3, 1, 5, "batch", 2), draw(3, 1, 5, "batch", 2))
    others = [draw(3, 2, 5, "batch", 2), draw(3, 1, 6, "batch", 2), draw(3, 1, 5, "other", 2), draw(3, 1, 5, "batch", 3)]
    assert not any(torch.equal(draw(3, 1, 5, "batch", 2), other) for other in others)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_a_pass_over_a_class_repeats_no_image(real: RealData, count: int) -> None:
    """Each class goes through its own passes; what is left below a batch sits the pass out."""
    batches = [real.next_rows(count, 0, number, "batch") for number in range(36)]
    for label, size in enumerate(COUNTS):
        length = size // count
        passes = [torch.cat([batch[label] for batch in batches[first : first + length]]) for first in range(0, 36 - length, length)]
        for rows in passes:
            assert len(set(rows.tolist())) == length * count and (real.resident.labels[rows] == label).all()
        assert len({tuple(rows.tolist()) for rows in passes}) > 1, "every pass has an order of its own"
        assert {row for rows in passes for row in rows.tolist()} == set(real.rows[label].tolist())


def test_classes_are_shuffled_apart(real: RealData) -> None:
    rows = torch.arange(24).view(2, 12)
    twins = RealData(real.resident, tuple(rows))
    first, second = twins.next_rows(12, 0, 0, "batch")
    assert not torch.equal(first, second - 12)
