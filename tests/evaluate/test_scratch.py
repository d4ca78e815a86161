"""Training from scratch: against torch.optim, against chance, and in what it reports."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from raydd.augment import cutmix, diffaug, dsa
from raydd.config import Config, ModelConfig
from raydd.coreset import random_rows
from raydd.errors import ConfigError, DataError
from raydd.evaluate import TrainingSet, evaluate
from raydd.models import build
from raydd.rng import stream
from raydd.training import Recipe, Streams, TensorBatches, drop_once, fit, initial
from tests.evaluate.conftest import Digits


def with_evaluation(digits: Digits, **settings: object) -> Config:
    return replace(digits.config, evaluation=replace(digits.config.evaluation, **settings))


def real_images(digits: Digits, ipc: int) -> tuple[torch.Tensor, torch.Tensor]:
    return digits.train.batch(random_rows(digits.train.labels, 10, ipc, 0, "test"))


def test_it_learns_digits(digits: Digits) -> None:
    images, labels = real_images(digits, 10)
    config = with_evaluation(digits, epochs=12, batch_size=20)
    result = evaluate(config, digits.model, [TrainingSet(images, labels, 0.02)], digits.test, "cpu")
    assert min(result.accuracies) > 0.5 and max(result.train_loss) < 1.5


def test_it_is_the_reference_recipe_on_torch_optim(digits: Digits) -> None:
    images, labels = real_images(digits, 2)
    result = evaluate(digits.config, digits.model, [TrainingSet(images, labels, 0.02)], digits.test, "cpu", nets=2, seed=9)
    for index in range(2):
        theta = torch.nn.Parameter(digits.model.init(stream(9, 0, "evaluation-init", index)))
        optimiser = torch.optim.SGD([theta], lr=0.02, momentum=0.9, weight_decay=5e-4)
        for epoch in range(4):
            augmentation = stream(9, epoch, "evaluation-augment", index)
            for rows in torch.randperm(20, generator=stream(9, epoch, "evaluation-order", index)).split(8):
                drawn = dsa.draw(augmentation, digits.config.augment.strategy, len(rows), 8, "per-image")
                optimiser.zero_grad()
                F.cross_entropy(digits.model(theta, dsa.apply(images[rows], drawn)), labels[rows]).backward()
                optimiser.step()
            if epoch == 3 // 2 + 1:
                optimiser = torch.optim.SGD([theta], lr=0.02 * 0.1, momentum=0.9, weight_decay=5e-4)
        hits = digits.model(theta, digits.test.images).argmax(1) == digits.test.labels
        assert result.accuracies[index] == pytest.approx(hits.float().mean().item(), abs=1e-7)


def test_numbers_are_summed_up_as_the_reference_does(digits: Digits) -> None:
    images, labels = real_images(digits, 2)
    result = evaluate(with_evaluation(digits, samples=4), digits.model, [TrainingSet(images, labels, 0.2)], digits.test, "cpu", nets=3)
    assert len(result.accuracies) == len(result.train_loss) == 3 and len(set(result.accuracies)) > 1
    assert result.mean == pytest.approx(np.mean(result.accuracies)) and result.std == pytest.approx(np.std(result.accuracies, ddof=0))
    assert [epoch for epoch, _ in result.curve] == [1, 2, 3, 4] and result.curve[-1][1] == result.accuracies
    assert result.best == tuple(max(values) for values in zip(*(values for _, values in result.curve), strict=True))
    assert any(best > final for best, final in zip(result.best, result.accuracies, strict=True))
    assert result.best_mean == pytest.approx(np.mean(result.best))
    assert (result.settings.protocol, result.settings.epochs, result.epochs, result.lr) == ("mtt", 3, 4, 0.2) and result.seconds > 0


def test_a_network_depends_on_seed_and_index_alone(digits: Digits) -> None:
    images, labels = real_images(digits, 2)
    arguments = (digits.config, digits.model, [TrainingSet(images, labels, 0.02)], digits.test, "cpu")
    two = evaluate(*arguments, nets=2)
    three = evaluate(with_evaluation(digits, samples=1), *arguments[1:], nets=3)
    assert evaluate(*arguments, nets=1, first=1).accuracies == two.accuracies[1:]
    assert two.accuracies == three.accuracies[:2] and [epoch for epoch, _ in three.curve] == [4]
    assert two.train_loss == three.train_loss[:2] != evaluate(*arguments, nets=2, seed=1).train_loss


def test_the_batched_pass_gives_the_same_networks(digits: Digits) -> None:
    images, labels = real_images(digits, 2)
    arguments = (digits.config, digits.model, [TrainingSet(images, labels, 0.02)], digits.test, "cpu")
    assert evaluate(*arguments, together=True).train_loss == pytest.approx(evaluate(*arguments).train_loss, rel=1e-4)


def test_the_images_are_not_touched(digits: Digits) -> None:
    images, labels = real_images(digits, 1)
    images = images.requires_grad_()
    before = images.detach().clone()
    evaluate(digits.config, digits.model, [TrainingSet(images, labels, 0.02)], digits.test, "cpu", nets=1)
    assert torch.equal(before, images.detach()) and images.grad is None


def test_bad_input_is_refused_in_words(digits: Digits) -> None:
    images, labels = real_images(digits, 1)

    def run(images: torch.Tensor = images, labels: torch.Tensor = labels, lr: float = 0.01, **options: object) -> None:
        evaluate(digits.config, digits.model, [TrainingSet(images, labels, lr)], TensorBatches(images, labels), "cpu", **options)

    for lr in (0.0, -0.01, float("nan")):
        with pytest.raises(ConfigError, match=r"must be above 0.*--evaluation\.lr"):
            run(lr=lr)
    with pytest.raises(DataError, match=r"\(10, 3, 8, 8\) images"):
        run(images=images.expand(-1, 3, -1, -1))
    with pytest.raises(DataError, match="9 labels"):
        run(labels=labels[:9])
    with pytest.raises(DataError, match=r"labels 1\.\.10 do not fit"):
        run(labels=labels + 1)
    with pytest.raises(ConfigError, match="--evaluation.protocol=tmm is not .* known: cafe, cafe-dsa, dc, dm, dsa, idc, mtt"):
        evaluate(with_evaluation(digits, protocol="tmm"), digits.model, [TrainingSet(images, labels, 0.1)], digits.test, "cpu")
    with pytest.raises(ConfigError, match="--evaluation.epochs=0 is no training in the protocol idc"):
        evaluate(with_evaluation(digits, protocol="idc", epochs=0), digits.model, [TrainingSet(images, labels, 0.1)], digits.test, "cpu")


def test_every_pass_is_told(digits: Digits) -> None:
    images, labels = real_images(digits, 1)
    for together, told in ((False, [2] * 4), (True, [2] * 4)):
        heard: list[int] = []
        evaluate(
            digits.config, digits.model, [TrainingSet(images, labels, 0.02)], digits.test, "cpu", together=together, on_pass=heard.append
        )
        assert heard == told


def test_idcs_recipe_on_torch_optim(digits: Digits) -> None:
    images, labels = real_images(digits, 2)
    config = with_evaluation(digits, protocol="idc", epochs=7, batch_size=None, strategy="crop_scale_rotate")
    result = evaluate(config, digits.model, [TrainingSet(images, labels, 0.02)], digits.test, "cpu", nets=1, seed=9)
    theta = torch.nn.Parameter(digits.model.init(stream(9, 0, "evaluation-init")))
    optimiser = torch.optim.SGD([theta], lr=0.02, momentum=0.9, weight_decay=5e-4)
    rates = torch.optim.lr_scheduler.MultiStepLR(optimiser, [4, 5], gamma=0.2)
    curve = []
    for epoch in range(7):
        generator = stream(9, epoch, "evaluation-augment")
        rows = torch.randperm(20, generator=stream(9, epoch, "evaluation-order"))
        seen = diffaug.apply(images[rows], diffaug.draw(generator, "crop_scale_rotate", 20, 8, "per-image"))
        mixed = cutmix.draw(generator, 20, 8, 0.5)
        optimiser.zero_grad()
        cutmix.cross_entropy(digits.model(theta, cutmix.apply(seen, mixed)), labels[rows], mixed).backward()
        optimiser.step()
        rates.step()
        curve.append((digits.model(theta, digits.test.images).argmax(1) == digits.test.labels).float().mean().item())
    assert [number for number, _ in result.curve] == [1, 2, 3, 4, 5, 6, 7]
    assert [accuracies[0] for _, accuracies in result.curve] == pytest.approx(curve, abs=1e-7)
    assert result.best == pytest.approx([max(curve)], abs=1e-7) and result.lr == 0.02 and result.settings.batch_size == 64


def test_batch_normalisation_is_tested_with_running_statistics(digits: Digits) -> None:
    images, labels = real_images(digits, 2)
    model = build(ModelConfig(width=8, depth=2, norm="batch"), (1, 8, 8), 10)
    arguments = (with_evaluation(digits, augment="none", samples=1), model, [TrainingSet(images, labels, 0.02)])
    test = TensorBatches(digits.test.images[:50], digits.test.labels[:50])
    result = evaluate(*arguments, test, "cpu", nets=1)
    networks, streams = (
        initial(model, Streams(digits.config.seed, "evaluation", (0,)), "cpu", statistics=True),
        Streams(0, "evaluation", (0,)),
    )
    for _ in fit(model, TensorBatches(images, labels), networks, drop_once(4, 2, 0.02), Recipe(8, 0.9, 5e-4), streams):
        pass
    hits = model(networks.thetas[0], test.images, networks.statistics[0]).argmax(1) == test.labels
    assert result.accuracies[0] == pytest.approx(hits.float().mean().item())
    # One image at a time has no statistics of its own to speak of.
    alone = [TensorBatches(test.images[place : place + 1], test.labels[place : place + 1]) for place in range(50)]
    assert np.mean([evaluate(*arguments, one, "cpu", nets=1).mean for one in alone[:2]]) == hits[:2].float().mean()


def test_a_last_batch_of_one_image_is_refused_where_it_cannot_be(digits: Digits) -> None:
    images, labels = real_images(digits, 1)
    model = build(ModelConfig(name="resnet10-thin", norm="batch"), (1, 8, 8), 10)
    config = with_evaluation(digits, batch_size=3, augment="none")
    with pytest.raises(ConfigError, match="--evaluation.batch_size=3 leaves one image of 10 .* resnet10-thin"):
        evaluate(config, model, [TrainingSet(images, labels, 0.02)], digits.test, "cpu")
