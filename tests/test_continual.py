"""Continual learning: orders, losses and numbers by hand, and the whole command on digits."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from raydd import artifact, data
from raydd.config import Config, Execution, ModelConfig, from_dict, override
from raydd.continual_config import ContinualConfig, check_continual, classes_per_phase
from raydd.continual_kept import class_order, kept_images, order_of
from raydd.continual_result import forgetting, seen_accuracy, summary
from raydd.continual_training import Kept, SeenHead, grown, held_near, learn, passes, sets_of, soft_label_loss, split_test
from raydd.data import Dataset, ImageSet
from raydd.errors import ConfigError
from raydd.evaluate import TrainingSet, settings_for, train_on
from raydd.files import read_json, read_lines
from raydd.models import FlatModel
from raydd.select_config import SelectConfig
from raydd.training import Batch, Networks, Streams, TensorBatches, initial
from tests import commands, helpers
from tests.commands import contents

# Orders and numbers


def test_class_order_is_that_of_the_reference() -> None:
    """Recorded from its program: the first 20 of 100 classes for seed 0."""
    order = class_order(100, 0)
    assert sorted(order[:20]) == [2, 7, 8, 13, 16, 22, 24, 26, 30, 33, 53, 54, 55, 73, 75, 78, 86, 92, 93, 95]
    assert sorted(order) == list(range(100)) and order[:4] == [26, 86, 2, 55] and class_order(100, 1) != order


def test_seen_accuracy_is_the_weighted_row() -> None:
    matrix, images = [[0.8], [0.5, 0.9], [0.2, 0.4, 1.0]], [10, 30, 60]
    assert seen_accuracy(matrix, images) == pytest.approx([0.8, (0.5 * 10 + 0.9 * 30) / 40, (2 + 12 + 60) / 100])


def test_forgetting_by_hand() -> None:
    matrix = [[0.8], [0.5, 0.9], [0.6, 0.4, 1.0]]
    assert forgetting(matrix) == pytest.approx([0.0, 0.3, ((0.8 - 0.6) + (0.9 - 0.4)) / 2])
    better = [[0.5], [0.7, 0.9], [0.8, 0.9, 0.1]]
    assert forgetting(better) == pytest.approx([0.0, -0.2, -0.05])


def test_summary_over_networks() -> None:
    found = summary([[[0.8], [0.5, 0.9]], [[0.6], [0.7, 0.5]]], [[10, 30], [20, 20]])
    seen = [[0.8, 0.8], [0.6, 0.6]]
    assert found["seen_mean"] == pytest.approx([0.7, 0.7]) and found["seen_std"] == pytest.approx([0.1, 0.1])
    assert found["average_mean"] == pytest.approx(np.mean(seen)) and found["average_std"] == pytest.approx(0.1)
    assert found["forgetting_mean"] == pytest.approx([0, 0.1]) and found["forgetting_std"] == pytest.approx([0, 0.2])
    assert found["matrix_mean"][1] == pytest.approx([0.6, 0.7]) and found["networks"] == 2


def test_test_images_by_phase() -> None:
    labels = np.array([0, 1, 2, 3, 3, 0, 1])
    split = ImageSet(np.arange(7, dtype=np.uint8).reshape(7, 1, 1, 1), labels)
    parts = split_test(Dataset("hand", split, split, tuple("abcd"), (0.5,), (0.5,), "f"), (3, 1, 0, 2), 2)
    assert [part.images.flatten().tolist() for part in parts] == [[1, 3, 4, 6], [0, 2, 5]]
    assert [part.labels.tolist() for part in parts] == [[1, 0, 0, 1], [2, 3, 2]]


# Training


@pytest.fixture(scope="module")
def network() -> FlatModel:
    return helpers.model(ModelConfig(width=4, depth=1))


@pytest.fixture(scope="module", params=["instance", "batch"])
def either(request: pytest.FixtureRequest) -> FlatModel:
    return helpers.model(ModelConfig(width=4, depth=1, norm=request.param))


def kept(phase: int, classes: int = 2, stages: int = 1, seed: int = 0) -> Kept:
    generator = torch.Generator().manual_seed(10 * seed + phase)
    labels = torch.arange(classes).repeat_interleave(2 * stages) + classes * phase
    images = torch.randn(len(labels), 1, 8, 8, generator=generator)
    rates = tuple(0.01 * (phase + 1) * stage for stage in range(1, stages + 1))
    return Kept(images, labels, torch.arange(1, stages + 1).repeat(2 * classes), rates, 2 * stages)


def config(**settings: Any) -> Config:
    values = {"evaluation.protocol": "dsa", "evaluation.epochs": 2, "evaluation.augment": "none", "evaluation.batch_size": 3}
    return override(Config(), values | {name.replace("__", "."): value for name, value in settings.items()})


def test_knowledge_distillation_is_the_formula_of_the_reference() -> None:
    """KLDivLoss with its default mean over all entries, times T^2, the number of old classes and beta."""
    generator = torch.Generator().manual_seed(0)
    logits, old, temperature = torch.randn(5, 7, generator=generator), torch.randn(5, 3, generator=generator), 2.0
    with pytest.warns(UserWarning, match="batchmean"):
        divergence = torch.nn.KLDivLoss()(F.log_softmax(logits[:, :3] / temperature, 1), F.softmax(old / temperature, 1))
    torch.testing.assert_close(soft_label_loss(logits, old, temperature), divergence * temperature**2 * 3)
    assert soft_label_loss(torch.cat([old, old], 1), old, temperature).abs() < 1e-6


def test_loss_of_sequential_with_kd(either: FlatModel) -> None:
    networks = initial(either, Streams(0, "test", (0,)), "cpu", statistics=True)
    own = kept(0)
    batch, logits = Batch(own.images, own.labels, None), torch.randn(len(own.labels), 4, generator=torch.Generator().manual_seed(3))
    loss = held_near(SeenHead(either, 2), networks, ContinualConfig(kd_weight=0.7, kd_temperature=3.0))
    running = None if networks.statistics is None else networks.statistics[0]
    old = either(networks.thetas[0], own.images, running)[:, :2]
    expected = F.cross_entropy(logits, own.labels) + 0.7 * soft_label_loss(logits, old, 3.0)
    torch.testing.assert_close(loss(0, batch, logits), expected)


def test_a_cut_off_head_is_that_of_a_smaller_network(either: FlatModel) -> None:
    """It gives the same logits, and trained alike both stay the same."""
    small, head = helpers.model(either.config, classes=2), SeenHead(either, 2)
    whole = either.init(torch.Generator().manual_seed(1))

    def cut(theta: torch.Tensor) -> torch.Tensor:
        parts = either.views(theta).items()
        return torch.cat([(part[:2] if name.startswith("classifier") else part).flatten() for name, part in parts])

    own = kept(0)
    assert torch.equal(head(whole, own.images), either(whole, own.images)[:, :2])
    torch.testing.assert_close(head(whole, own.images), small(cut(whole), own.images))
    training, how = TrainingSet(own.images, own.labels, 0.1), settings_for(config(evaluation__epochs=4), head, len(own.labels))
    found = []
    for model, theta in ((head, whole), (small, cut(whole))):
        networks = Networks(theta[None].clone(), statistics=either.initial_statistics()[None] if either.statistics_size else None)
        list(train_on(model, networks, training, how, Streams(0, "test", (0,))))
        found.append((networks.thetas[0], networks.statistics))
    torch.testing.assert_close(cut(found[0][0]), found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1])
    assert (found[0][0] - whole).norm() > 0.1


def test_the_head_grows_by_fresh_rows(network: FlatModel) -> None:
    before, fresh = torch.zeros(1, network.size), torch.ones(1, network.size)
    found = grown(network, Networks(before, velocity=before), Networks(fresh), 1, 3)
    views = network.views(found.thetas[0])
    assert views["classifier.bias"].tolist() == [0, 1, 1, 0] and views["classifier.weight"].mean(1).tolist() == [0, 1, 1, 0]
    assert int(found.thetas.sum()) == 2 * (1 + views["classifier.weight"].shape[1]) and found.velocity is None


def test_stages_are_trained_on_in_turn_over_all_phases() -> None:
    both = [kept(0, stages=2), kept(1, stages=2)]
    sets = sets_of(config(evaluation__protocol="mtt"), both)
    assert [len(own.labels) for own in sets] == [8, 16] and [own.lr for own in sets] == pytest.approx([0.015, 0.03])
    assert sets[0].labels.bincount().tolist() == [2, 2, 2, 2]
    assert torch.equal(sets[0].images[:4], both[0].images[both[0].stages == 1])
    assert [own.lr for own in sets_of(config(), both)] == [0.01, 0.01]
    assert [len(own.labels) for own in sets_of(config(evaluation__stages="union"), both)] == [16]


@pytest.mark.parametrize("stages", [1, 2])
def test_passes_are_counted(network: FlatModel, stages: int) -> None:
    both, done = [kept(0, stages=stages), kept(1, stages=stages)], []
    tests = [TensorBatches(own.images, own.labels) for own in both]
    learn(config(), ContinualConfig(phases=2), network, both, tests, 0, "cpu", lambda: done.append(1))
    assert len(done) == passes(config(), network, both) == 2 * stages * (round(2 * 2 / (stages + 1)) + 1)


@pytest.mark.parametrize("protocol", ["scratch", "sequential", "sequential+kd"])
def test_a_phase_does_not_know_of_later_ones(network: FlatModel, protocol: str) -> None:
    """And equal arguments give equal numbers; another network other ones."""
    settings, own = ContinualConfig(phases=2, protocol=protocol), config(evaluation__epochs=20)
    generator = torch.Generator().manual_seed(5)
    labels = [torch.arange(100) % 2 + 2 * phase for phase in (0, 1)]
    tests = [TensorBatches(torch.randn(100, 1, 8, 8, generator=generator), each) for each in labels]

    def go(second: Kept, net: int = 0) -> list[list[float]]:
        return learn(own, settings, network, [kept(0), second], tests, net, "cpu")

    first = go(kept(1))
    assert first == go(kept(1)) and [len(row) for row in first] == [1, 2]
    other = go(kept(1, seed=3))
    assert other[0] == first[0] and other[1] != first[1] and go(kept(1), net=1) != first


def test_protocols_differ_from_the_second_phase_on(network: FlatModel) -> None:
    tests = [TensorBatches(kept(phase, seed=9).images, kept(phase, seed=9).labels) for phase in (0, 1)]
    found = {}
    for protocol in ("sequential", "sequential+kd"):
        settings = ContinualConfig(phases=2, protocol=protocol, kd_weight=100.0)
        lists = [learn(config(evaluation__epochs=5), settings, network, [kept(0), kept(1)], tests, net, "cpu") for net in range(4)]
        found[protocol] = lists
    assert [rows[0] for rows in found["sequential"]] == [rows[0] for rows in found["sequential+kd"]]
    assert found["sequential"] != found["sequential+kd"]


@pytest.mark.parametrize(("protocol", "heads"), [("scratch", [4, 4]), ("sequential", [2, 4]), ("sequential+kd", [2, 4])])
def test_heads_of_the_protocols(network: FlatModel, protocol: str, heads: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole one from scratch; else that of the classes seen, in the same network, which starts anew from scratch alone."""
    seen, starts, ends = [], [], []

    def spy(model: FlatModel, networks: Networks, *arguments: Any, **options: Any) -> list[Any]:
        seen.append(len(model(networks.thetas[0], torch.zeros(1, 1, 8, 8))[0]))
        starts.append(networks.thetas.clone())
        done = list(train_on(model, networks, *arguments, **options))
        ends.append(networks.thetas.clone())
        return done

    monkeypatch.setattr("raydd.continual_training.train_on", spy)
    tests = [TensorBatches(kept(phase).images, kept(phase).labels) for phase in (0, 1)]
    learn(config(), ContinualConfig(phases=2, protocol=protocol), network, [kept(0), kept(1)], tests, 0, "cpu")
    assert seen == heads
    first, second = (network.views(theta[0])["features.0.weight"] for theta in (ends[0], starts[1]))
    assert torch.equal(first, second) == (protocol != "scratch")


