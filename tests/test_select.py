"""`raydd select` from end to end on digits: an ordinary run of the chosen images, and the record of how they were chosen."""

import json
import pickle
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import raydd
from raydd import artifact, data
from raydd.coreset.forgetting import load
from raydd.coreset.networks import NetworkWorker
from raydd.data import ImageSet
from raydd.errors import DataError, DivergenceError
from raydd.files import read_json
from raydd.progress import Progress
from raydd.runfolder import images_sha256
from raydd.select import choose, plain
from raydd.select_config import METHODS, SelectConfig, resolved
from raydd.services import InlineServices
from raydd.setup import Setup, prepare
from raydd.transition import Stopped
from tests import commands
from tests.commands import Outcome, contents, result

SMALL = ("--model.width", "8", "--evaluation.epochs", "2", "--evaluation.nets", "2", "--workers", "0")
TINY = SelectConfig(nets=2, epochs=2, batch_size=128)


def run_select(method: str, run: Path, *more: str | Path) -> Outcome:
    tiny = ("--select.nets", "2", "--select.epochs", "2", "--select.batch_size", "128")
    return commands.raydd("select", method, "digits-mtt-ipc1", *SMALL, *tiny, "--ipc", "3", "--run", run, *more)


@pytest.fixture(scope="module")
def herded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """A finished selection and what it printed; to be read only."""
    run = tmp_path_factory.mktemp("select") / "herding"
    return run, run_select("herding", run)


@pytest.fixture(scope="module")
def whole() -> Setup:
    """All training images."""
    settings = {"model.width": 8, "ipc": 3, "data.zca": False}
    config = raydd.override(raydd.load_recipe("digits-mtt-ipc1").config, settings)
    return prepare(plain(config, "test"), raydd.Execution(device="cpu"))


@pytest.fixture(scope="module")
def setup(whole: Setup) -> Setup:
    """The first 300 of them."""
    train = whole.dataset.train
    return replace(whole, dataset=replace(whole.dataset, train=ImageSet(train.images[:300], train.labels[:300])))


def rows_of(method: str, setup: Setup, settings: SelectConfig = TINY) -> list[int]:
    return choose(method, setup, resolved(method, settings), InlineServices(torch.device("cpu"))).rows.tolist()


# The command


def test_prints_accuracies_and_the_hash(herded: tuple[Path, Outcome]) -> None:
    run, outcome = herded
    assert outcome.code == 0, outcome.err
    assert "at rate 0.01" in outcome.out and "real images by herding" in outcome.out and "random real images" in outcome.out
    assert f"{run}/selected.json" in outcome.out
    assert outcome.last_line == f"images sha256: {result(run)['images_sha256']}"
    assert "training networks: 4/4" in outcome.err
    assert (run / "report.html").is_file() and result(run)["steps"] == 0


def test_record_is_enough_to_take_the_same_images(herded: tuple[Path, Outcome]) -> None:
    record, found = read_json(herded[0] / "selected.json"), artifact.read(herded[0] / "synthetic.safetensors")
    dataset = data.load(raydd.Config().data)
    assert record["method"] == "herding" and record["ipc"] == 3 and record["seed"] == 0 and record["scores"] is None
    assert record["settings"]["nets"] == 2 and record["settings"]["lr"] == 0.01
    assert record["fingerprint"] == found.fingerprint == dataset.fingerprint
    assert [len(rows) for rows in record["rows"]] == [3] * 10
    rows = np.concatenate(record["rows"])
    assert dataset.train.labels[rows].tolist() == found.synthetic.labels.tolist() == np.arange(10).repeat(3).tolist()
    images = found.pixel_transform().forward(torch.tensor(dataset.train.images[rows]))
    assert torch.equal(images, found.synthetic.images) and torch.equal(images, found.initial_images)
    assert record["images_sha256"] == result(herded[0])["images_sha256"] == images_sha256(images)
    assert [network["index"] for network in record["networks"]] == [0, 1]


