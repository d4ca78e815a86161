"""The curriculum: ranges of forgetting scores by hand, and the scores of a run, computed once and read by everybody."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raydd import curriculum, curriculum_scores
from raydd.config import Config, Execution, override
from raydd.coreset import Forgetting, forgetting_scores
from raydd.data import Dataset, ImageSet, Resident, Transform, load
from raydd.errors import ConfigError, DivergenceError, StoreError
from raydd.experts.build import inline_jobs
from raydd.methods.base import check
from raydd.models import build
from raydd.stage_config import of_the_count
from raydd.training import Phase, Recipe, Streams

INF = float("inf")


def config(**settings: Any) -> Config:
    """A curriculum for mtt from noise, which needs one image of a class; a dot is written as two underscores."""
    values = {"init": "noise", "curriculum.scores": "forgetting", "stages.count": 3, "curriculum.least": 1}
    return override(Config(), values | {name.replace("__", "."): value for name, value in settings.items()})


def dataset(labels: Sequence[int]) -> Dataset:
    images = np.arange(len(labels) * 4, dtype=np.uint8).reshape(-1, 1, 2, 2)
    split = ImageSet(images, np.array(labels, np.int64))
    names = tuple("abc"[: max(labels) + 1])
    return Dataset("hand", split, split, names, (0.5,), (0.5,), "f" * 64)


def scores(counts: Sequence[int], never: Sequence[int] = (), loss: Sequence[float] = ()) -> Forgetting:
    lost = torch.zeros(len(counts), dtype=torch.bool)
    lost[list(never)] = True
    return Forgetting(torch.tensor(counts), lost, torch.tensor(loss or [0.0] * len(counts), dtype=torch.float64))


def rows(own: Config, found: Forgetting, data: Dataset) -> list[list[int]]:
    return [curriculum.stage_rows(own, found, data, stage).tolist() for stage in range(1, own.stages.count + 1)]


# Ranges


def test_ranges_by_hand() -> None:
    counts = [0, 2, 3, 5, 6, 8, 9, 40, 1, 4, 7]
    assert rows(config(), scores(counts), dataset([0] * 11)) == [[0, 1, 8], [2, 3, 9], [4, 5, 10]]
    assert rows(config(curriculum__width=2.5), scores(counts), dataset([0] * 11)) == [[0, 1, 8], [2, 9], [3, 4, 10]]
    assert rows(config(curriculum__edges="0,1,9,inf"), scores(counts), dataset([0] * 11)) == [[0], [1, 2, 3, 4, 5, 8, 9, 10], [6, 7]]


def test_ranges_are_disjoint_and_do_not_depend_on_how_many_there_are() -> None:
    generator = np.random.default_rng(0)
    counts, data = generator.integers(0, 12, 400), dataset([0, 1, 2, 1] * 100)
    three, four = (rows(config(stages__count=count), scores(counts), data) for count in (3, 4))
    assert three == four[:3]
    assert sorted(row for own in four for row in own) == list(range(400))
    for stage, own in enumerate(four):
        assert own == [row for row in range(400) if 3 * stage <= counts[row] < 3 * stage + 3]


@pytest.mark.parametrize(
    ("never_learnt", "expected"), [("first", [[0, 1, 5], [2], [3]]), ("last", [[0], [2], [1, 3, 5]]), ("exclude", [[0], [2], [3]])]
)
def test_images_never_learnt(never_learnt: str, expected: list[list[int]]) -> None:
    own = config(curriculum__never_learnt=never_learnt)
    assert rows(own, scores([0, 0, 4, 8, 30, 0], never=[1, 5]), dataset([0] * 6)) == expected


def test_never_learnt_images_are_easier_than_none() -> None:
    """Filled up downwards, a range takes hard images, not the infinitely hard ones."""
    own = config(stages__count=2, curriculum__least=3, curriculum__never_learnt="last")
    found = scores([0, 1, 2, 4, 5, 0], never=[5])
    assert rows(own, found, dataset([0] * 6)) == [[0, 1, 2], [3, 4, 5]]


def test_equal_shares() -> None:
    """Of each class by itself; equal scores by mean loss, then by row."""
    own = config(curriculum__quantiles=True)
    found = scores([0, 0, 0, 0, 9, 1, 3, 3], loss=[0.5, 0.1, 0.1, 0.9, 2, 1, 1, 0])
    assert rows(own, found, dataset([0, 0, 0, 0, 0, 1, 1, 1])) == [[1, 5], [0, 2, 7], [3, 4, 6]]


def test_widened_downwards_and_told() -> None:
    """To whole scores, in the class that lacks images alone; those of the range stay."""
    own, data = config(stages__count=2, curriculum__least=3), dataset([0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1])
    found = scores([0, 1, 1, 2, 2, 3, 0, 0, 0, 3, 4, 5])
    second = curriculum.part(own, found, data, 2)
    assert second.rows.tolist() == [3, 4, 5, 9, 10, 11]
    assert second.widened == (curriculum.Widened("a", 1, 3),)
    third = curriculum.part(replace(own, curriculum=replace(own.curriculum, least=4)), found, data, 2)
    assert third.widened == (curriculum.Widened("a", 1, 5), curriculum.Widened("b", 3, 6))
    told = curriculum.summary(own, found, data)
    assert told["widened"] == [{"stage": 2, "class": "a", "found": 1, "images": 3}]
    assert "stage 2 has too few images of some classes and takes easier ones too: a (1 to 3)." in told["text"]


def test_shares_and_what_is_told() -> None:
    own, found, data = config(stages__count=2), scores([0, 0, 3, 9, 12, 1, 0, 4], never=[1]), dataset([0, 0, 0, 0, 0, 1, 1, 1])
    assert curriculum.shares(own, found, data) == [(4 / 8, 4 / 8), (2 / 8, 6 / 8)]
    told = curriculum.summary(own, found, data)
    assert told["text"] == (
        "curriculum by forgetting: stage 1 uses 50.0% of the images, stage 2 25.0% (75.0% so far); 25.0% are in no stage."
    )
    assert told["shares"][1] == {"stage": 2, "share": 0.25, "so_far": 0.75} and told["never_learnt"] == 1 / 8


def test_shares_of_overlapping_stages_are_counted_once() -> None:
    own = config(stages__count=2, curriculum__least=3)
    assert curriculum.shares(own, scores([0, 0, 0, 4]), dataset([0] * 4)) == [(0.75, 0.75), (1.0, 1.0)]


# What a stage needs


@pytest.mark.parametrize(
    ("settings", "needed"),
    [
        ({"init": "noise"}, 1),
        ({"init": "real", "ipc": 7}, 7),
        ({"method": "dm", "init": "noise", "dm.batch_real": 12}, 12),
        ({"method": "dsa", "init": "real", "ipc": 10, "dc.batch_real": 5}, 10),
        ({"method": "cafe", "init": "noise", "cafe.batch_real": 4, "cafe.queries": 9}, 9),
        ({"method": "idc", "init": "mix", "ipc": 10, "idc.batch_real": 3}, 40),
        ({"method": "dream", "init": "kmeans", "ipc": 1, "idc.batch_real": 30}, 30),
    ],
)
def test_least_is_what_method_and_start_need(settings: dict[str, Any], needed: int) -> None:
    own = override(config(), {"curriculum.least": None, **settings})
    assert curriculum.least(own, dataset([0, 1] * 50)) == needed


def test_an_empty_range_is_refused() -> None:
    own, data = config(curriculum__least=None, ipc=2, init="real"), dataset([0, 0, 0, 1, 1, 1, 1])
    found = scores([0, 0, 0, 0, 0, 3, 8])
    with pytest.raises(ConfigError) as refused:
        curriculum.summary(own, found, data)
    problem, advice = refused.value.problems
    assert problem == "--curriculum.width=3: stage 2 has 0 images of class a with scores from 3 to below 6, and 3 easier ones; it needs 2."
    assert "--curriculum.quantiles" in advice and "--curriculum.least" in advice
    filled = replace(own, curriculum=replace(own.curriculum, least=2))
    assert rows(filled, found, data) == [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5], [0, 1, 2, 5, 6]]


def test_a_class_without_enough_easier_images_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"stage 1 has 2 images of class b .*, and 0 easier ones; it needs 3\."):
        curriculum.stage_rows(config(curriculum__least=3), scores([0, 0, 0, 1, 1, 5]), dataset([0, 0, 0, 1, 1, 1]), 1)
    with pytest.raises(ConfigError, match=r"quantiles: stage 1 has 1 images of class a, and 0 easier ones; it needs 2"):
        curriculum.stage_rows(config(curriculum__least=2, curriculum__quantiles=True), scores([0, 0, 0]), dataset([0] * 3), 1)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"width": 0.0}, r"--curriculum\.width=0\.0 must be above 0"),
        ({"width": -1.0}, r"--curriculum\.width=-1\.0 must be above 0"),
        ({"edges": "0,3,3,9"}, r"--curriculum\.edges=0,3,3,9 must be two or more rising numbers"),
        ({"edges": "0,three"}, "must be two or more rising numbers"),
        ({"edges": "0"}, "must be two or more rising numbers"),
        ({"edges": "-1,3,4,5"}, "must be two or more rising numbers"),
        ({"edges": "0,nan,4,5"}, "must be two or more rising numbers"),
        ({"edges": "0,3,6"}, r"has ranges for 2 stages, --stages\.count=3 asks for more"),
        ({"edges": "0,3,6,9", "quantiles": True}, "exclude each other"),
        ({"least": 0}, r"--curriculum\.least=0 must be at least 1"),
        (
            {"scores": "none", "quantiles": True, "least": None},
            r"--curriculum\.quantiles says nothing without --curriculum\.scores forgetting",
        ),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        check(config(**{f"curriculum__{name}": value for name, value in settings.items()}))


def test_what_depends_on_the_number_of_stages_is_known() -> None:
    assert of_the_count(config()) == of_the_count(Config()) == of_the_count(config(curriculum__edges="0,1,2,3")) == []
    assert of_the_count(config(curriculum__quantiles=True)) == ["--curriculum.quantiles"]
    assert of_the_count(config(curriculum__never_learnt="last")) == ["--curriculum.never_learnt=last"]


def test_stage_dataset() -> None:
    whole = dataset([0, 1, 0, 1, 1])
    part = curriculum.stage_dataset(whole, np.array([1, 2, 4]))
    assert np.array_equal(part.train.images, whole.train.images[[1, 2, 4]]) and part.train.labels.tolist() == [1, 0, 1]
    assert part.test is whole.test and part.classes == whole.classes and part.mean == whole.mean
    others = {curriculum.stage_dataset(whole, np.array(chosen)).fingerprint for chosen in ([1, 2, 4], [1, 2], [1, 2, 3])}
    assert len({*others, whole.fingerprint}) == 4 and part.fingerprint in others


# The scores of a run

SMALL = {"model.width": 4, "model.depth": 2, "curriculum.epochs": 2, "curriculum.lr": 0.05, "curriculum.width": 1.0, "stages.count": 2}


@pytest.fixture(scope="module")
def digits() -> Dataset:
    """The first 300 training images."""
    whole = load(Config().data)
    return replace(whole, train=ImageSet(whole.train.images[:300], whole.train.labels[:300]))


def have_ready(own: Config, root: Path, data: Dataset, reports: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    transform, told = Transform.fit(data, own.data), [] if reports is None else reports
    return curriculum_scores.ready(own, str(root), data, transform, Execution(device="cpu"), inline_jobs, told.append)


def test_no_curriculum_is_the_whole_set(digits: Dataset, tmp_path: Path) -> None:
    assert curriculum_scores.training_split(Config(), str(tmp_path / "absent"), digits, 3) is digits
    assert have_ready(Config(), tmp_path / "absent", digits) is None and not (tmp_path / "absent").exists()


def test_scores_are_those_of_the_recorded_training(digits: Dataset, tmp_path: Path) -> None:
    own, reports = config(**SMALL | {"curriculum.seed": 5, "seed": 2}), []
    told = have_ready(own, tmp_path, digits, reports)
    assert [(r["done"], r["total"]) for r in reports if r["phase"] == "curriculum"] == [(0, 2), (1, 2), (2, 2)]
    assert reports[-1] == {"phase": "note", "text": told["text"]}
    found = curriculum_scores.stored(own, str(tmp_path), digits)
    data = Resident.load(digits.train, Transform.fit(digits, own.data))
    recipe = Recipe(256, 0.9, 5e-4, own.augment.strategy)
    expected = forgetting_scores(build(own.model, digits.shape, 10), data, (Phase(0.05, 2),), recipe, Streams(5, "select", (0,)), "cpu")
    assert torch.equal(found.counts, expected.counts) and torch.equal(found.never, expected.never) and found.counts.max() == 1
    for stage in (1, 2):
        split = curriculum_scores.training_split(own, str(tmp_path), digits, stage)
        assert np.array_equal(split.train.labels, digits.train.labels[curriculum.stage_rows(own, found, digits, stage)])
        assert len(split.train) / len(digits.train) == told["shares"][stage - 1]["share"]


def test_computed_once_and_shared_by_seeds(digits: Dataset, tmp_path: Path) -> None:
    own, reports = config(**SMALL), []
    have_ready(own, tmp_path, digits)
    again = override(own, {"seed": 9, "curriculum.width": 2.0, "curriculum.least": 1, "stages.count": 1})
    have_ready(again, tmp_path, digits, reports)
    assert [report["phase"] for report in reports] == ["note"]
    have_ready(override(own, {"curriculum.seed": 1}), tmp_path, digits)
    assert len(list((tmp_path / "forgetting").glob("*.safetensors"))) == 2


def test_absent_and_damaged_scores_are_refused(digits: Dataset, tmp_path: Path) -> None:
    own = config(**SMALL)
    with pytest.raises(StoreError, match=r"forgetting/\w+\.safetensors is absent: the scores of the curriculum"):
        curriculum_scores.training_split(own, str(tmp_path), digits, 1)
    have_ready(own, tmp_path, digits)
    (path,) = (tmp_path / "forgetting").glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(StoreError, match=r"truncated or altered.*Delete it; the next run computes the scores anew"):
        curriculum_scores.training_split(own, str(tmp_path), digits, 1)


def test_divergence_names_the_setting_of_the_curriculum(digits: Dataset, tmp_path: Path) -> None:
    with pytest.raises(DivergenceError, match=r"Lower --curriculum\.lr=1e\+30 or --curriculum\.momentum=0\.9"):
        have_ready(config(**SMALL | {"curriculum.lr": 1e30, "model.norm": "none"}), tmp_path, digits)


def test_less_than_a_method_needs_is_refused() -> None:
    own = override(config(), {"curriculum.least": 1, "method": "dm", "dm.batch_real": 6})
    with pytest.raises(ConfigError, match=r"--curriculum\.least=1: --method dm and --init noise need 6 images of each class; give as many"):
        curriculum.least(own, dataset([0, 1] * 50))