# Settings


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"phases": 0}, "--phases=0 must be at least 1"),
        ({"orders": 0}, "--orders=0 must be at least 1"),
        ({"kd_temperature": 0.0}, "--kd_temperature=0.0 must be a finite number above 0"),
        ({"kd_weight": -1.0}, "--kd_weight=-1.0 must be a finite number of at least 0"),
        ({"baselines": "random,best"}, "--baselines=random,best: 'best' is not a selection method; known: random"),
        ({"baselines": "random, random"}, "names a method more than once"),
        ({"protocol": "joint"}, "--protocol='joint' has the wrong type; allowed: 'scratch', 'sequential'"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check_continual(ContinualConfig(**settings))
    assert text in str(refused.value)


def test_phases_that_do_not_divide_the_classes_are_refused() -> None:
    assert classes_per_phase(ContinualConfig(phases=5), 100) == 20
    with pytest.raises(ConfigError, match=r"--phases=3: the data has 10 classes, which does not divide them\. Give one of 1, 2, 5\."):
        classes_per_phase(ContinualConfig(phases=3), 10)
    with pytest.raises(ConfigError, match="leaves a phase less than two"):
        classes_per_phase(ContinualConfig(phases=10), 10)


# The command

SMALL = ("--method", "dm", "--dm.batch_real", "8", "--data.classes", "1-4", "--model.width", "4", "--model.depth", "2", "--ipc", "2")
SMALL += ("--steps", "2", "--evaluation.epochs", "3", "--evaluation.nets", "2", "--evaluation.protocol", "dsa", "--workers", "0")
SMALL += ("--phases", "2", "--select.epochs", "1")


def continual(run: Path, *more: str) -> commands.Outcome:
    return commands.raydd("continual", "digits-mtt-ipc1", *SMALL, "--run", run, *more)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, commands.Outcome]:
    """To be read only."""
    run = tmp_path_factory.mktemp("continual") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("raydd.session.write_report", lambda path: path / "report.html")
        return run, continual(run)


