"""The command line of the sweep scripts: what is understood, and what is refused before anything starts."""

from pathlib import Path

import pytest

from raydd.config import override
from raydd.errors import ConfigError
from sweeping import Arm, Options, Question, grid
from sweeping.arguments import completed, main, parse, value_of


def two_arms(options: Options) -> list[Arm]:
    return grid({"T": ("selection.temperature", [0.5, 1.0])})


QUESTION = Question("toy", "Which is better?", "digits-mtt-ipc1", two_arms, smoke={"ipc": 1})


def test_settings_of_recipe_command_line_and_arm_in_that_order() -> None:
    options = parse(QUESTION, ["--steps", "40", "--set", "mtt.lr_img=7", "--set", "selection.temperature=9", "--points", "4"])
    arm = completed(options, two_arms(options))[0]
    config = override(options.base(arm.recipe), arm.settings)
    assert (config.steps, config.mtt.lr_img, config.selection.temperature) == (40, 7.0, 0.5)
    assert config.evaluation.every == 10  # four along the run
    assert config.mtt.syn_steps == 30  # the recipe's


def test_evaluations_that_are_asked_for_stay() -> None:
    options = parse(QUESTION, ["--set", "evaluation.every=0"])
    assert "evaluation.every" not in completed(options, two_arms(options))[0].settings


def test_execution_settings_go_where_they_belong(tmp_path: Path) -> None:
    given = ["--set", "checkpoint_every=5", "--workers", "2", "--threads", "3", "--storage", str(tmp_path), "--address", "auto"]
    options = parse(QUESTION, given)
    own = options.execution
    assert (own.checkpoint_every, own.workers, own.threads, own.address) == (5, 2, 3, "auto")
    assert own.store == str(tmp_path / "store") and options.folder == str(tmp_path / "toy")
    assert "checkpoint_every" not in options.settings


def test_storage_and_store_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse(QUESTION, ["--storage", "here"]).storage == str(tmp_path / "here")
    assert parse(QUESTION, ["--store", "s3://bucket/store"]).execution.store == "s3://bucket/store"


@pytest.mark.parametrize(("text", "seeds"), [("3", (0, 1, 2)), ("0,7", (0, 7)), ("5,", None), ("0", None), ("x", None), ("1,1", None)])
def test_seeds(text: str, seeds: tuple[int, ...] | None) -> None:
    if seeds is None:
        with pytest.raises(ConfigError, match="--seeds"):
            parse(QUESTION, ["--seeds", text])
    else:
        assert parse(QUESTION, ["--seeds", text]).seeds == seeds


@pytest.mark.parametrize(("text", "value"), [("3", 3), ("0.5", 0.5), ("true", True), ("null", None), ("kmeans", "kmeans"), ('"3"', "3")])
def test_values(text: str, value: object) -> None:
    assert value_of(text) == value and type(value_of(text)) is type(value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "mtt.lr_img"], "--set mtt.lr_img"),
        (["--set", "mtt.rate=3"], "mtt.rate is not a setting"),
        (["--set", "steps=many"], "steps='many' has the wrong type"),
        (["--set", "seed=4"], "use --seeds"),
        (["--set", "workers=x"], "workers='x' has the wrong type"),
        (["--num-samples", "0"], "--num-samples 0 must be at least 1"),
        (["--max-concurrent", "0"], "--max-concurrent 0"),
        (["--time-budget", "0"], "--time-budget 0 must be above 0"),
        (["--scheduler", "pbt"], "--scheduler pbt"),
        (["--storage", "s3://KEY:hush@bucket/sweeps"], "s3://***@bucket/sweeps holds a secret"),
        (["--storage", "s3://bucket/../sweeps"], "is no place for files"),
        (["--name", "a/b"], "--name a/b"),
        (["--recipe", "nowhere"], "'nowhere' is not a recipe"),
        (["--steps", "-1"], "--steps=-1 must be at least 0"),
    ],
)
def test_refused_with_a_message_and_no_ray(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(QUESTION, arguments) == 2
    told = capsys.readouterr().err
    assert words in told and "Traceback" not in told


def test_every_problem_of_every_arm_is_told_once() -> None:
    arms = [Arm("a", {"mtt.lr_img": -1}), Arm("b", {"mtt.lr_img": -1, "steps": -2})]
    with pytest.raises(ConfigError) as refused:
        completed(parse(QUESTION, []), arms)
    assert len(refused.value.problems) == 2
    assert refused.value.problems[0].startswith("a: --mtt.lr_img=-1") and refused.value.problems[1].startswith("b: --steps=-2")


def test_evaluations_that_cannot_be_are_refused_before_anything_starts() -> None:
    options = parse(QUESTION, ["--set", "evaluation.updates=4"])  # and the recipe's epochs
    with pytest.raises(ConfigError, match="give one of the two"):
        completed(options, two_arms(options))


@pytest.mark.parametrize(("model", "words"), [("nothing", "nothing"), ("vgg11-d0x", "vgg11")])
def test_networks_that_cannot_be_are_refused(model: str, words: str) -> None:
    options = parse(QUESTION, [])
    with pytest.raises(ConfigError, match=words):
        completed(options, two_arms(options), (model,))


def test_a_smoke_test_is_small_and_leaves_nothing() -> None:
    options = parse(QUESTION, ["--smoke-test", "--seeds", "5"])
    assert options.temporary and options.seeds == (0,) and options.settings["model.width"] == 8 and options.execution.workers == 0
    assert not parse(QUESTION, ["--smoke-test", "--storage", "here"]).temporary


def test_arms_of_one_name_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    question = Question("toy", "?", "digits-mtt-ipc1", lambda options: [Arm("a", {}), Arm("a", {"ipc": 2})])
    assert main(question, []) == 2 and "Two arms are called 'a'" in capsys.readouterr().err


def test_a_sweep_that_is_there_is_not_begun_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "toy" / "runs").mkdir(parents=True)
    assert main(QUESTION, ["--storage", str(tmp_path)]) == 2
    assert "--resume" in capsys.readouterr().err
