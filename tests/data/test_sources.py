"""The registry: what a value of --data may be, and what is known without reading anything."""

import numpy as np
import pytest

from raydd.config import DataConfig
from raydd.data import Content, RawSplit, Source, known_sources, load, open_source, source, source_info, sources
from raydd.errors import DataError


def test_known_sources_are_listed():
    named = ["cifar10", "cifar100", "digits", "fashionmnist", "folder:DIR", "mnist", "parquet:DIR", "svhn", "tiny-imagenet"]
    assert known_sources() == named


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mnsit", r"--data=mnsit is not a source; known: cifar10, .*folder:DIR"),
        ("", "is not a source"),
        ("parquet", r"--data=parquet needs a folder"),
        ("folder:", r"needs a folder: write --data folder:DIR"),
        ("cifar10:somewhere", r"cifar10 takes no folder.*--data\.root"),
    ],
)
def test_unusable_names_are_refused(text: str, message: str):
    for function in (open_source, source_info):
        with pytest.raises(DataError, match=message):
            function(DataConfig(source=text))


def test_information_needs_no_data():
    info = source_info(DataConfig(source="cifar100"))
    assert (info.shape, info.classes, info.train_images, info.test_images) == ((3, 32, 32), 100, 50_000, 10_000)
    assert info.mean == (0.5071, 0.4866, 0.4409) and info.std == (0.2673, 0.2564, 0.2762)
    assert source_info(DataConfig(source="tiny-imagenet")).shape == (3, 64, 64)
    assert source_info(DataConfig(source="parquet:nowhere")) is None
    assert source_info(DataConfig(source="folder:nowhere")) is None


def test_size_and_channels_are_applied():
    info = source_info(DataConfig(source="cifar10", size=16))
    assert info.shape == (3, 16, 16) and info.mean == (0.4914, 0.4822, 0.4465)
    grey = source_info(DataConfig(source="cifar10", channels=1))
    assert grey.shape == (1, 32, 32) and grey.mean is None and grey.std is None


@pytest.mark.parametrize("config", [DataConfig(), DataConfig(size=16), DataConfig(channels=3, size=4)])
def test_information_agrees_with_what_is_loaded(config: DataConfig):
    info, dataset = source_info(config), load(config)
    assert info.shape == dataset.shape == dataset.test.images.shape[1:]
    assert (info.classes, info.train_images, info.test_images) == (len(dataset.classes), len(dataset.train), len(dataset.test))


def test_a_function_with_the_decorator_is_a_source(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sources, "_SOURCES", dict(sources._SOURCES))
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8), np.uint8)

    @source("specks", folder=True)
    def specks(location: str, config: DataConfig) -> Source:
        split = RawSplit(np.array([0, 1, 0, 1]), lambda: ((f"speck {i}", image) for i, image in enumerate(images)))
        return Source("specks", lambda: Content(("few", "many"), split, split), identity=location)

    dataset = load(DataConfig(source="specks:here"))
    assert dataset.shape == (1, 8, 8) and dataset.classes == ("few", "many")
    assert np.array_equal(dataset.train.images[:, 0], images)
    assert load(DataConfig(source="specks:there")).fingerprint == dataset.fingerprint  # equal content, another cache file
