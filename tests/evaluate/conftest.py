"""The digits, resident, and a small evaluation."""

from dataclasses import dataclass

import pytest

from raydd.config import Config, DataConfig, EvaluationConfig, ModelConfig
from raydd.data import Resident, Transform, load
from raydd.models import FlatModel, build


@dataclass(frozen=True)
class Digits:
    """Configuration, network and both splits."""

    config: Config
    model: FlatModel
    train: Resident
    test: Resident


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Digits:
    config = Config(model=ModelConfig(width=16, depth=2), ipc=2, evaluation=EvaluationConfig(epochs=3, nets=2, batch_size=8))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYDD_CACHE", str(tmp_path_factory.mktemp("cache")))
        dataset = load(DataConfig())
    transform = Transform.fit(dataset, config.data)
    train, test = (Resident.load(part, transform, "cpu") for part in (dataset.train, dataset.test))
    return Digits(config, build(config.model, dataset.shape, 10), train, test)
