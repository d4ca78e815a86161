"""What is wrong with the settings of an arm, as far as it shows before any data are read."""

from raydd.config import Config, Execution
from raydd.data import source_info
from raydd.errors import ConfigError
from raydd.evaluate import rate, settings_for, stage_counts
from raydd.methods.base import check
from raydd.models import build, named


def refuse(config: Config, execution: Execution, models: tuple[str, ...]) -> None:
    """Raise `ConfigError` for settings that no run accepts, and for networks that do not exist or cannot take the images.

    `models` are those of the evaluation beside the run's own. Of a folder or a Parquet set, whose images are not known yet, only the
    names are checked.
    """
    check(config, execution)
    networks = [named(name, config.model) for name in models]
    info = None if config.data.classes else source_info(config.data)
    if info is None:
        return
    for network in networks:
        try:
            build(network, info.shape, info.classes)
        except ConfigError as error:
            raise ConfigError([f"--models {network.name}: {problem}" for problem in error.problems]) from error
    model = build(config.model, info.shape, info.classes)
    for stages in range(1, config.stages.count + 1):
        counts = stage_counts(config.evaluation.stages, model.classes * config.ipc, stages)
        settings_for(config, model, *counts, ipc=stages * config.ipc).phases(rate(config, 1.0))
