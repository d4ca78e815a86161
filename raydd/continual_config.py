"""Settings of `raydd continual`: how the classes come, and how networks are trained on what was kept of them."""

import math
from dataclasses import asdict, dataclass
from typing import Literal

from raydd.errors import ConfigError
from raydd.schema import from_dict
from raydd.select_config import METHODS


@dataclass(frozen=True)
class ContinualConfig:
    """Class-incremental learning from distilled sets (PDD, section 5.5; specs/dc_dsa_dm_cafe_selection_cl.md section 10)."""

    phases: int = 5
    """Phases, each with an equal part of the classes, which it must divide."""
    protocol: Literal["scratch", "sequential", "sequential+kd"] = "scratch"
    """After each phase, train on all images kept so far. scratch: a new network. sequential: the network of the phase before, whose
    head has grown. sequential+kd: held near its earlier self by distillation of knowledge too."""
    baselines: str = "random,herding"
    """Real images to keep instead, the same number, joined by commas: methods of `raydd select`. Empty for none."""
    orders: int = 1
    """Orders of the classes: that of --seed, and of the seeds that follow it."""
    kd_temperature: float = 2.0
    """sequential+kd: temperature T of the soft labels."""
    kd_weight: float = 1.0
    """sequential+kd: weight beta of the term, which is multiplied by T^2 and the number of earlier classes."""

    @property
    def baseline_methods(self) -> list[str]:
        """The methods that `baselines` names."""
        return [name.strip() for name in self.baselines.split(",")] if self.baselines else []


def check_continual(settings: ContinualConfig) -> None:
    """Raise `ConfigError` with every setting that is of the wrong type or out of range."""
    from_dict(ContinualConfig, asdict(settings), prefix="--")
    problems = [f"--{name}={getattr(settings, name)} must be at least 1." for name in ("phases", "orders") if getattr(settings, name) < 1]
    for name in ("kd_temperature", "kd_weight"):
        value = getattr(settings, name)
        if not math.isfinite(value) or value < 0 or (name == "kd_temperature" and value == 0):
            problems.append(f"--{name}={value} must be a finite number {'above' if name == 'kd_temperature' else 'of at least'} 0.")
    named, known = settings.baseline_methods, ", ".join(METHODS)
    unknown = [name for name in named if name not in METHODS]
    problems += [f"--baselines={settings.baselines}: {name!r} is not a selection method; known: {known}." for name in unknown]
    if len({*named}) < len(named):
        problems.append(f"--baselines={settings.baselines} names a method more than once.")
    if problems:
        raise ConfigError(problems)


def classes_per_phase(settings: ContinualConfig, classes: int) -> int:
    """Classes of each phase. Raises `ConfigError` where the phases do not divide the classes, or leave one alone in a phase."""
    own, left = divmod(classes, settings.phases)
    if left or own < 2:
        fitting = ", ".join(str(count) for count in range(1, classes // 2 + 1) if classes % count == 0)
        reason = "does not divide them" if left else "leaves a phase less than two to tell apart"
        raise ConfigError([f"--phases={settings.phases}: the data has {classes} classes, which {reason}. Give one of {fitting}."])
    return own
