"""Training with batch normalisation and with mixed batches, against plain modules of torch."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from raydd.augment import cutmix, dc, diffaug
from raydd.config import ModelConfig
from raydd.models import FlatModel, build
from raydd.rng import stream
from raydd.training import Networks, Phase, Recipe, Streams, TensorBatches, accuracy, fit, initial
from tests.helpers import SMALL
from tests.helpers import model as small_model

RECIPE = Recipe(batch_size=8, momentum=0.9, weight_decay=5e-3)
PHASES = (Phase(0.1, 2), Phase(0.02, 2, carries=True))
STREAMS = Streams(1, "test", (0, 5))


@pytest.fixture(scope="module")
def data() -> TensorBatches:
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(20) % 4
    images = torch.randn(20, 1, 8, 8, generator=generator, dtype=torch.float64) + labels[:, None, None, None] / 2
    return TensorBatches(images, labels)


@pytest.fixture(scope="module")
def model() -> FlatModel:
    return small_model(replace(SMALL, norm="batch"))


def plain(model: FlatModel, theta: torch.Tensor) -> nn.Sequential:
    """The small ConvNet as anyone would write it."""
    layers = [nn.Conv2d(1, 8, 3, padding=3), nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d(2)]
    layers += [nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(72, 4)]
    module = nn.Sequential(*layers).double()
    nn.utils.vector_to_parameters(theta, module.parameters())
    return module


def by_torch(model: FlatModel, data: TensorBatches, index: int) -> nn.Sequential:
    """The training of network `index` with a module and torch.optim.SGD, whose rate drops without being rebuilt."""
    module = plain(model, model.init(stream(1, 0, "test-init", index)).double())
    optimiser = torch.optim.SGD(module.parameters(), lr=PHASES[0].lr, momentum=0.9, weight_decay=5e-3)
    for epoch in range(4):
        optimiser.param_groups[0]["lr"] = PHASES[epoch // 2].lr
        for rows in torch.randperm(20, generator=stream(1, epoch, "test-order", index)).split(8):
            optimiser.zero_grad()
            F.cross_entropy(module(data.images[rows]), data.labels[rows]).backward()
            optimiser.step()
    return module.eval()


def trained(model: FlatModel, data: TensorBatches, vectorised: bool) -> Networks:
    fresh = initial(model, STREAMS, "cpu", statistics=True)
    networks = Networks(fresh.thetas.double(), statistics=fresh.statistics.double())
    for _ in fit(model, data, networks, PHASES, RECIPE, STREAMS, vectorised=vectorised):
        pass
    return networks


@pytest.mark.parametrize("vectorised", [False, True], ids=["in turn", "together"])
def test_batch_normalisation_is_torchs(model: FlatModel, data: TensorBatches, vectorised: bool) -> None:
    networks = trained(model, data, vectorised)
    other = TensorBatches(data.images.flip(0)[:9] * 2, data.labels.flip(0)[:9])
    for place, index in enumerate(STREAMS.indices):
        module = by_torch(model, data, index)
        parameters = nn.utils.parameters_to_vector(module.parameters())
        torch.testing.assert_close(networks.thetas[place], parameters.detach(), rtol=1e-9, atol=1e-11)
        running = torch.cat([buffer for name, buffer in module.named_buffers() if "running" in name])
        torch.testing.assert_close(networks.statistics[place], running, rtol=1e-9, atol=1e-11)
        for size in (9, 2):  # how test images are batched must not matter
            tested = accuracy(model, networks.thetas, other, size, networks.statistics)[place]
            assert tested.item() == pytest.approx((module(other.images).argmax(1) == other.labels).float().mean().item())
        hits = (module.train()(other.images).argmax(1) == other.labels).float().mean()
        assert accuracy(model, networks.thetas, other)[place].item() == pytest.approx(hits.item())


def test_statistics_are_kept_on_request_only(model: FlatModel, data: TensorBatches) -> None:
    assert initial(model, STREAMS, "cpu").statistics is None
    assert initial(small_model(), STREAMS, "cpu", statistics=True).statistics is None
    fresh = initial(model, STREAMS, "cpu")
    without = Networks(fresh.thetas.double())
    for _ in fit(model, data, without, PHASES, RECIPE, STREAMS):
        pass
    assert without.statistics is None
    torch.testing.assert_close(without.thetas, trained(model, data, False).thetas, rtol=1e-12, atol=1e-14)


def test_a_phase_may_keep_its_momentum(data: TensorBatches) -> None:
    model, ends = small_model(), {}
    for carries in (False, True):
        networks = initial(model, STREAMS, "cpu")
        networks.thetas = networks.thetas.double()
        for _ in fit(model, data, networks, (Phase(0.1, 1), Phase(0.1, 1, carries=carries)), RECIPE, STREAMS):
            pass
        ends[carries] = networks.thetas
    once = initial(model, STREAMS, "cpu")
    once.thetas = once.thetas.double()
    for _ in fit(model, data, once, (Phase(0.1, 2),), RECIPE, STREAMS):
        pass
    assert torch.equal(ends[True], once.thetas) and not torch.equal(ends[False], once.thetas)


@pytest.mark.parametrize("family", ["diffaug", "dc"])
@pytest.mark.parametrize("vectorised", [False, True], ids=["in turn", "together"])
def test_batches_are_augmented_and_mixed(data: TensorBatches, family: str, vectorised: bool) -> None:
    strategy = {"diffaug": "color_crop_flip_scale_rotate", "dc": "crop_noise"}[family]
    recipe, model = replace(RECIPE, family=family, strategy=strategy, cutmix=0.5), small_model()
    networks = initial(model, STREAMS, "cpu")
    networks.thetas = networks.thetas.double()
    for _ in fit(model, data, networks, (Phase(0.1, 3),), recipe, STREAMS, vectorised=vectorised):
        pass
    seen = []
    for place, index in enumerate(STREAMS.indices):
        theta = torch.nn.Parameter(model.init(stream(1, 0, "test-init", index)).double())
        optimiser = torch.optim.SGD([theta], lr=0.1, momentum=0.9, weight_decay=5e-3)
        for epoch in range(3):
            generator = stream(1, epoch, "test-augment", index)
            for rows in torch.randperm(20, generator=stream(1, epoch, "test-order", index)).split(8):
                images, labels = data.images[rows], data.labels[rows]
                if family == "dc":
                    images = dc.apply(images, dc.draw(generator, strategy, images.shape))
                else:
                    images = diffaug.apply(images, diffaug.draw(generator, strategy, len(rows), 8, "per-image"))
                drawn = cutmix.draw(generator, len(rows), 8, 0.5)
                seen.append(drawn is not None)
                logits = model(theta, cutmix.apply(images, drawn))
                loss = F.cross_entropy(logits, labels, reduction="none")
                if drawn is not None:
                    others = F.cross_entropy(logits, labels[drawn.partners], reduction="none")
                    loss = drawn.ratio * loss + (1 - drawn.ratio) * others
                optimiser.zero_grad()
                loss.mean().backward()
                optimiser.step()
        torch.testing.assert_close(networks.thetas[place], theta.detach(), rtol=1e-9, atol=1e-11)
    assert {True, False} == set(seen)


def test_experts_and_students_know_no_running_statistics() -> None:
    """What `--model.norm batch` means to them: every forward pass normalises with the batch at hand."""
    model = build(ModelConfig(width=8, depth=2, norm="batch"), (1, 8, 8), 4)
    theta = model.init(stream(0, 0, "init"))
    images = torch.randn(6, 1, 8, 8, generator=stream(0, 0, "images"))
    assert not torch.allclose(model(theta, images)[:3], model(theta, images[:3]))
