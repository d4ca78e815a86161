"""Flat SGD against torch.optim.SGD, and what a network's result may depend on."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from raydd.augment import dsa
from raydd.config import DSA_OPERATIONS, DSA_STRATEGY
from raydd.models import FlatModel
from raydd.rng import stream
from raydd.training import (
    Networks,
    Phase,
    Recipe,
    Streams,
    TensorBatches,
    accuracy,
    augmented,
    drop_once,
    fit,
    initial,
    sgd_,
    train_epoch,
)
from tests.helpers import model as small_model

PLAIN = Recipe(batch_size=8)
FULL = Recipe(batch_size=8, momentum=0.9, weight_decay=5e-3, strategy=DSA_STRATEGY)
PHASES = (Phase(0.05, 2), Phase(0.005, 2))


@pytest.fixture(scope="module")
def model() -> FlatModel:
    return small_model()


@pytest.fixture(scope="module")
def data(model: FlatModel) -> TensorBatches:
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(20) % model.classes
    return TensorBatches(torch.randn(20, *model.shape, generator=generator) + labels[:, None, None, None] / 2, labels)


def trained(model: FlatModel, data: TensorBatches, recipe: Recipe, indices: tuple[int, ...], **options: object) -> Networks:
    streams = Streams(1, "test", indices)
    networks = initial(model, streams, "cpu")
    for _ in fit(model, data, networks, PHASES, recipe, streams, **options):
        pass
    return networks


def by_torch(model: FlatModel, data: TensorBatches, recipe: Recipe, index: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The same training with torch.optim.SGD, its optimiser rebuilt where the rate changes."""
    theta = torch.nn.Parameter(model.init(stream(1, 0, "test-init", index)).to(dtype))
    epoch = 0
    for phase in PHASES:
        optimiser = torch.optim.SGD([theta], lr=phase.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay)
        for _ in range(phase.epochs):
            order = torch.randperm(len(data.labels), generator=stream(1, epoch, "test-order", index))
            augmentation = stream(1, epoch, "test-augment", index)
            for rows in order.split(recipe.batch_size):
                drawn = dsa.draw(augmentation, recipe.strategy, len(rows), 8, recipe.parameters)
                loss = F.cross_entropy(model(theta, dsa.apply(data.images[rows].to(dtype), drawn)), data.labels[rows])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
            epoch += 1
    return theta.detach()


@pytest.mark.parametrize("recipe", [PLAIN, FULL], ids=["plain", "full"])
def test_training_equals_torch_optim_bit_for_bit(model: FlatModel, data: TensorBatches, recipe: Recipe) -> None:
    networks = trained(model, data, recipe, (0, 5))
    for row, index in zip(networks.thetas, (0, 5), strict=True):
        assert torch.equal(row, by_torch(model, data, recipe, index))