def test_evaluate_export_and_report_take_it(herded: tuple[Path, Outcome], tmp_path: Path) -> None:
    run = Path(shutil.copytree(herded[0], tmp_path / "run"))
    shown = json.loads(commands.raydd("evaluate", run, "--json").out)
    assert shown["accuracy_mean"] == result(run)["evaluation"]["accuracy_mean"] and shown["nets"] == 2
    assert commands.raydd("export", run, "--to", "png", tmp_path / "png").code == 0
    assert len(list((tmp_path / "png").glob("*/*.png"))) == 30
    (run / "report.html").unlink()
    outcome = commands.raydd("report", run)
    page = (run / "report.html").read_text("utf-8")
    assert outcome.code == 0 and "(herding)" in page and "finished after 0 steps" in page and "Gain" in page


@pytest.mark.usefixtures("no_report")
def test_resuming_keeps_the_images_and_does_what_is_missing(herded: tuple[Path, Outcome], tmp_path: Path) -> None:
    run = Path(shutil.copytree(herded[0], tmp_path / "run"))
    before = contents(run)
    again = commands.raydd("distill", "--resume", run)
    assert again.code == 0 and again.last_line == herded[1].last_line
    # As after a stop in the evaluation.
    (run / "evaluations.jsonl").write_bytes(b"")
    (run / "result.json").unlink()
    again = commands.raydd("distill", "--resume", run)
    assert again.code == 0 and result(run)["evaluation"] == json.loads(before["result.json"])["evaluation"]
    assert contents(run)["selected.json"] == before["selected.json"]


@pytest.mark.usefixtures("no_report")
def test_in_one_line_of_python(herded: tuple[Path, Outcome], tmp_path: Path) -> None:
    settings = {"model.width": 8, "ipc": 3, "evaluation.epochs": 2, "evaluation.nets": 2}
    config = raydd.override(raydd.load_recipe("digits-mtt-ipc1").config, settings)
    done = raydd.select("herding", config, raydd.Execution(run=str(tmp_path / "run"), workers=0), TINY)
    assert done["complete"] and done["run"] == str(tmp_path / "run")
    assert done["images_sha256"] == result(herded[0])["images_sha256"] and done["evaluation"] == result(herded[0])["evaluation"]
    assert done["rows"] == np.concatenate(read_json(herded[0] / "selected.json")["rows"]).tolist()


def test_help() -> None:
    outcome = commands.raydd("select", "--help")
    assert outcome.code == 0 and outcome.out.startswith("usage: raydd select METHOD RECIPE")
    assert "--select.never_learnt {zero,most}" in outcome.out and "--select.momentum FLOAT" in outcome.out
    assert "raydd select METHOD RECIPE" in commands.raydd("--help").out


