"""A split on a device: both ways of holding it give the same batches."""

from pathlib import Path

import numpy as np
import pytest
import torch

from raydd.config import DataConfig
from raydd.data import Dataset, ImageSet, Resident, Transform, class_indices, load
from raydd.errors import DataError


@pytest.fixture
def digits() -> Dataset:
    return load(DataConfig())


def test_float_holds_the_whole_set_in_training_space(digits: Dataset):
    fitted = Transform.fit(digits, DataConfig())
    resident = Resident.load(digits.train, fitted)
    expected = (digits.train.images / 255 - digits.mean[0]) / digits.std[0]
    assert resident.images.dtype == torch.float32 and resident.images is resident.stored and len(resident) == 1297
    assert np.allclose(resident.images, expected, atol=1e-5)
    assert resident.labels.dtype == torch.int64 and np.array_equal(resident.labels, digits.train.labels)


def test_both_storages_give_the_same_bits(digits: Dataset):
    fitted = Transform.fit(digits, DataConfig())
    floats, bytes_ = (Resident.load(digits.train, fitted, storage=storage) for storage in ("float", "uint8"))
    rows = torch.tensor([1296, 0, 5, 5, 700])
    for ours, theirs in zip(floats.batch(rows), bytes_.batch(rows), strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(floats.images, bytes_.images)
    assert torch.equal(floats.batch(rows)[1], torch.from_numpy(digits.train.labels[rows.numpy()]))


def test_uint8_on_the_cpu_is_the_memory_map_itself(digits: Dataset):
    resident = Resident.load(digits.train, Transform.fit(digits, DataConfig()), storage="uint8")
    assert resident.stored.data_ptr() == digits.train.images.__array_interface__["data"][0]


def test_auto_keeps_within_the_budget(digits: Dataset):
    fitted = Transform.fit(digits, DataConfig())
    needed = 4 * digits.train.images.size
    assert Resident.load(digits.train, fitted).stored.dtype == torch.float32
    assert Resident.load(digits.train, fitted, budget=needed).stored.dtype == torch.float32
    assert Resident.load(digits.train, fitted, budget=needed - 1).stored.dtype == torch.uint8


def test_whitened_sets_are_always_float(parquet_set: Path):
    config = DataConfig(source=f"parquet:{parquet_set}", zca=True)
    dataset = load(config)
    fitted = Transform.fit(dataset, config)
    resident = Resident.load(dataset.test, fitted, budget=0)
    assert resident.stored.dtype == torch.float32
    assert torch.allclose(resident.images, fitted.forward(torch.from_numpy(dataset.test.images.copy())))
    with pytest.raises(DataError, match="does not go with ZCA"):
        Resident.load(dataset.test, fitted, storage="uint8")


def test_more_images_than_one_chunk():
    images = np.random.default_rng(0).integers(0, 256, (2051, 3, 2, 2), np.uint8)
    fitted = Transform.standard((3, 2, 2), (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    resident = Resident.load(ImageSet(images, np.zeros(2051, np.int64)), fitted)
    assert torch.equal(resident.images, fitted.forward(torch.from_numpy(images)))


def test_rows_of_a_class():
    assert class_indices(torch.tensor([2, 0, 2, 1]), 2).tolist() == [0, 2]
    assert class_indices(torch.tensor([2, 0, 2, 1]), 5).tolist() == []
