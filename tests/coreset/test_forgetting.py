"""The count of what is forgotten: by hand, and along a training that is written out."""

import itertools
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from raydd.coreset import Forgetting, forgetting_scores
from raydd.coreset.forgetting import Counter, combined, load, save
from raydd.errors import CheckpointError, ConfigError
from raydd.models import FlatModel
from raydd.training import Phase, Recipe, Streams, TensorBatches, fit, initial
from tests.helpers import model

STREAMS = Streams(3, "test", (1,))
PHASES = (Phase(0.3, 5), Phase(0.1, 3))


def counted(visits: list[list[int]]) -> Forgetting:
    """One list for each visit, of whether each image was right."""
    counter = Counter(len(visits[0]))
    for visit in visits:
        # Two minibatches in another order than the images.
        for rows in torch.arange(len(visit)).flip(0).split(2):
            counter.see(rows, torch.tensor(visit, dtype=torch.bool)[rows])
    return counter.found()


def test_hand_made_sequences() -> None:
    sequences = [[0, 1, 0, 1, 1, 0], [0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1], [1, 0, 0, 1, 0, 0], [0, 0, 0, 0, 0, 1]]
    found = counted([list(visit) for visit in zip(*sequences, strict=True)])
    assert found.counts.tolist() == [2, 0, 0, 2, 0]
    assert found.never.tolist() == [False, True, False, False, False]
    assert found.ranking("zero").tolist() == [2, 0, 0, 2, 0]
    assert found.ranking("most").tolist() == [2, float("inf"), 0, 2, 0]


def test_mean_loss_over_visits() -> None:
    counter = Counter(3)
    for losses in ([1.0, 2.0], [3.0, 5.0]):
        counter.see(torch.tensor([2, 0]), torch.tensor([True, False]), torch.tensor(losses))
    assert counter.found().loss.tolist() == [3.5, 0.0, 2.0]


@pytest.fixture(scope="module")
def network() -> FlatModel:
    return model()


@pytest.fixture(scope="module")
def data(network: FlatModel) -> TensorBatches:
    generator = torch.Generator().manual_seed(2)
    return TensorBatches(torch.randn(22, *network.shape, generator=generator), torch.randint(4, (22,), generator=generator))


def recipe(strategy: str = "none") -> Recipe:
    return Recipe(batch_size=8, momentum=0.9, weight_decay=1e-3, strategy=strategy)


def test_predictions_of_the_minibatch_before_its_update(network: FlatModel, data: TensorBatches) -> None:
    theta, velocity = initial(network, STREAMS, "cpu").thetas[0].clone(), torch.zeros(network.size)
    seen: list[list[bool]] = [[] for _ in data.labels]
    losses: list[list[float]] = [[] for _ in data.labels]
    for epoch in range(8):
        if epoch == 5:
            velocity = torch.zeros(network.size)
        order = torch.randperm(22, generator=STREAMS.generators(epoch, "order")[0])
        for rows in (order[:8], order[8:16], order[16:]):
            logits = network(theta.requires_grad_(), data.images[rows])
            for row, logit in zip(rows.tolist(), logits.detach(), strict=True):
                seen[row].append(bool(logit.argmax() == data.labels[row]))
                losses[row].append(F.cross_entropy(logit, data.labels[row]).item())
            (gradient,) = torch.autograd.grad(F.cross_entropy(logits, data.labels[rows]), theta)
            velocity = 0.9 * velocity + gradient + 1e-3 * theta.detach()
            theta = theta.detach() - (0.3 if epoch < 5 else 0.1) * velocity
    found = forgetting_scores(network, data, PHASES, recipe(), STREAMS, "cpu")
    assert found.counts.tolist() == [sum(a and not b for a, b in itertools.pairwise(row)) for row in seen]
    assert found.never.tolist() == [not any(row) for row in seen]
    torch.testing.assert_close(found.loss, torch.tensor([sum(row) / 8 for row in losses], dtype=torch.float64), rtol=1e-4, atol=1e-6)
    # The example has every kind: otherwise it would show little.
    assert found.counts.max() >= 2 and found.never.any() and (found.counts == 0).any()


def test_the_network_is_that_of_every_other_training(network: FlatModel, data: TensorBatches) -> None:
    """Losses and accuracies on augmented batches, which a network that differs in a bit would not share."""
    augmented, told, phases = recipe("color_crop_flip"), [], (*PHASES[:1], Phase(0.1, 3, carries=True))
    forgetting_scores(network, data, phases, augmented, STREAMS, "cpu", lambda *epoch: told.append(epoch))
    epochs = list(fit(network, data, initial(network, STREAMS, "cpu"), phases, augmented, STREAMS))
    assert [number for number, _, _ in told] == [epoch.number for epoch in epochs] == list(range(1, 9))
    assert [accuracy for _, _, accuracy in told] == [epoch.accuracy.item() for epoch in epochs]
    assert [loss for _, loss, _ in told] == pytest.approx([epoch.loss.item() for epoch in epochs], rel=1e-6)


def test_mixed_images_are_refused(network: FlatModel, data: TensorBatches) -> None:
    with pytest.raises(ConfigError, match="no one right label"):
        forgetting_scores(network, data, PHASES, Recipe(batch_size=8, cutmix=0.5), STREAMS, "cpu")


def test_several_trainings_as_one() -> None:
    def part(counts: list[int], never: list[bool], loss: list[float]) -> Forgetting:
        return Forgetting(torch.tensor(counts), torch.tensor(never), torch.tensor(loss, dtype=torch.float64))

    found = combined([part([2, 0], [False, True], [1.0, 2.0]), part([1, 0], [False, False], [3.0, 2.0])])
    assert found.counts.tolist() == [3, 0] and found.never.tolist() == [False, False] and found.loss.tolist() == [2.0, 2.0]


def test_kept_in_a_file(tmp_path: Path) -> None:
    path, found = tmp_path / "forgetting.safetensors", counted([[0, 1, 1], [1, 0, 1]])
    save(path, found, {"fingerprint": "ab"})
    again, details = load(path)
    assert details == {"fingerprint": "ab"}
    for name in ("counts", "never", "loss"):
        one, two = (getattr(some, name) for some in (found, again))
        assert one.dtype == two.dtype and torch.equal(one, two)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=str(path)):
        load(path)
