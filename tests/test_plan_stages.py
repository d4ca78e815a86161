"""What later stages begin with, predicted: counts by hand, seconds from a step whose time is known, and rows for people."""

import math
from typing import Any

import pytest

from raydd import plan_stages
from raydd.config import Config, Execution, override
from raydd.errors import ConfigError
from raydd.models import FlatModel
from raydd.plan import step_text
from raydd.plan_stages import transition_rows, transitions
from raydd.planning import plan_table, predicted
from raydd.training import Recipe
from tests.helpers import SMALL, model

INLINE = Execution(workers=0, device="cpu")
SETTINGS: dict[str, Any] = {"stages.count": 3, "stages.transition_epochs": 20, "ipc": 2, "experts.count": 5, "experts.batch_size": 64}


def settings(**changes: Any) -> Config:
    named = {name.replace("__", "."): value for name, value in changes.items()}
    return override(Config(model=SMALL), {**SETTINGS, **named})


def test_counts_of_mtt() -> None:
    config = settings(selection__pool=3, experts__together=2, mtt__max_start_epoch=2, mtt__expert_epochs=3)
    two, three = transitions(config, INLINE, network := model(), 200, timed=False)
    assert [(one.stage, one.networks, one.passes, one.real_epochs) for one in (two, three)] == [(2, 4, 21, 4), (3, 4, 21, 4)]
    assert (two.images, three.images) == (4 * 2, 4 * 4) and two.seconds is None
    assert two.disk == 4 * (1 + 5) * network.size * 4


def test_counts_of_other_methods() -> None:
    config = settings(method="idc", evaluation__protocol="idc", stages__networks=7, idc__factor=2)
    two, three = transitions(config, INLINE, network := model(), 200, timed=False)
    assert (two.networks, two.passes, two.real_epochs, two.disk) == (7, 20, 0, 7 * network.size * 4)
    assert (two.images, three.images) == (4 * 2 * 4, 4 * 4 * 4)


def test_no_later_stage_begins_with_nothing_new() -> None:
    for config in (settings(stages__count=1), settings(stages__transition=False)):
        assert transitions(config, INLINE, model(), 200) == () and transition_rows(()) == []


def test_seconds_are_those_of_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step takes 3 s, and 1 s for each image; real steps ten times as long."""

    def seconds(network: FlatModel, recipe: Recipe, images: int, device: Any) -> float:
        return (10 if recipe.batch_size == 64 else 1) * (3.0 + images)

    monkeypatch.setattr(plan_stages, "_seconds", seconds)
    config = settings(mtt__max_start_epoch=2, mtt__expert_epochs=3, evaluation__batch_size=6)
    two, three = transitions(config, INLINE, model(), 200)
    real = 4 * 10 * (4 * 3.0 + 200)
    assert two.seconds == pytest.approx(5 * (21 * (2 * 3.0 + 8) + real))
    assert three.seconds == pytest.approx(5 * (21 * (3 * 3.0 + 16) + real))
    for workers, rounds in ((2, 3), (5, 1)):
        assert transitions(config, Execution(workers=workers), model(), 200)[0].seconds == pytest.approx(rounds / 5 * two.seconds)
    groups = transitions(override(config, {"experts.together": 2}), Execution(workers=2), model(), 200)[0]
    assert groups.networks == 6 and groups.seconds == pytest.approx(4 / 5 * two.seconds)


def test_what_is_measured_runs() -> None:
    for batch in (1, 4, 256):
        found = plan_stages.measured(model(), Recipe(batch, 0.9, 5e-4), plan_stages.resolve("cpu"))
        assert 0 < found(batch) <= found(10 * batch) < math.inf


def test_settings_that_stop_a_later_stage_are_refused_before_the_first() -> None:
    config = settings(model__name="resnet10-thin", model__norm="batch", evaluation__batch_size=7, evaluation__at_end=False)
    with pytest.raises(ConfigError, match=r"--evaluation.batch_size=7 leaves one image of 8"):
        transitions(config, INLINE, model(config.model), 200, timed=False)


def test_memory_and_steps_are_those_of_the_last_stage() -> None:
    one, three = (predicted(settings(stages__count=count), INLINE, model(), 200, timed=False) for count in (1, 3))
    assert (one.images, three.images) == (8, 24) and one.batch == three.batch == 8
    assert predicted(settings(stages__batch_mode="new_first"), INLINE, model(), 200, timed=False).batch == 16
    assert predicted(settings(stages__conditioning=False), INLINE, model(), 200, timed=False).images == 8
    alone = transitions(settings(stages__count=3, stages__conditioning=False), INLINE, model(), 200, timed=False)
    assert [one.images for one in alone] == [8, 8]
    dm = [predicted(settings(stages__count=count, method="dm"), INLINE, model(), 200, timed=False) for count in (1, 3)]
    assert [found.synthetic for found in dm] == [2, 6] and [found.images for found in dm] == [8, 24]
    assert step_text(settings(steps=10), 0.5) == "0.5 s; 10 steps in each of 3 stages 15.0 s"
    assert step_text(settings(steps=10, stages__count=1), 0.5) == "0.5 s; 10 steps 5.0 s"


@pytest.mark.parametrize("method", ["mtt", "dm"])
def test_a_row_for_each_stage(method: str) -> None:
    config = settings(method=method, mtt__syn_steps=1, dm__batch_real=8, stages__networks=4)
    found = predicted(config, INLINE, model(), 200)
    table = plan_table(config, found)
    assert table.row_count > 10
    rows = dict(transition_rows(found.transitions))
    assert list(rows) == ["start of stage 2", "start of stage 3", "starts of stages in all"]
    assert rows["start of stage 2"].startswith("5 networks, 21 passes" if method == "mtt" else "4 networks, 21 passes")
    assert ("real epochs" in rows["start of stage 2"]) is (method == "mtt")
    assert rows["starts of stages in all"].count("MB in the store; ") == 1
