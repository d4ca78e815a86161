"""A small part of the digits, and an experiment on it that trains in milliseconds."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from raydd.config import Config, DataConfig, ExpertConfig, ModelConfig, MTTConfig
from raydd.data import Dataset, ImageSet, Transform, load
from raydd.experts.build import open_store, train_missing
from raydd.experts.store import Store


@dataclass(frozen=True)
class Setting:
    """Configuration, data and store root of one test."""

    config: Config
    dataset: Dataset
    transform: Transform
    root: str

    def store(self, **options: object) -> Store:
        return open_store(self.config, self.root, self.dataset, **options)

    def train(self, **options: object) -> Store:
        store = self.store()
        train_missing(self.config, self.dataset, self.transform, store, **options)
        return store

    def but(self, root: str | None = None, **experts: object) -> "Setting":
        """The same with other expert settings."""
        config = replace(self.config, experts=replace(self.config.experts, **experts))
        return replace(self, config=config, root=root or self.root)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """80 training and 40 test images of the digits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYDD_CACHE", str(tmp_path_factory.mktemp("cache")))
        dataset = load(DataConfig())
    train, test = (ImageSet(part.images[:count], part.labels[:count]) for part, count in ((dataset.train, 80), (dataset.test, 40)))
    return replace(dataset, train=train, test=test, fingerprint="a part of the digits")


@pytest.fixture
def setting(digits: Dataset, tmp_path: Path) -> Setting:
    """Two experts of three epochs."""
    config = Config(
        model=ModelConfig(width=8, depth=2),
        experts=ExpertConfig(count=2, epochs=3, batch_size=32, seed=4),
        mtt=MTTConfig(max_start_epoch=2, expert_epochs=1),
    )
    return Setting(config, digits, Transform.fit(digits, config.data), str(tmp_path / "experts"))
