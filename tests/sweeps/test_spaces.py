"""Search spaces as text, and what may be perturbed in a running population."""

import pytest

from raydd.errors import ConfigError
from sweeping.arguments import parse
from sweeping.spaces import domain, scheduler
from sweeping.tuning import drawn
from tests.sweeps.test_questions import arms as arms_of
from tests.sweeps.test_questions import script


def test_draws_lie_in_their_space() -> None:
    for text, low, high in (("uniform(1,2)", 1, 2), ("loguniform(0.1,10)", 0.1, 10), ("randint(3,6)", 3, 5), ("lograndint(1,9)", 1, 8)):
        values = [domain("x", text).sample() for _ in range(50)]
        assert all(low <= value <= high for value in values) and len(set(values)) > 1
    assert {domain("x", "choice(none, 3, true)").sample() for _ in range(60)} == {"none", 3, True}


@pytest.mark.parametrize(
    "text", ["3", "uniform(1)", "uniform(2,1)", "loguniform(0,1)", "normal(0,1)", "uniform(a,b)", "", "randint(1,2,3)"]
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--space x="):
        domain("x", text)


def test_a_population_may_not_perturb_what_a_checkpoint_depends_on() -> None:
    question = script("search").QUESTION
    options = parse(question, ["--scheduler", "pbt", "--space", "model.width=choice(8,16)", "--space", "mtt.lr_img=uniform(1,9)"])
    question.arms(options)
    with pytest.raises(ConfigError, match=r"cannot perturb model\.width"):
        scheduler(options)


def test_so_many_arms_are_drawn_by_lot_and_always_the_same() -> None:
    found = [arm for arm, _ in arms_of("temperature")]
    chosen = drawn(found, 4)
    assert len(chosen) == 4 and chosen == drawn(found, 4) and [arm for arm in found if arm in chosen] == chosen
    assert drawn(found, None) == drawn(found, 99) == found
