"""Settings: every fault is named with its flag, all at once; dictionaries go in and out unchanged."""

import dataclasses
import json
from typing import Any

import pytest

from raydd.config import (
    Config,
    Execution,
    MTTConfig,
    expert_epochs,
    fingerprint,
    flatten,
    from_dict,
    needed_epochs,
    override,
    to_dict,
)
from raydd.errors import ConfigError
from raydd.methods.base import check

NUMBERS = {
    name: value for name, value in flatten(to_dict(Config())).items() if isinstance(value, int | float) and not isinstance(value, bool)
}


def problems(settings: dict[str, Any], execution: Execution | None = None) -> list[str]:
    """What is wrong with the default settings, changed so."""
    try:
        check(override(Config(), settings), execution)
    except ConfigError as error:
        assert str(error) == "\n".join(error.problems)
        return error.problems
    return []


def test_defaults_are_good() -> None:
    check(Config())
    check(Config(), Execution())


# Ranges


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("ipc", 1, 0),
        ("steps", 0, -1),
        ("seed", 0, -1),
        ("data.size", 1, 0),
        ("data.zca_eps", 1e-9, 0),
        ("model.width", 1, 0),
        ("model.depth", 1, 0),
        ("experts.count", 1, 0),
        ("experts.lr", 1e-9, 0),
        ("experts.momentum", 0, -0.1),
        ("experts.momentum", 0.99, 1),
        ("experts.weight_decay", 0, -1e-9),
        ("experts.batch_size", 1, 0),
        ("experts.seed", 0, -1),
        ("experts.together", 1, 0),
        ("mtt.syn_steps", 1, 0),
        ("mtt.expert_epochs", 1, 0),
        ("mtt.max_start_epoch", 1, 0),
        ("mtt.batch_syn", 1, 0),
        ("mtt.lr_img", 1e-9, 0),
        ("mtt.lr_lr", 0, -1e-9),
        ("mtt.lr_init", 1e-9, 0),
        ("mtt.min_step_size", 1e-9, 0),
        ("mtt.momentum", 0.99, 1),
        ("selection.candidates", 1, 0),
        ("selection.temperature", 1e-9, 0),
        ("selection.final_temperature", 1e-9, 0),
        ("selection.sign", -1, -1.01),
        ("selection.final_sign", 1, 1.01),
        ("selection.pool", 1, 0),
        ("evaluation.every", 0, -1),
        ("evaluation.nets", 1, 0),
        ("evaluation.epochs", 0, -1),
        ("evaluation.lr", 1e-9, 0),
        ("evaluation.momentum", 0, 1),
        ("evaluation.weight_decay", 0, -1),
        ("evaluation.batch_size", 1, 0),
        ("evaluation.samples", 1, 0),
        ("guard.redraws", 0, -1),
        ("guard.max_skips", 1, 0),
    ],
)
def test_range(name: str, good: float, bad: float) -> None:
    assert not problems({name: good})
    # The sentence names the flag and the value.
    assert any(problem.startswith(f"--{name}={bad}") for problem in problems({name: bad}))


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("workers", 0, -1),
        ("threads", 1, 0),
        ("checkpoint_every", 1, 0),
        ("keep_checkpoints", 1, 0),
        ("max_restarts", 0, -1),
        ("answer_timeout", 0.1, 0.0),
    ],
)
def test_range_of_execution(name: str, good: float, bad: float) -> None:
    check(Config(), Execution(**{name: good}))
    with pytest.raises(ConfigError, match=f"^--{name}={bad} must be "):
        check(Config(), Execution(**{name: bad}))


@pytest.mark.parametrize("name", [name for name, value in NUMBERS.items() if isinstance(value, float)])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_are_finite(name: str, value: float) -> None:
    assert f"--{name}={value} must be a finite number." in problems({name: value})


def test_every_number_has_a_bound() -> None:
    """A new number without a range would be found out late: by a traceback, or not at all."""
    assert [name for name in NUMBERS if not problems({name: -2 if isinstance(NUMBERS[name], int) else -2.0})] == []


# Contradictions


def test_candidates_come_from_the_pool() -> None:
    assert not problems({"experts.count": 5, "selection.candidates": 5})
    assert "pool of 5 experts" in problems({"experts.count": 5, "selection.candidates": 6})[0]
    assert "pool of 4 experts" in problems({"experts.count": 5, "selection.candidates": 5, "selection.pool": 4})[0]
    assert "--selection.pool=6 is more than --experts=5" in problems({"experts.count": 5, "selection.pool": 6})[0]


def test_length_of_experts() -> None:
    """specs/mtt_pdd.md section 1.2: the last target is max_start_epoch - 1 + expert_epochs."""
    settings = {"mtt.max_start_epoch": 20, "mtt.expert_epochs": 3}
    assert needed_epochs(override(Config(), settings)) == expert_epochs(override(Config(), settings)) == 22
    assert not problems(settings | {"experts.epochs": 22})
    (problem,) = problems(settings | {"experts.epochs": 21})
    assert "needs experts of 22 epochs; --experts.epochs=21" in problem
    assert expert_epochs(override(Config(), settings | {"experts.epochs": 50})) == 50


def test_decay_needs_its_length() -> None:
    assert not problems({"experts.decay": True, "experts.epochs": 50})
    assert "--experts.decay needs --experts.epochs" in problems({"experts.decay": True})[0]