@pytest.mark.parametrize(("phase", "kept"), [("select", False), ("evaluation", True)])
@pytest.mark.usefixtures("no_report")
def test_control_c(herded: tuple[Path, Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: str, kept: bool) -> None:
    class Interrupting(Progress):
        def __call__(self, report: dict[str, Any]) -> None:
            if report["phase"] == phase and (phase == "evaluation" or report["done"] == 1):
                signal.raise_signal(signal.SIGINT)

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("raydd.progress.Progress", Interrupting)
        outcome = run_select("herding", run)
    assert outcome.code == 130 and "Traceback" not in outcome.err
    if not kept:
        assert "nothing is kept" in outcome.err and not run.exists()
        return
    assert f"raydd distill --resume {run}" in outcome.err and result(run)["evaluation"] is None
    assert commands.raydd("distill", "--resume", run).last_line == herded[1].last_line
    assert result(run)["evaluation"] == result(herded[0])["evaluation"]


# The choice


def test_what_counts_of_a_recipe() -> None:
    recipe = raydd.load_recipe("digits-mtt-ipc1").config
    config = plain(raydd.override(recipe, {"selection.candidates": 3, "evaluation.every": 5, "evaluation.protocol": "dsa"}), "herding")
    assert (config.steps, config.init, config.selection, config.evaluation.every) == (0, "real", raydd.Config().selection, 0)
    assert (config.data, config.model, config.augment) == (recipe.data, recipe.model, recipe.augment)
    # 0.01 where the protocol asks the set, and not as an override of protocols with a rate of their own.
    assert config.mtt.lr_init == 0.01 and config.evaluation.lr is None and config.evaluation.protocol == "dsa"


@pytest.mark.parametrize("method", METHODS)
def test_every_method_fills_every_class_and_repeats(method: str, setup: Setup) -> None:
    labels, rows = torch.tensor(setup.dataset.train.labels), rows_of(method, setup)
    assert labels[rows].tolist() == torch.arange(10).repeat_interleave(3).tolist() and len(set(rows)) == 30
    assert rows_of(method, setup) == rows
    other = replace(setup, config=replace(setup.config, seed=1))
    assert rows_of(method, other) != rows
    # The first images of a longer choice are the shorter one.
    shorter = rows_of(method, replace(setup, config=replace(setup.config, ipc=1)))
    assert shorter == rows[::3]


def test_settings_count(setup: Setup) -> None:
    rows = rows_of("herding", setup)
    for changed in ({"nets": 1}, {"epochs": 1}, {"lr": 0.05}, {"batch_size": 64}, {"momentum": 0.0}, {"augment": False}):
        assert rows_of("herding", setup, replace(TINY, **changed)) != rows, changed


def test_never_learnt_images_come_first_if_asked(setup: Setup) -> None:
    settings = replace(TINY, never_learnt="most")
    choice = choose("forgetting", setup, resolved("forgetting", settings), InlineServices(torch.device("cpu")))
    never = choice.forgetting.never
    assert 30 <= never.sum() < len(never) and choice.scores[choice.rows].isinf().any()
    first = choice.rows[::3]
    for label, row in enumerate(first.tolist()):
        own = torch.tensor(setup.dataset.train.labels) == label
        if (never & own).any():
            assert never[row] and choice.forgetting.loss[row] == choice.forgetting.loss[never & own].max()
    literal = choose("forgetting", setup, resolved("forgetting", TINY), InlineServices(torch.device("cpu")))
    assert literal.scores[never].eq(0).all() and literal.rows.tolist() != choice.rows.tolist()


@pytest.mark.usefixtures("no_report")
def test_forgetting_counts_are_kept(tmp_path: Path) -> None:
    outcome = run_select("forgetting", tmp_path / "run", "--evaluation.epochs", "0")
    assert outcome.code == 0, outcome.err
    found, details = load(tmp_path / "run" / "forgetting.safetensors")
    record = read_json(tmp_path / "run" / "selected.json")
    assert details["fingerprint"] == record["fingerprint"] and details["settings"] == record["settings"]
    assert [found.counts[rows].tolist() for rows in record["rows"]] == record["scores"]


@pytest.mark.parametrize("method", ["grand", "el2n"])
def test_scores_are_means_over_networks(method: str, setup: Setup) -> None:
    choice = choose(method, setup, resolved(method, TINY), InlineServices(torch.device("cpu")))
    one, two = (torch.tensor(network.arrays["score"]).double() for network in choice.networks)
    torch.testing.assert_close(choice.scores, (one + two) / 2, rtol=0, atol=1e-12)
    own = torch.nonzero(torch.tensor(setup.dataset.train.labels) == 4).squeeze(1)
    assert choice.rows[12:15].tolist() == own[choice.scores[own].argsort(descending=True)][:3].tolist()


@pytest.mark.parametrize("method", ["herding", "forgetting", "grand"])
def test_a_network_is_the_same_wherever_it_is_trained(method: str, whole: Setup) -> None:
    settings = resolved(method, replace(TINY, epochs=1, batch_size=512))
    worker = NetworkWorker(method, whole.config, settings, whole.dataset.fingerprint, whole.transform, whole.execution, whole.dataset)
    here, there = worker(), pickle.loads(pickle.dumps(worker))()
    both = [here(index) for index in (0, 1)]
    alone = there(1)
    assert all(np.array_equal(array, alone.arrays[name]) for name, array in both[1].arrays.items())
    assert alone.accuracy == both[1].accuracy and alone.loss == both[1].loss != both[0].loss


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", METHODS)
def test_on_a_cuda_device(method: str, whole: Setup) -> None:
    execution = raydd.Execution(device="cuda", deterministic=True)
    there = prepare(whole.config, execution)
    rows = [choose(method, there, resolved(method, TINY), InlineServices(there.device)).rows for _ in range(2)]
    assert torch.equal(*rows) and rows[0].device.type == "cpu"
    assert torch.tensor(whole.dataset.train.labels)[rows[0]].tolist() == torch.arange(10).repeat_interleave(3).tolist()


def test_progress_and_a_stop_between_epochs(setup: Setup) -> None:
    told: list[dict[str, Any]] = []
    settings, services = resolved("el2n", replace(TINY, nets=3)), InlineServices(torch.device("cpu"))
    choose("el2n", setup, settings, services, told.append)
    assert [report["done"] for report in told] == [1, 2, 3, 4, 5, 6] and told[-1]["total"] == 6
    with pytest.raises(Stopped):
        choose("el2n", setup, settings, services, told.append, lambda: len(told) >= 8)
    assert told[-1]["done"] == 2


# Refusals


def refused(outcome: Outcome, run: Path, *words: str) -> None:
    text = outcome.refusal()
    assert all(word in text for word in words), text
    assert not run.exists()


def test_unknown_method(tmp_path: Path) -> None:
    refused(run_select("nosuch", tmp_path / "run"), tmp_path / "run", "'nosuch'", "known methods: random, herding, k_center")
    refused(commands.raydd("select"), tmp_path / "run", "needs a method first", "herding")
    refused(commands.raydd("select", "herding"), tmp_path / "run", "raydd select herding needs a recipe first")
    with pytest.raises(raydd.RayddError, match="'nosuch' is not a selection method; known: random, herding"):
        raydd.select("nosuch", raydd.Config())


def test_every_wrong_setting_is_told_at_once(tmp_path: Path) -> None:
    run = tmp_path / "run"
    wrong = {"nets": "0", "epochs": "-1", "lr": "0", "momentum": "1", "weight_decay": "nan", "batch_size": "0"}
    flags = [part for name, value in wrong.items() for part in (f"--select.{name}", value)]
    words = [f"--select.{name}=" for name in wrong]
    refused(run_select("herding", run, *flags, "--ipc", "0", "--threads", "0"), run, *words, "--ipc=0", "--threads=0")
    refused(run_select("forgetting", run, "--select.epochs", "0"), run, "--select.epochs=0 must be at least 1")
    with pytest.raises(raydd.RayddError, match=r"--select.epochs='3' has the wrong type"):
        raydd.select("herding", raydd.Config(), settings=SelectConfig(epochs="3"))


def test_more_images_than_the_class_has(tmp_path: Path) -> None:
    outcome = run_select("herding", tmp_path / "run", "--ipc", "125")
    refused(outcome, tmp_path / "run", "--ipc=125 is more than the 124 training images of class 8", "at most 124")
    assert "noise" not in outcome.err


def test_a_run_that_is_there(herded: tuple[Path, Outcome], tmp_path: Path) -> None:
    before = contents(herded[0])
    text = run_select("herding", herded[0]).refusal()
    assert "already holds a run" in text and "training" not in text and contents(herded[0]) == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("")
    assert "not empty and not a run" in run_select("random", tmp_path / "other").refusal()


def test_a_diverging_network_leaves_no_folder(tmp_path: Path, setup: Setup) -> None:
    refused(run_select("herding", tmp_path / "run", "--select.lr", "1e30"), tmp_path / "run", "Network 0 diverged", "--select.lr")
    with pytest.raises(DivergenceError, match="diverged in epoch"):
        rows_of("forgetting", setup, replace(TINY, lr=1e30))


def test_other_images_on_another_machine(setup: Setup) -> None:
    worker = NetworkWorker("el2n", setup.config, resolved("el2n", TINY), "0" * 64, setup.transform, setup.execution)
    with pytest.raises(DataError, match="holds other images on this machine"):
        worker()


@pytest.mark.parametrize("count", [1, 3])
def test_as_many_images_as_all_stages_have(count: int, tmp_path: Path) -> None:
    outcome = run_select("random", tmp_path / "run", "--ipc", "2", "--stages.count", str(count))
    assert outcome.code == 0, outcome.err
    images = artifact.read(tmp_path / "run" / "synthetic.safetensors").synthetic
    assert images.labels.bincount().tolist() == [2 * count] * 10 and set(images.stages.tolist()) == {1}
    assert f"ipc={2 * count} " in outcome.err or count == 1
    assert result(tmp_path / "run")["evaluation"]["nets"] == 2 and "stages" not in result(tmp_path / "run")
