"""EL2N by its formula, GraNd against the gradient of each image by itself, and the order of equal scores."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from raydd.config import ModelConfig
from raydd.coreset import el2n, grand, highest
from raydd.coreset.networks import features_of, scores_of
from raydd.errors import ConfigError, DataError
from raydd.models import FlatModel
from raydd.training import TensorBatches
from tests.helpers import model


@pytest.fixture(scope="module")
def network() -> FlatModel:
    return model()


@pytest.fixture(scope="module")
def theta(network: FlatModel) -> Tensor:
    return network.init(torch.Generator().manual_seed(0)).double()


def batches(network: FlatModel, count: int) -> TensorBatches:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, *network.shape, generator=generator, dtype=torch.float64)
    return TensorBatches(images, torch.randint(network.classes, (count,), generator=generator))


def test_el2n_by_hand() -> None:
    logits = torch.tensor([[math.log(1), math.log(2), math.log(1)], [0.0, 0.0, 900.0]], dtype=torch.float64)
    # Probabilities 1/4, 1/2, 1/4, and 0, 0, 1.
    expected = [math.sqrt(1 / 16 + 1 / 4 + 1 / 16), math.sqrt(2)]
    assert el2n(logits, torch.tensor([1, 0])).tolist() == pytest.approx(expected, rel=1e-12)
    assert el2n(logits, torch.tensor([1, 2]))[1] == 0


def test_grand_is_the_norm_of_each_images_own_gradient(network: FlatModel, theta: Tensor) -> None:
    # 205 images: read in batches of 200, of which the last is short.
    data = batches(network, 205)
    last = sum(math.prod(size) for name, size in network.layout if name.startswith("classifier"))
    expected = []
    for image, label in zip(data.images, data.labels, strict=True):
        leaf = theta.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(network(leaf, image[None]), label[None]), leaf)
        expected.append(gradient[-last:].norm())
    torch.testing.assert_close(scores_of("grand", network, theta, data), torch.stack(expected), rtol=1e-10, atol=0)


def test_el2n_of_a_network(network: FlatModel, theta: Tensor) -> None:
    data = batches(network, 205)
    chances = network(theta, data.images).softmax(1)
    expected = (chances - torch.eye(network.classes, dtype=torch.float64)[data.labels]).square().sum(1).sqrt()
    torch.testing.assert_close(scores_of("el2n", network, theta, data), expected, rtol=1e-12, atol=0)


def test_grand_counts_the_bias() -> None:
    logits, labels = torch.zeros(1, 2, dtype=torch.float64), torch.tensor([0])
    assert grand(logits, labels, torch.zeros(1, 3, dtype=torch.float64)).item() == pytest.approx(math.sqrt(0.5))
    assert grand(logits, labels, torch.tensor([[2.0, 2.0, 4.0]], dtype=torch.float64)).item() == pytest.approx(math.sqrt(0.5 * 25))


def test_features_of_several_networks_stand_side_by_side(network: FlatModel, theta: Tensor) -> None:
    data, rows = batches(network, 205), torch.tensor([204, 3, 7])
    found = features_of(network, [theta, 2 * theta], data, rows)
    one, two = (network.embed(some, data.images[rows]) for some in (theta, 2 * theta))
    assert torch.equal(found, torch.cat([one, two], 1))


def test_batch_normalisation_as_in_evaluation_mode() -> None:
    """With running statistics an image has the same features and score whatever stands beside it."""
    network = model(ModelConfig(width=8, depth=2, norm="batch"))
    data = batches(network, 6)
    theta = network.init(torch.Generator().manual_seed(0)).double()
    running = network.observe(theta, 3 + data.images, network.initial_statistics().double())[1]
    together = features_of(network, [theta], data, torch.arange(6), [running])
    torch.testing.assert_close(together[2:3], features_of(network, [theta], data, torch.tensor([2]), [running]))
    assert not torch.allclose(together, features_of(network, [theta], data, torch.arange(6)))
    one = TensorBatches(data.images[2:3], data.labels[2:3])
    for method in ("grand", "el2n"):
        found = scores_of(method, network, theta, data, running)
        torch.testing.assert_close(found[2:3], scores_of(method, network, theta, one, running))


def test_a_network_without_features_is_named() -> None:
    class Bare(torch.nn.Linear):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images.flatten(1))

    network = FlatModel(Bare(64, 4), (1, 8, 8), 4, model().config)
    theta = network.init(torch.Generator().manual_seed(0)).double()
    with pytest.raises(ConfigError, match="has no features to select by"):
        features_of(network, [theta], batches(network, 4), torch.arange(2))
    assert scores_of("el2n", network, theta, batches(network, 4)).shape == (4,)


def test_highest_first_and_equal_ones_by_the_second_then_in_order() -> None:
    scores, second = torch.tensor([1.0, 3.0, 1.0, 3.0, 1.0, math.inf]), torch.tensor([0.2, 0.1, 0.9, 0.1, 0.9, 0.0])
    assert highest(scores, 6).tolist() == [5, 1, 3, 0, 2, 4]
    assert highest(scores, 6, second).tolist() == [5, 1, 3, 2, 4, 0]
    assert highest(scores, 2, second).tolist() == [5, 1]


def test_refusals() -> None:
    for count in (0, 3):
        with pytest.raises(DataError, match="allowed: 1 to 2"):
            highest(torch.zeros(2), count)
    with pytest.raises(DataError, match="not a number"):
        highest(torch.tensor([0.0, math.nan]), 1)
