"""DD-Ranking's scores of a distilled set: what is left of its accuracy once soft labels and augmentation are taken away.

Accuracies are fractions in [0, 1]. Nothing is trained here: evaluate the set, and random real images of the same number, each way that a
score asks for. Source: DD-Ranking 0.2.0, README (specs/dc_dsa_dm_cafe_selection_cl.md section 13.1). Its program puts percents into the
exponentials (section 13.3, item 1), so that its own LRS and ARS cannot be compared with these; its HLR and IOR are these times 100. It
also searches the learning rate of random images, and takes the best test accuracy of both; raydd takes the last, at the same rate.
"""

import math

from raydd.errors import ConfigError


def improvement_over_random(accuracy: float, random: float) -> float:
    """IOR, in [-1, 1], higher is better: a set trained as its method says, less random real images of the same number trained alike."""
    _fractions(accuracy=accuracy, random=random)
    return accuracy - random


def hard_label_recovery(full: float, accuracy: float) -> float:
    """HLR, in [-1, 1], lower is better: all real images, less the set, both trained with hard labels."""
    _fractions(full=full, accuracy=accuracy)
    return full - accuracy


def label_robust_score(ior: float, hlr: float, weight: float = 0.5) -> float:
    """LRS, in [0, 1]: of `weight` IOR - (1 - `weight`) HLR."""
    _shares(ior=ior, hlr=hlr)
    return _score(ior, -hlr, weight)


def augmentation_robust_score(augmented: float, plain: float, weight: float = 0.5) -> float:
    """ARS, in [0, 1]: of `weight` times the improvement over random with augmentation, and the rest times that without."""
    _shares(augmented=augmented, plain=plain)
    return _score(augmented, plain, weight)


def _score(first: float, second: float, weight: float) -> float:
    """The weighted mean of two numbers in [-1, 1], brought to [0, 1] by an exponential: -1 gives 0, and 1 gives 1."""
    _fractions(weight=weight)
    mean = weight * first + (1 - weight) * second
    return (math.exp(mean) - math.exp(-1)) / (math.e - math.exp(-1))


def _fractions(**values: float) -> None:
    _within(0.0, values)


def _shares(**values: float) -> None:
    _within(-1.0, values)


def _within(least: float, values: dict[str, float]) -> None:
    """Raise `ConfigError` for what is no fraction, or no difference of fractions: percents, mostly."""
    wrong = [f"{name}={value:g}" for name, value in values.items() if not least <= value <= 1]
    if wrong:
        raise ConfigError([f"{', '.join(wrong)} must be between {least:g} and 1: give accuracies as fractions, not in percent."])
