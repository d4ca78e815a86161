"""The method on the page about adding one: it holds the contract, learns, and runs by the command as printed."""

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from raydd.methods import base
from raydd.types import Candidate
from tests.commands import raydd, result, steps_of
from tests.methods.contract import CHECKS, case, stored_images, walk

PAGE = (Path(__file__).parents[2] / "docs" / "add-a-method.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module", autouse=True)
def _registered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The first block, saved as a file and imported."""
    folder = tmp_path_factory.mktemp("methods")
    (folder / "logits.py").write_text(blocks("python")[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "_METHODS", dict(base._METHODS))
        patch.syspath_prepend(folder)
        __import__("logits")
        yield
    del sys.modules["logits"]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_example_holds_the_contract(check: Callable[[str], None]) -> None:
    check("logits")


def test_the_example_learns() -> None:
    """The result matches better than the start, on networks that it has not seen."""
    found = case("logits", steps=40, dm__lr_img=10.0)
    made, (end, records) = found.fresh(), walk(found.config, found.executor())
    others = [Candidate(0, 0, 0, made.begin(born)) for born in range(100, 106)]
    losses = [sum(made.score(each, other, found.draws).loss for other in others) for each in (stored_images(), end.synthetic)]
    assert losses[1] < 0.6 * losses[0] and len(records) == end.pool.births == 40


def test_the_command_runs_as_printed(tmp_path: Path, no_report: None) -> None:
    """With fewer steps of a smaller network, and in another folder."""
    (line,) = blocks("sh")
    command = line.replace("\\\n", " ").replace("runs/logits", str(tmp_path / "run")).split()
    assert command.pop(0) == "raydd"
    outcome = raydd(*command, "--steps", "3", "--model.width", "8", "--evaluation.epochs", "1", "--evaluation.nets", "1", "--workers", "0")
    assert outcome.code == 0, outcome.err
    assert steps_of(tmp_path / "run") == [0, 1, 2] and result(tmp_path / "run")["evaluation"]["nets"] == 1


def test_the_page_names_what_there_is() -> None:
    """Files, and fields of the entry and of the rules."""
    root = Path(__file__).parents[2]
    named = re.findall(r"`((?:raydd|tests)/[\w/]+(?:\.py)?)`", PAGE)
    assert len(named) > 10 and [name for name in named if not (root / name).exists()] == ["raydd/methods/logits.py"]
    table = re.findall(r"^\| `(\w+)[`(]", PAGE.split("## The entry")[1], re.MULTILINE)
    assert set(table) < set(base.MethodEntry.__dataclass_fields__)
    assert set(re.findall(r"NetworkRules\((\w+)", PAGE)) < set(base.NetworkRules.__dataclass_fields__)