def test_result_on_digits(finished: tuple[Path, commands.Outcome]) -> None:
    run, outcome = finished
    assert outcome.code == 0, outcome.err
    result = read_json(run / "continual.json")
    order = class_order(4, 0)
    assert result["orders"][0]["classes"] == [str(number + 1) for number in order]
    assert list(result["sources"]) == ["distilled", "random", "herding"] and result["images_per_class"] == 2
    phase = data.load(Config().data).test.labels
    images = [int(np.isin(phase, [number + 1 for number in order[first : first + 2]]).sum()) for first in (0, 2)]
    assert result["orders"][0]["test_images"] == images
    for own in result["sources"].values():
        assert own["networks"] == 2 and own["memory"]["images"] == [4, 8]
        matrices = [single["matrix"] for single in own["single"]]
        assert own == {**summary(matrices, [images] * 2), "memory": own["memory"], "single": own["single"]}
    assert result["sources"]["distilled"]["memory"]["bytes"] == [4 * 64 * 4, 8 * 64 * 4]
    assert result["sources"]["herding"]["memory"]["bytes"] == [4 * 64, 8 * 64]
    assert "after phase 2" in outcome.out and "distilled, classes of phase" in outcome.out and "herding" in outcome.out
    assert f"mean and std over 2 networks, protocol {result['protocol']}" in outcome.out


