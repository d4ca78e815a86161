"""Networks on real data: which images each update sees, and that it is SGD on these."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from raydd.config import Config, IDCConfig
from raydd.methods.networks import fresh
from raydd.methods.real_training import RealTraining
from raydd.types import Network
from tests.methods.contract import case, real_data, same

MODEL = case("idc").resources.model
PLAIN = IDCConfig(batch_net=8, net_images=20, net_strategy="none", mix_probability=0.0)
SIZES = [8, 8, 8, 8, 4]  # of the batches of a pass over 36 images


def training(settings: IDCConfig = PLAIN, seed: int = 0) -> RealTraining:
    return RealTraining(MODEL, real_data(), settings, seed)


def network(born: int = 0) -> Network:
    return fresh(case("idc").resources, Config(), born)


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The rows of every batch that any network is trained on."""
    seen: list[Tensor] = []

    def noted(self: RealTraining, theta: Tensor, velocity: Tensor, rows: Tensor, generator: torch.Generator) -> Tensor:
        seen.append(rows)
        return velocity

    monkeypatch.setattr(RealTraining, "_step", noted)
    return seen


def is_a_pass(rows: list[Tensor]) -> bool:
    return list(map(len, rows)) == SIZES and sorted(torch.cat(rows).tolist()) == list(range(36))


def test_updates_go_on_through_shuffled_passes(batches: list[Tensor]) -> None:
    """Three batches for twenty images. Five updates are three passes: one ends within the second update, one within the fourth."""
    for step in range(5):
        training().update(network(), step)
        assert len(batches) == 3 * (step + 1)
    passes = [batches[first : first + 5] for first in (0, 5, 10)]
    assert all(map(is_a_pass, passes))
    assert len({tuple(torch.cat(rows).tolist()) for rows in passes}) == 3


def test_any_update_finds_its_place(batches: list[Tensor]) -> None:
    for step in (0, 1, 2):
        training().update(network(), step)
    training().update(network(born=7), 1)
    assert all(torch.equal(one, other) for one, other in zip(batches[3:6], batches[9:12], strict=True))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (IDCConfig(batch_real=12, net_images=24), 2),
        (IDCConfig(batch_real=12, net_images=25), 3),
        (IDCConfig(batch_real=12, batch_net=5, net_images=1), 1),
        (IDCConfig(batch_net=500, net_images=2000), 56),  # batches cannot be larger than the set
    ],
)
def test_an_update_sees_at_least_so_many_images(batches: list[Tensor], settings: IDCConfig, expected: int) -> None:
    training(settings).update(network(), 0)
    assert len(batches) == expected == training(settings).update_batches()


def test_warming_up_has_passes_of_its_own_for_each_network(batches: list[Tensor]) -> None:
    training().warm_up(network(3), training().epoch_batches)
    assert is_a_pass(batches)
    training().warm_up(network(4), 5)
    training().update(network(), 0)
    assert len({tuple(torch.cat(rows).tolist()) for rows in (batches[:3], batches[5:8], batches[10:13])}) == 3
    training().warm_up(network(), 0)
    assert len(batches) == 13


def by_torch(start: Network, rows: list[Tensor], lr: float, momentum: float, decay: float) -> Tensor:
    theta, real = start.theta.clone().requires_grad_(), real_data()
    sgd = torch.optim.SGD([theta], lr, momentum, weight_decay=decay)
    for each in rows:
        sgd.zero_grad()
        cross_entropy(MODEL(theta, real.resident.images[each]), real.resident.labels[each]).backward()
        sgd.step()
    return theta.detach()


def rows_of(work: Callable[[], object]) -> list[Tensor]:
    with pytest.MonkeyPatch.context() as patch:
        seen: list[Tensor] = []
        patch.setattr(RealTraining, "_step", lambda self, theta, velocity, rows, generator: (seen.append(rows), velocity)[1])
        work()
    return seen


def test_updates_are_sgd_with_momentum_that_lasts() -> None:
    settings = replace(PLAIN, lr_net=0.05, momentum_net=0.8, weight_decay_net=0.02)
    trained = network()
    rows = rows_of(lambda: [training(settings).update(trained, step) for step in range(3)])
    for step in range(3):
        trained = training(settings).update(trained, step)
    torch.testing.assert_close(trained.theta, by_torch(network(), rows, 0.05, 0.8, 0.02), rtol=1e-4, atol=1e-6)


def test_warmed_up_networks_keep_their_momentum() -> None:
    warmed = training().warm_up(network(), 4)
    rows = rows_of(lambda: training().warm_up(network(), 4))
    torch.testing.assert_close(warmed.theta, by_torch(network(), rows, 0.01, 0.9, 5e-4), rtol=1e-4, atol=1e-6)
    assert warmed.velocity.any() and training().update(network(), 0).velocity.any()


def test_images_are_augmented_and_mixed_by_draws_of_their_own() -> None:
    ends = [training(settings).update(network(), 0).theta for settings in (PLAIN, replace(PLAIN, net_strategy="color_crop"))]
    ends += [training(replace(PLAIN, mix_probability=chance)).update(network(), 0).theta for chance in (0.5, 1.0)]
    assert len({end.sum().item() for end in ends}) >= 3
    usual = IDCConfig(batch_net=8, net_images=20)
    assert same(training(usual).update(network(), 5), training(usual).update(network(), 5))
    assert not torch.equal(training(usual).update(network(), 5).theta, training(usual, seed=1).update(network(), 5).theta)


def test_the_network_handed_over_is_left_alone() -> None:
    given = network()
    before = given.theta.clone()
    training().update(given, 0)
    assert torch.equal(given.theta, before) and not given.velocity.any()
