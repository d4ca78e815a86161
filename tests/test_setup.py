"""From settings to objects: the start images, and evaluations that are what they say."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from raydd.config import Config, EvaluationConfig, Execution, ModelConfig
from raydd.data import Resident, class_indices
from raydd.decode import Decoding, uniform
from raydd.errors import ConfigError, DataError
from raydd.evaluate import TrainingSet, evaluate
from raydd.method_config import IDCConfig
from raydd.progressive import of_stage, up_to
from raydd.rng import stream
from raydd.setup import Evaluator, Setup, compared, initial_set, prepare, random_job, real_images, synthetic_job
from raydd.stage_config import StagesConfig
from raydd.types import SyntheticSet

CONFIG = Config(ipc=2, model=ModelConfig(width=8, depth=2), evaluation=EvaluationConfig(nets=3, epochs=2, batch_size=8))


@pytest.fixture(scope="module")
def setup() -> Setup:
    return prepare(CONFIG, Execution())


def test_start_images_are_real_ones_of_their_class(setup: Setup) -> None:
    synthetic = initial_set(setup)
    train = Resident.load(setup.dataset.train, setup.transform)
    assert synthetic.labels.tolist() == [label for label in range(10) for _ in range(2)]
    for image, label in zip(synthetic.images, synthetic.labels, strict=True):
        assert (train.images[class_indices(train.labels, int(label))] == image).flatten(1).all(1).any()


def test_noise_is_standard_normal_and_follows_the_seed(setup: Setup) -> None:
    noise = [initial_set(replace(setup, config=replace(CONFIG, init="noise", ipc=20, seed=seed))).images for seed in (0, 0, 1)]
    assert torch.equal(noise[0], noise[1]) and not torch.equal(noise[0], noise[2])
    assert noise[0].mean().abs() < 0.03 and noise[0].std() == pytest.approx(1, abs=0.03)


def test_the_baseline_has_another_draw_for_each_net_and_the_rate_of_the_synthetic_set(setup: Setup) -> None:
    synthetic = replace(initial_set(setup), step_size=torch.tensor(0.037))
    ours, random = synthetic_job(CONFIG, synthetic, 7), random_job(setup, synthetic, 7)
    assert ours.images.shape[0] == 1 and random.images.shape[0] == 3
    assert len({draw.numpy().tobytes() for draw in random.images}) == 3
    assert ours.lr == random.lr == pytest.approx(0.037) and ours.step == random.step == 7
    assert (ours.kind, random.kind) == ("synthetic", "random")
    fixed = replace(CONFIG, evaluation=replace(CONFIG.evaluation, lr=0.2))
    assert synthetic_job(fixed, synthetic, 7).lr == random_job(replace(setup, config=fixed), synthetic, 7).lr == 0.2


def test_networks_are_tested_on_the_test_split(setup: Setup) -> None:
    synthetic = initial_set(setup)
    record = Evaluator(setup)(synthetic_job(CONFIG, synthetic, 4))
    test = Resident.load(setup.dataset.test, setup.transform)
    expected = evaluate(CONFIG, setup.model, [TrainingSet(synthetic.images, synthetic.labels, 0.01)], test, "cpu")
    assert record["accuracies"] == list(expected.accuracies) and record["nets"] == 3 and record["step"] == 4
    assert record["accuracy_mean"] == pytest.approx(np.mean(expected.accuracies))
    assert record["accuracy_std"] == pytest.approx(np.std(expected.accuracies))


def test_each_net_of_the_baseline_sees_its_own_draw(setup: Setup) -> None:
    synthetic = initial_set(setup)
    record = Evaluator(setup)(random_job(setup, synthetic, 0))
    test = Resident.load(setup.dataset.test, setup.transform)
    for net in range(3):
        images = real_images(setup, "random-baseline", net)
        alone = evaluate(CONFIG, setup.model, [TrainingSet(images, synthetic.labels, 0.01)], test, "cpu", 1, first=net)
        assert record["accuracies"][net] == alone.accuracies[0]


def test_several_images_in_one_are_taken_apart_and_normalised_before_training(setup: Setup) -> None:
    synthetic = initial_set(setup)
    stored = torch.rand(20, 1, 8, 8, generator=stream(0, 0, "x")) * 1.2 - 0.1
    job = synthetic_job(CONFIG, replace(synthetic, images=stored), 0, Decoding("pixels", 2))
    images, labels = setup.transform.forward(uniform(stored, 2)), synthetic.labels.repeat(4)
    test = Resident.load(setup.dataset.test, setup.transform)
    expected = evaluate(CONFIG, setup.model, [TrainingSet(images, labels, 0.01)], test, "cpu")
    assert Evaluator(setup)(job).get("accuracies") == list(expected.accuracies)


def test_jobs_know_how_their_images_are_stored(setup: Setup) -> None:
    idc = replace(setup, config=replace(CONFIG, method="idc", init="mix", idc=IDCConfig(factor=2)))
    synthetic = initial_set(idc)
    assert synthetic.images.min() >= 0 and synthetic.images.max() <= 1
    assert synthetic_job(idc.config, synthetic, 0).decoding == Decoding("pixels", 2)
    assert random_job(idc, synthetic, 0).decoding == Decoding() == synthetic_job(CONFIG, synthetic, 0).decoding
    assert torch.equal(random_job(idc, synthetic, 0).images[0], real_images(setup, "random-baseline", 0))


def test_patches_of_mixed_images_are_shrunk_real_ones_of_their_class(setup: Setup) -> None:
    idc = replace(setup, config=replace(CONFIG, method="idc", init="mix", idc=IDCConfig(factor=2)))
    train = setup.dataset.train
    shrunk = train.images[:, :, ::2, ::2].astype(np.float32) / 255
    for image, label in zip(initial_set(idc).images.numpy(), initial_set(idc).labels.tolist(), strict=True):
        for y, x in ((0, 0), (0, 4), (4, 0), (4, 4)):
            patch = image[:, y : y + 4, x : x + 4]
            assert (np.abs(shrunk[train.labels == label] - patch).max(axis=(1, 2, 3)) < 1e-6).any()


@pytest.mark.parametrize(("method", "factor"), [("mtt", 1), ("dm", 1), ("idc", 1), ("idc", 2)])
def test_the_first_images_are_those_of_each_class_in_data_order(setup: Setup, method: str, factor: int) -> None:
    """Whole, or as many in each stored one as the factor says; a later stage goes on where the one before it ended."""
    first = replace(setup, config=replace(CONFIG, method=method, init="first", idc=IDCConfig(factor=factor)))
    train, count = setup.dataset.train, 2 * factor**2
    for stage in (1, 2):
        found = initial_set(first, stage)
        for label in (0, 7):
            rows = np.flatnonzero(train.labels == label)[(stage - 1) * count : stage * count]
            pixels = torch.from_numpy(train.images[rows]).float() / 255
            images = found.images[found.labels == label]
            if method == "idc":
                corner = pixels[:2, :, ::factor, ::factor]
                assert torch.equal(images[..., : 8 // factor, : 8 // factor], corner) and images.shape[-1] == 8
            else:
                torch.testing.assert_close(setup.transform.inverse(images), pixels, rtol=0, atol=1e-5)
    with pytest.raises(ConfigError, match="--init=first with --ipc=2"):
        initial_set(first, 200)


@pytest.mark.parametrize("kind", ["single", "multi", "bound"])
def test_passes_are_counted_for_the_images_as_decoded(setup: Setup, kind: str) -> None:
    decoding, evaluation = Decoding("training", 2, kind, 3), replace(CONFIG.evaluation, epochs=20, same_compute=True)
    config = replace(CONFIG, evaluation=evaluation)
    heard: list[int] = []
    evaluator = Evaluator(replace(setup, config=config), heard.append)
    job = synthetic_job(config, initial_set(setup), 0, decoding)
    views = 5 if kind == "multi" else 4
    record = evaluator(job)
    assert record["settings"]["epochs"] == 20 // views and record["epochs"] == 20 // views + 1
    assert sum(heard) == evaluator.passes(job) == 3 * record["epochs"]


def staged(setup: Setup, stages: int = 3, ipc: int = 2) -> SyntheticSet:
    """`ipc` images of each class in every stage, by stage within a class."""
    wide = replace(setup, config=replace(setup.config, ipc=ipc * stages))
    own = torch.arange(1, stages + 1).repeat_interleave(ipc).repeat(10)
    return replace(initial_set(wide), stages=own)


SIZES = (0.01, 0.02, 0.03)


def test_the_rates_of_stages_are_those_that_they_learned(setup: Setup) -> None:
    synthetic = staged(setup)
    job = synthetic_job(CONFIG, synthetic, 5, step_sizes=(*SIZES[:2], torch.tensor(0.03)))
    assert job.rates == pytest.approx(SIZES) and job.lr == job.rates[-1] and torch.equal(job.stages, synthetic.stages)
    assert random_job(setup, synthetic, 5, SIZES).rates == SIZES
    fixed = replace(CONFIG, evaluation=replace(CONFIG.evaluation, lr=0.2))
    assert synthetic_job(fixed, synthetic, 5, step_sizes=SIZES).rates == (0.2, 0.2, 0.2)
    for sizes in ((), (0.01,), (0.01,) * 4):
        with pytest.raises(DataError, match="learned step sizes for images of 3 stages"):
            synthetic_job(CONFIG, synthetic, 5, step_sizes=sizes)


@pytest.mark.parametrize("mode", ["progressive", "union", "sequential"])
def test_a_staged_set_is_trained_on_as_the_mode_says(setup: Setup, mode: str) -> None:
    """Against sets put together from the rules of stages."""
    synthetic, test = staged(setup), Resident.load(setup.dataset.test, setup.transform)
    config = replace(CONFIG, evaluation=replace(CONFIG.evaluation, stages=mode))
    heard: list[int] = []
    evaluator = Evaluator(replace(setup, config=config), heard.append)
    job = synthetic_job(config, synthetic, 5, step_sizes=SIZES)
    record = evaluator(job)
    sequence = {
        "progressive": [(up_to(synthetic, stage), SIZES[stage - 1]) for stage in (1, 2, 3)],
        "union": [(synthetic, SIZES[-1])],
        "sequential": [(of_stage(synthetic, stage), SIZES[stage - 1]) for stage in (1, 2, 3)],
    }[mode]
    sets = [TrainingSet(own.images, own.labels, rate) for own, rate in sequence]
    expected = evaluate(config, setup.model, sets, test, "cpu")
    assert record["accuracies"] == list(expected.accuracies) and record["stages"] == mode and record["updates"] == expected.updates
    rows = record["by_stage"]
    assert [row["accuracy_mean"] for row in rows] == pytest.approx([np.mean(one) for one in expected.stages])
    assert [row["accuracy_std"] for row in rows] == pytest.approx([np.std(one) for one in expected.stages])
    wanted = [(3, 6, 0.03)] if mode == "union" else [(1, 2, 0.01), (2, 4, 0.02), (3, 6, 0.03)]
    assert [(row["stage"], row["ipc"], row["lr"]) for row in rows] == wanted
    assert rows[-1]["accuracy_mean"] == record["accuracy_mean"] and sum(heard) == evaluator.passes(job) == 3 * record["epochs"]


def test_the_baseline_of_a_staged_set_has_different_images_in_all_stages(setup: Setup) -> None:
    synthetic = staged(setup)
    job = random_job(setup, synthetic, 5, SIZES)
    assert job.images.shape == (3, 60, 1, 8, 8) and torch.equal(job.stages, synthetic.stages) and torch.equal(job.labels, synthetic.labels)
    train = Resident.load(setup.dataset.train, setup.transform)
    for draw in job.images:
        assert len({image.numpy().tobytes() for image in draw}) == 60
        for image, label in zip(draw, job.labels, strict=True):
            assert (train.images[class_indices(train.labels, int(label))] == image).flatten(1).all(1).any()
    record, ours = Evaluator(setup)(job), Evaluator(setup)(synthetic_job(CONFIG, synthetic, 5, step_sizes=SIZES))
    assert (record["epochs"], record["updates"], record["nets"]) == (ours["epochs"], ours["updates"], 3)
    assert [len(record["by_stage"]), len(set(record["accuracies"]))] == [3, 3]
    beside = compared(ours, record)
    assert (beside["stages"], beside["by_stage"], beside["random_by_stage"]) == ("progressive", ours["by_stage"], record["by_stage"])


def test_one_stage_is_spoken_of_as_ever(setup: Setup) -> None:
    record = Evaluator(setup)(synthetic_job(CONFIG, initial_set(setup), 0))
    assert not {"stages", "by_stage"} & record.keys() and record["updates"] == 3 * 3
    assert not {"stages", "by_stage", "random_by_stage"} & compared(record, record).keys()


def test_the_same_compute_knows_all_stored_images(setup: Setup) -> None:
    """Four views of each stored image, of whatever stage."""
    config = replace(CONFIG, evaluation=replace(CONFIG.evaluation, epochs=8, same_compute=True, batch_size=80))
    job = synthetic_job(config, staged(setup), 0, Decoding("training", 2), SIZES)
    evaluator = Evaluator(replace(setup, config=config))
    assert evaluator.passes(job) == 3 * evaluator(job)["epochs"] == 3 * 3 * (round(2 * 8 / 4) // 4 + 1)


def test_what_a_later_stage_cannot_be_evaluated_by_is_refused_at_the_start() -> None:
    five = replace(CONFIG, stages=StagesConfig(5), init="noise")
    with pytest.raises(DataError, match=r"--ipc=30 in --stages.count=5 stages is more than the 124 .* at most 24"):
        prepare(replace(five, ipc=30), Execution())
    prepare(replace(five, ipc=30, evaluation=replace(five.evaluation, at_end=False)), Execution())
    batch = replace(five, ipc=1, model=ModelConfig("resnet10-thin", norm="batch"), evaluation=replace(five.evaluation, batch_size=29))
    with pytest.raises(ConfigError, match="leaves one image of 30"):
        prepare(batch, Execution())