def test_phases_are_ordinary_runs(finished: tuple[Path, commands.Outcome]) -> None:
    run, _ = finished
    order = class_order(4, 0)
    for phase in (0, 1):
        settings = read_json(run / f"phase_{phase + 1:02d}" / "config.json")["config"]
        assert settings["data"]["classes"] == ",".join(str(number + 1) for number in order[2 * phase : 2 * phase + 2])
        assert (run / f"phase_{phase + 1:02d}" / "synthetic.safetensors").is_file()
    assert len(read_lines(run / "networks.jsonl")) == 6


def test_what_is_kept(finished: tuple[Path, commands.Outcome]) -> None:
    """Images with the labels of their places in the order: distilled ones as they stand in the phases' files, real ones as they are."""
    run, _ = finished
    own = from_dict(Config, read_json(run / "continual.json")["config"])
    settings, dataset = ContinualConfig(phases=2), data.load(own.data)
    order = order_of(own, Execution(device="cpu", workers=0), settings, run, dataset, 0)
    sources = kept_images(order, SelectConfig(epochs=1), lambda progress: None)
    assert {name: len(source.draws) for name, source in sources.items()} == {"distilled": 1, "random": 2, "herding": 1}
    for phase, one in enumerate(sources["distilled"].of(1)):
        # The ZCA of a phase is its own; in pixels its images are what they were.
        found = artifact.read(run / f"phase_{phase + 1:02d}" / "synthetic.safetensors")
        torch.testing.assert_close(order.transform.inverse(one.images), found.pixels(found.synthetic.images), atol=1e-4, rtol=1e-4)
        assert one.labels.tolist() == [2 * phase] * 2 + [2 * phase + 1] * 2 and one.stages.tolist() == [1] * 4 and one.stored == 2
    for name in ("random", "herding"):
        for one in (*sources[name].of(0), *sources[name].of(1)):
            pixels = order.transform.inverse(one.images).mul(255).round().numpy()
            for image, label in zip(pixels, one.labels.tolist(), strict=True):
                same = (dataset.train.images == image).all((1, 2, 3))
                assert dataset.train.labels[same].tolist() == [order.numbers[label]]
    assert not torch.equal(sources["random"].of(0)[0].images, sources["random"].of(1)[0].images)
    learned = [one.rates for one in sources["distilled"].of(0)]
    assert learned != [(0.01,)] * 2 and all([one.rates for one in sources[name].of(1)] == learned for name in ("random", "herding"))