@pytest.mark.parametrize("recipe", [PLAIN, FULL], ids=["plain", "full"])
def test_the_batched_pass_is_the_same_training(model: FlatModel, data: TensorBatches, recipe: Recipe) -> None:
    data = TensorBatches(data.images.double(), data.labels)
    streams = Streams(1, "test", (0, 5))
    networks = Networks(initial(model, streams, "cpu").thetas.double())
    for _ in fit(model, data, networks, PHASES, recipe, streams, vectorised=True):
        pass
    expected = torch.stack([by_torch(model, data, recipe, index, torch.float64) for index in (0, 5)])
    torch.testing.assert_close(networks.thetas, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("settings", [(0.0, 0.0), (0.0, 0.1), (0.9, 0.0), (0.9, 0.1)])
def test_one_step_equals_torch_optim_in_float64(settings: tuple[float, float]) -> None:
    momentum, weight_decay = settings
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(50, generator=generator, dtype=torch.float64)
    reference = torch.nn.Parameter(theta.clone())
    optimiser = torch.optim.SGD([reference], lr=0.3, momentum=momentum, weight_decay=weight_decay)
    recipe, velocity = Recipe(1, momentum, weight_decay), None
    for _ in range(4):
        gradient = torch.randn(50, generator=generator, dtype=torch.float64)
        reference.grad = gradient.clone()
        optimiser.step()
        velocity = sgd_(theta, gradient, velocity, 0.3, recipe)
    torch.testing.assert_close(theta, reference.detach(), rtol=1e-14, atol=1e-14)


def test_a_network_does_not_know_who_trains_beside_it(model: FlatModel, data: TensorBatches) -> None:
    alone = trained(model, data, FULL, (5,)).thetas[0]
    among = trained(model, data, FULL, (3, 5, 9, 11)).thetas
    assert torch.equal(alone, among[1])
    assert not torch.equal(among[0], among[1])


def test_training_goes_on_from_a_snapshot_with_equal_bits(model: FlatModel, data: TensorBatches) -> None:
    recipe = Recipe(batch_size=8, weight_decay=1e-3, strategy=DSA_STRATEGY)
    streams = Streams(1, "test", (2,))
    whole = initial(model, streams, "cpu")
    epochs = fit(model, data, whole, PHASES, recipe, streams)
    for _ in range(3):
        next(epochs)
    resumed = Networks(whole.thetas.clone())
    next(epochs)
    assert [epoch.number for epoch in fit(model, data, resumed, PHASES, recipe, streams, first_epoch=3)] == [4]
    assert torch.equal(whole.thetas, resumed.thetas)


def test_an_epoch_uses_every_image_once_in_an_order_of_its_own(model: FlatModel, data: TensorBatches) -> None:
    seen: list[Tensor] = []

    class Watched(TensorBatches):
        def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
            seen.append(indices)
            return super().batch(indices)

    watched = Watched(data.images, data.labels)
    streams = Streams(1, "test", (0, 1))
    networks = initial(model, streams, "cpu")
    for epoch in range(2):
        result = train_epoch(model, watched, networks, 0.01, PLAIN, streams, epoch)
        assert (result.number, result.images) == (epoch + 1, 40)
    assert [len(rows) for rows in seen] == [8, 8, 8, 8, 4, 4] * 2
    orders = [torch.cat(seen[first : first + 6][network::2]) for first in (0, 6) for network in (0, 1)]
    assert all(sorted(order.tolist()) == list(range(20)) for order in orders)
    assert len({tuple(order.tolist()) for order in orders}) == 4


def test_loss_and_accuracy_are_means_over_the_epoch(model: FlatModel, data: TensorBatches) -> None:
    streams = Streams(1, "test", (4,))
    networks = initial(model, streams, "cpu")
    logits = model(networks.thetas[0].clone(), data.images)
    # At rate 0 the network stands still, so the epoch's mean over uneven batches is the mean over all images.
    result = train_epoch(model, data, networks, 0.0, PLAIN, streams, 0)
    assert result.loss.item() == pytest.approx(F.cross_entropy(logits, data.labels).item(), rel=1e-6)
    assert result.accuracy.item() == pytest.approx((logits.argmax(1) == data.labels).float().mean().item())


def test_nothing_waits_for_the_device_inside_an_epoch(model: FlatModel, data: TensorBatches) -> None:
    class Refuse(TorchDispatchMode):
        def __torch_dispatch__(self, operation, types, arguments=(), options=None):  # type: ignore[no-untyped-def]
            assert "local_scalar_dense" not in str(operation), "a number was read from the device"
            return operation(*arguments, **(options or {}))

    streams = Streams(1, "test", (0, 1))
    networks = initial(model, streams, "cpu")
    with Refuse():
        result = train_epoch(model, data, networks, 0.01, Recipe(8, 0.9, 1e-3), streams, 0)
        with pytest.raises(AssertionError, match="read from the device"):
            result.loss[0].item()


def test_the_rate_drops_once() -> None:
    assert drop_once(10, 6, 1.0) == (Phase(1.0, 7), Phase(0.1, 3))
    assert drop_once(7, 6, 1.0) == (Phase(1.0, 7),)
    assert drop_once(2, 6, 1.0) == (Phase(1.0, 2),)


@pytest.mark.parametrize("batch_size", [None, 1, 7])
def test_accuracy_counts_hits(model: FlatModel, data: TensorBatches, batch_size: int | None) -> None:
    thetas = trained(model, data, PLAIN, (0, 1)).thetas
    expected = [(model(theta, data.images).argmax(1) == data.labels).float().mean() for theta in thetas]
    assert torch.equal(accuracy(model, thetas, data, batch_size), torch.stack(expected))


def test_training_leaves_the_data_as_it_was(model: FlatModel, data: TensorBatches) -> None:
    before = copy.deepcopy(data)
    trained(model, data, FULL, (0,))
    assert torch.equal(before.images, data.images)


@pytest.mark.parametrize("operation", DSA_OPERATIONS)
def test_draws_follow_the_images_to_their_device(operation: str) -> None:
    # The meta device computes nothing but refuses to mix with another one, as CUDA does.
    class Elsewhere:
        labels = torch.zeros(4, dtype=torch.int64, device="meta")

        def batch(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.empty(4, 3, 8, 8, device="meta"), self.labels

    recipe = Recipe(batch_size=4, strategy=operation)
    images, _ = augmented(Elsewhere(), torch.arange(4), stream(0, 0, "augment"), recipe)
    assert images.device.type == "meta"
