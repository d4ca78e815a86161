"""DD-Ranking's scores against values worked out by hand and those that the specification names."""

import pytest

from raydd.errors import ConfigError
from raydd.evaluate.ranking import augmentation_robust_score, hard_label_recovery, improvement_over_random, label_robust_score


def test_the_ends_of_both_scores() -> None:
    assert label_robust_score(ior=1, hlr=-1) == pytest.approx(1) and label_robust_score(ior=-1, hlr=1) == pytest.approx(0)
    assert augmentation_robust_score(1, 1) == pytest.approx(1) and augmentation_robust_score(-1, -1) == pytest.approx(0)


@pytest.mark.parametrize(("ior", "hlr", "expected"), [(0.10, 0.30, 0.228), (0.25, 0.20, 0.280)])
def test_label_robust_score_of_fractions(ior: float, hlr: float, expected: float) -> None:
    """Where the program, fed with percents, gives -0.156 and 5.03 (section 13.3)."""
    assert label_robust_score(ior, hlr) == pytest.approx(expected, abs=5e-4)


def test_differences_and_weights() -> None:
    assert improvement_over_random(0.5, 0.2) == pytest.approx(0.3) and hard_label_recovery(0.9, 0.5) == pytest.approx(0.4)
    assert label_robust_score(0.3, 0.4, weight=1) == augmentation_robust_score(0.3, -0.9, weight=1)
    assert label_robust_score(0.3, 0.4, weight=0) == augmentation_robust_score(0.3, -0.4, weight=0)
    # Both means are 0: (1 - 1/e) / (e - 1/e).
    assert label_robust_score(0.2, 0.2) == augmentation_robust_score(0.2, -0.2) == pytest.approx(0.268941, abs=1e-6)
    assert augmentation_robust_score(0.1, 0.3, weight=0.25) == label_robust_score(0.25, -0.25)


def test_percents_are_refused() -> None:
    with pytest.raises(ConfigError, match="accuracy=48.9, random=26 must be between 0 and 1: give accuracies as fractions"):
        improvement_over_random(48.9, 26)
    with pytest.raises(ConfigError, match="hlr=30 must be between -1 and 1"):
        label_robust_score(0.1, 30)
    with pytest.raises(ConfigError, match="weight=1.5"):
        augmentation_robust_score(0.1, 0.1, weight=1.5)
