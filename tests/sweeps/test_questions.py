"""The seven scripts: every one explains itself, and its arms are the ones that its question needs."""

import importlib
from types import ModuleType

import pytest

from raydd.config import Config, override
from raydd.errors import ConfigError
from sweeping import Arm
from sweeping.arguments import completed, parse

SCRIPTS = ("temperature", "candidates", "stages", "stage_ipc", "table1", "cross_architecture", "search")


def script(name: str) -> ModuleType:
    return importlib.import_module(name)


def configs(name: str, *arguments: str) -> dict[str, Config]:
    """The settings of every arm, by its name."""
    return {arm.name: config for arm, config in arms(name, *arguments)}


def arms(name: str, *arguments: str) -> list[tuple[Arm, Config]]:
    question = script(name).QUESTION
    options = parse(question, list(arguments))
    return [(arm, override(options.base(arm.recipe), arm.settings)) for arm in completed(options, question.arms(options))]


@pytest.mark.parametrize("name", SCRIPTS)
def test_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(script(name).QUESTION, ["--help"])
    told = capsys.readouterr().out
    assert ended.value.code == 0 and script(name).QUESTION.asks in " ".join(told.split())
    flags = ("smoke-test", "address", "storage", "resume", "num-samples", "max-concurrent", "recipe", "steps", "seeds", "set")
    assert all(f"--{flag}" in told for flag in flags)


@pytest.mark.parametrize("name", SCRIPTS)
def test_smoke_test_is_a_few_small_trials(name: str) -> None:
    found = arms(name, "--smoke-test")
    assert 1 <= len(found) <= 4
    assert all(config.model.width == 8 and config.steps * config.stages.count <= 8 for _, config in found)


def test_temperature_is_a_full_grid_beside_the_base_method() -> None:
    found = configs("temperature", "--temperatures", "0.1", "2", "--signs", "-1", "1", "--normalise", "none", "mean")
    assert len(found) == 10 and found.pop("base method").selection.candidates == 1
    control = found.pop("3 by lot").selection
    assert (control.policy, control.candidates) == ("uniform", 3)
    chosen = {(c.selection.temperature, c.selection.sign, c.selection.normalise) for c in found.values()}
    assert len(chosen) == 8 and all(c.selection.policy == "dynadistill" and c.selection.candidates == 3 for c in found.values())


def test_candidates_begin_with_the_base_method() -> None:
    found = arms("candidates", "--candidates", "1", "3", "5")
    assert [config.selection.candidates for _, config in found] == [1, 3, 5]
    assert [arm.baseline for arm, _ in found] == [True, False, False]
    assert found[0][1].selection.policy == "uniform" and found[1][1].selection.policy == "dynadistill"


def test_stages_have_a_single_stage_of_as_many_images_and_steps_beside_them() -> None:
    found = configs("stages", "--stages", "1", "3", "--ipc", "2", "--steps", "10", "--without", "transition")
    assert list(found) == ["P=1", "P=3", "P=3 without transition", "one stage of 6"]
    one, staged = found["one stage of 6"], found["P=3"]
    assert (one.ipc, one.steps, one.stages.count) == (6, 30, 1) and (staged.ipc, staged.steps, staged.stages.count) == (2, 10, 3)
    assert not found["P=3 without transition"].stages.transition


def test_stage_ipc_divides_images_and_steps() -> None:
    found = configs("stage_ipc", "--total", "6", "--steps", "60")
    assert [(c.stages.count, c.ipc, c.steps) for c in found.values()] == [(1, 6, 60), (2, 3, 30), (3, 2, 20), (6, 1, 10)]
    with pytest.raises(ConfigError, match="--stages 4 does not divide --total 6"):
        configs("stage_ipc", "--total", "6", "--stages", "4")


def test_table1_adds_to_every_method() -> None:
    found = arms("table1", "--methods", "mtt", "dm", "--ipc", "10", "--stages", "5")
    assert [arm.recipe for arm, _ in found] == ["digits-mtt-ipc10"] * 4 + ["digits-dm-ipc10"] * 4
    base, dyna, pdd, both = (config for _, config in found[:4])
    assert (base.selection.candidates, dyna.selection.candidates, both.selection.candidates) == (1, 3, 3)
    assert (pdd.stages.count, pdd.ipc, pdd.steps * pdd.stages.count) == (5, 2, base.steps)
    assert [arm.factors["form"] for arm, _ in arms("table1", "--methods", "dc", "--ipc", "1")] == ["base", "dynadistill"]


def test_cross_architecture_distils_once_for_all_networks() -> None:
    question = script("cross_architecture").QUESTION
    options = parse(question, ["--models", "mlp", "resnet18-bn"])
    assert question.models(options) == ("mlp", "resnet18-bn") and len(question.arms(options)) == 2


def test_search_reads_its_spaces() -> None:
    question = script("search").QUESTION
    options = parse(question, ["--space", "mtt.lr_img=loguniform(1,10)", "--space", "init=choice(real,noise)"])
    assert len(question.arms(options)) == 1
    assert options.own.spaces == [("mtt.lr_img", "loguniform(1,10)"), ("init", "choice(real,noise)")]
    assert options.scheduler == "asha" and parse(script("stages").QUESTION, []).scheduler == "none"
    with pytest.raises(ConfigError, match="has one seed"):
        question.arms(parse(question, ["--seeds", "2"]))
