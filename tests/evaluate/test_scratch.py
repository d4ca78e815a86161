"""Training from scratch: against torch.optim, against chance, and in what it reports."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from raydd.augment import dsa
from raydd.config import Config
from raydd.coreset import random_rows
from raydd.errors import ConfigError, DataError
from raydd.evaluate import evaluate
from raydd.evaluate.scratch import sample_epochs
from raydd.rng import stream
from raydd.training import TensorBatches
from tests.evaluate.conftest import Digits


def with_evaluation(digits: Digits, **settings: object) -> Config:
    return replace(digits.config, evaluation=replace(digits.config.evaluation, **settings))


def real_images(digits: Digits, ipc: int) -> tuple[torch.Tensor, torch.Tensor]:
    return digits.train.batch(random_rows(digits.train.labels, 10, ipc, 0, "test"))


def test_it_learns_digits(digits: Digits) -> None:
    images, labels = real_images(digits, 10)
    config = with_evaluation(digits, epochs=12, batch_size=20)
    result = evaluate(config, digits.model, images, labels, 0.02, digits.test, "cpu")
    assert min(result.accuracies) > 0.5 and max(result.train_loss) < 1.5


def test_it_is_the_reference_recipe_on_torch_optim(digits: Digits) -> None:
    images, labels = real_images(digits, 2)
    result = evaluate(digits.config, digits.model, images, labels, 0.02, digits.test, "cpu", nets=2, seed=9)
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
    result = evaluate(digits.config, digits.model, images, labels, 0.2, digits.test, "cpu", nets=3, samples=4)
    assert len(result.accuracies) == len(result.train_loss) == 3 and len(set(result.accuracies)) > 1
    assert result.mean == pytest.approx(np.mean(result.accuracies)) and result.std == pytest.approx(np.std(result.accuracies, ddof=0))
    assert [epoch for epoch, _ in result.curve] == [1, 2, 3, 4] and result.curve[-1][1] == result.accuracies
    assert result.best == tuple(max(values) for values in zip(*(values for _, values in result.curve), strict=True))
    assert any(best > final for best, final in zip(result.best, result.accuracies, strict=True))
    assert result.best_mean == pytest.approx(np.mean(result.best))
    assert (result.protocol, result.epochs, result.lr) == ("mtt", 4, 0.2) and result.seconds > 0


def test_a_network_depends_on_seed_and_index_alone(digits: Digits) -> None:
    images, labels = real_images(digits, 2)
    arguments = (digits.config, digits.model, images, labels, 0.02, digits.test, "cpu")
    two, three = evaluate(*arguments, nets=2), evaluate(*arguments, nets=3, samples=1)
    assert evaluate(*arguments, nets=1, first=1).accuracies == two.accuracies[1:]
    assert two.accuracies == three.accuracies[:2] and [epoch for epoch, _ in three.curve] == [4]
    assert two.train_loss == three.train_loss[:2] != evaluate(*arguments, nets=2, seed=1).train_loss


def test_the_batched_pass_gives_the_same_networks(digits: Digits) -> None:
    images, labels = real_images(digits, 2)
    arguments = (digits.config, digits.model, images, labels, 0.02, digits.test, "cpu")
    assert evaluate(*arguments, together=True).train_loss == pytest.approx(evaluate(*arguments).train_loss, rel=1e-4)


def test_the_images_are_not_touched(digits: Digits) -> None:
    images, labels = real_images(digits, 1)
    images = images.requires_grad_()
    before = images.detach().clone()
    evaluate(digits.config, digits.model, images, labels, 0.02, digits.test, "cpu", nets=1, samples=1)
    assert torch.equal(before, images.detach()) and images.grad is None


def test_sampled_epochs_end_with_the_last() -> None:
    assert sample_epochs(1001, 10) == {100, 200, 300, 400, 500, 601, 701, 801, 901, 1001}
    assert sample_epochs(3, 10) == {1, 2, 3} and sample_epochs(1001, 1) == {1001}


def test_bad_input_is_refused_in_words(digits: Digits) -> None:
    images, labels = real_images(digits, 1)

    def run(images: torch.Tensor = images, labels: torch.Tensor = labels, lr: float = 0.01, **options: object) -> None:
        evaluate(digits.config, digits.model, images, labels, lr, TensorBatches(images, labels), "cpu", **options)

    for lr in (0.0, -0.01, float("nan")):
        with pytest.raises(ConfigError, match=r"must be above 0.*--evaluation\.lr"):
            run(lr=lr)
    with pytest.raises(DataError, match=r"\(10, 3, 8, 8\) images"):
        run(images=images.expand(-1, 3, -1, -1))
    with pytest.raises(DataError, match="9 labels"):
        run(labels=labels[:9])
    with pytest.raises(DataError, match=r"labels 1\.\.10 do not fit"):
        run(labels=labels + 1)
    with pytest.raises(ConfigError, match="known: mtt"):
        run(name="idc")