def test_phases_whose_start_networks_were_trained_otherwise_are_refused(tmp_path: Path, no_report: None) -> None:
    """They train as the evaluation does, so that phases would come from two kinds of networks."""
    staged = ("--stages.count", "2", "--stages.networks", "1", "--stages.transition_epochs", "1", "--baselines", "")
    assert continual(tmp_path / "run", *staged).code == 0
    assert continual(tmp_path / "run", *staged, "--evaluation.epochs", "4").code == 0  # trains the networks anew, and nothing else
    told = continual(tmp_path / "run", *staged, "--evaluation.lr", "0.02").refusal()
    assert "the networks that stage 2 started from were trained as the run's evaluation did then" in told


def test_repeated_it_only_makes_what_is_missing(
    finished: tuple[Path, commands.Outcome], tmp_path: Path, no_report: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(finished[0], tmp_path / "run"))
    before = contents(run)
    shutil.rmtree(run / "phase_02")
    (run / "phase_01" / "synthetic.safetensors").unlink()
    with (run / "networks.jsonl").open("ab") as file:
        file.write(b'{"key": "to')
    monkeypatch.setattr("raydd.continual._train", _not_called)
    again = continual(run, "--json")
    assert again.code == 0, again.err
    after = contents(run)
    for name in ("continual.json", "networks.jsonl", "phase_01/metrics.jsonl", "phase_02/complete.json"):
        assert after[name] == before[name], name
    images, expected = (artifact.read(folder / "phase_01" / "synthetic.safetensors").synthetic.images for folder in (run, finished[0]))
    assert torch.equal(images, expected)
    assert json.loads(again.out) == {**json.loads(before["continual.json"]), "run": str(run)}


def _not_called(*arguments: Any) -> None:
    raise AssertionError("nothing is to be trained")


def test_another_protocol_takes_the_same_images(finished: tuple[Path, commands.Outcome], tmp_path: Path, no_report: None) -> None:
    run = Path(shutil.copytree(finished[0], tmp_path / "run"))
    before = contents(run)
    assert continual(run, "--protocol", "sequential+kd", "--baselines", "").code == 0
    after = contents(run)
    assert after["phase_02/synthetic.safetensors"] == before["phase_02/synthetic.safetensors"]
    result = read_json(run / "continual.json")
    assert list(result["sources"]) == ["distilled"] and len(read_lines(run / "networks.jsonl")) == 8


def test_other_settings_are_refused_by_the_phase(finished: tuple[Path, commands.Outcome], tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished[0], tmp_path / "run"))
    text = continual(run, "--model.width", "6").refusal()
    assert "phase_01 was distilled with other settings" in text and "--model.width=6 (the run has 4)" in text
    assert "another --run" in text and "--resume" not in text


def test_a_split_that_does_not_divide_is_refused(tmp_path: Path) -> None:
    text = continual(tmp_path / "run", "--phases", "3").refusal()
    assert "--phases=3: the data has 4 classes" in text and not (tmp_path / "run").exists()