@pytest.mark.parametrize(
    ("strategy", "good"), [("none", True), ("flip", True), ("color_crop", True), ("", False), ("spin", False), ("none_flip", False)]
)
def test_strategy(strategy: str, good: bool) -> None:
    assert bool(problems({"augment.strategy": strategy})) is not good


def test_all_faults_at_once() -> None:
    found = problems(
        {"ipc": 0, "selection.temperature": 0.0, "selection.sign": 3.0, "augment.strategy": "spin"}, Execution(threads=0, workers=-1)
    )
    assert len(found) == 6
    assert {problem.split("=")[0] for problem in found} == {
        "--ipc", "--selection.temperature", "--selection.sign", "--augment.strategy", "--threads", "--workers"
    }  # fmt: skip


def test_types_are_checked_where_nothing_else_did() -> None:
    """In a notebook dataclasses take anything."""
    config = dataclasses.replace(Config(), ipc="1", mtt=MTTConfig(grad_mode="fast"))
    with pytest.raises(ConfigError) as caught:
        check(config)
    assert caught.value.problems == [
        "ipc='1' has the wrong type; allowed: int.",
        "mtt.grad_mode='fast' has the wrong type; allowed: 'adjoint', 'unroll', 'tesla'.",
    ]


# Dictionaries


@pytest.mark.parametrize("kind", [Config, Execution])
def test_there_and_back(kind: type) -> None:
    assert from_dict(kind, to_dict(kind())) == kind()
    assert from_dict(kind, json.loads(json.dumps(to_dict(kind())))) == kind()
    assert from_dict(kind, {}) == kind()


def test_whole_numbers_serve_as_fractions_and_not_the_other_way() -> None:
    config = from_dict(Config, {"mtt": {"lr_img": 100}})
    assert config.mtt.lr_img == 100.0 and isinstance(config.mtt.lr_img, float)
    with pytest.raises(ConfigError, match="ipc=1.0 has the wrong type; allowed: int"):
        from_dict(Config, {"ipc": 1.0})


def test_every_wrong_entry_is_told() -> None:
    values = {
        "ipc": "one",
        "seed": True,
        "init": "zero",
        "stepz": 3,
        "mtt": {"lr_img": None, "momentun": 0.5},
        "model": 3,
        "data": {"channels": 2, "size": 8.5},
    }
    with pytest.raises(ConfigError) as caught:
        from_dict(Config, values, prefix="mine: ")
    told = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 9
    for part in (
        "mine: ipc='one' has the wrong type; allowed: int.",
        "mine: seed=True has the wrong type",
        "mine: init='zero' has the wrong type; allowed: 'real', 'noise', 'mix', 'kmeans', 'first'.",
        "mine: stepz is not a setting; known here: augment,",
        "mine: mtt.lr_img=None has the wrong type; allowed: float.",
        "mine: mtt.momentun is not a setting",
        "mine: model=3 has the wrong type; allowed: a table of settings.",
        "mine: data.channels=2 has the wrong type; allowed: 1, 3 or nothing.",
        "mine: data.size=8.5 has the wrong type; allowed: int or nothing.",
    ):
        assert part in told


def test_override() -> None:
    config = override(Config(), {"mtt.syn_steps": 7, "ipc": 3})
    assert (config.mtt.syn_steps, config.ipc) == (7, 3)
    assert dataclasses.replace(config, ipc=1, mtt=MTTConfig()) == Config()
    assert override(config, {}) == config


@pytest.mark.parametrize("name", ["nosuch", "mtt.nosuch", "nosuch.ipc", "ipc.x", "mtt.syn_steps.x", ""])
def test_override_of_what_is_no_setting(name: str) -> None:
    with pytest.raises(ConfigError, match="is not a setting; known: recipe, method, ipc"):
        override(Config(), {name: 3})


def test_override_with_a_wrong_type() -> None:
    with pytest.raises(ConfigError, match="mtt.syn_steps='7' has the wrong type"):
        override(Config(), {"mtt.syn_steps": "7"})
    with pytest.raises(ConfigError, match="mtt=3 has the wrong type; allowed: a table"):
        override(Config(), {"mtt": 3})


def test_fingerprint_is_fixed_for_ever() -> None:
    """Stores and caches are found by it."""
    value = {"b": 1, "a": [1, 2.5, None]}
    assert fingerprint(value) == "813b96a2b5562de373829514a5dbf6341320ba1d19ed29eca501432edfff62fc"
    assert fingerprint(dict(reversed(value.items()))) == fingerprint(value)
    assert fingerprint({**value, "b": 2}) != fingerprint(value)


def test_flatten() -> None:
    assert flatten({"a": 1, "b": {"c": {"d": 2}, "e": []}}) == {"a": 1, "b.c.d": 2, "b.e": []}


def test_every_setting_is_documented_where_its_name_does_not_say_it() -> None:
    """The help of the command line is made from these texts."""
    for kind in (Config, Execution, *(type(part) for part in vars(Config()).values() if dataclasses.is_dataclass(part))):
        assert kind.__doc__ and not kind.__doc__.startswith(f"{kind.__name__}(")


@pytest.mark.parametrize("name", ["augment.strategy", "idc.match_strategy", "idc.net_strategy"])
def test_operations_that_do_not_exist_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"--{name}=color_spin: unknown operation 'spin'; join any of color, crop"):
        check(override(Config(), {name: "color_spin"}))
    check(override(Config(), {name: "none"}))
