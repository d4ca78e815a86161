"""Predicted bytes against measured peaks of tensor memory."""

from collections.abc import Callable

import pytest
import torch

from raydd.config import ModelConfig
from raydd.matching import cafe, features, gradients
from raydd.matching.distances import idc_distance
from raydd.matching.memory import class_bytes
from raydd.models import build


def peak_bytes(work: Callable[[], object]) -> int:
    """The most bytes of tensors that `work` holds at once."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    events = sorted((e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns())
    held, peak = 0, 0
    for event in events:
        held += event.nbytes()
        peak = max(peak, held)
    return peak


@pytest.mark.parametrize("settings", [{}, {"width": 32}, {"norm": "none"}, {"norm": "batch"}, {"activation": "swish", "pooling": "max"}])
@pytest.mark.parametrize(("real", "synthetic"), [(40, 2), (6, 30)])
def test_bytes_of_a_class(settings: dict[str, object], real: int, synthetic: int) -> None:
    model = build(ModelConfig(**{"width": 16, "depth": 2, **settings}), (3, 16, 16), 4)
    theta, labels = model.init(torch.Generator().manual_seed(0)), torch.zeros(1, dtype=torch.int64)
    reals, images = (torch.zeros(1, count, 3, 16, 16) for count in (real, synthetic))
    target, distance = torch.zeros(1, model.size), idc_distance(model.layout)
    taken = max(
        peak_bytes(lambda: gradients.class_gradients(model, theta, reals, labels)),
        peak_bytes(lambda: gradients.match(model, theta, target, images, labels, distance)),
    )
    assert 0.9 * taken <= class_bytes(model, real, synthetic) <= 2.5 * taken


@pytest.mark.parametrize(
    "settings", [{}, {"width": 32, "norm": "none"}, {"norm": "batch"}, {"activation": "swish", "pooling": "max"}, {"name": "resnet10-thin"}]
)
@pytest.mark.parametrize(("real", "synthetic", "frozen"), [(40, 2, 0), (0, 30, 0), (0, 30, 20)])
def test_bytes_of_a_class_whose_features_are_matched(settings: dict[str, object], real: int, synthetic: int, frozen: int) -> None:
    """By hand, and under automatic derivatives towards the images; frozen images leave no graph but under a batch norm."""
    model = build(ModelConfig(**{"width": 16, "depth": 2, **settings}), (3, 16, 16), 4)
    theta, images = model.init(torch.Generator().manual_seed(0)), torch.zeros(1, synthetic, 3, 16, 16)
    target = features.mean_features(model, theta, images)
    taken = peak_bytes(lambda: features.match_features(model, theta, target, images, frozen=frozen))
    if real:
        taken = max(taken, peak_bytes(lambda: features.mean_features(model, theta, torch.zeros(1, real, 3, 16, 16))))
    assert 0.9 * taken <= class_bytes(model, real, synthetic, frozen, "features") <= 2.5 * taken + 6 * model.size * 4


@pytest.mark.parametrize("settings", [{}, {"norm": "none"}, {"norm": "batch"}, {"activation": "swish", "pooling": "max"}])
@pytest.mark.parametrize(("real", "synthetic"), [(40, 2), (0, 30)])
def test_bytes_of_a_class_whose_maps_are_matched(settings: dict[str, object], real: int, synthetic: int) -> None:
    model = build(ModelConfig(**{"width": 16, "depth": 2, **settings}), (3, 16, 16), 4)
    theta, reals, images = model.init(torch.Generator().manual_seed(0)), *(torch.zeros(1, n, 3, 16, 16) for n in (real or 2, synthetic))
    target = cafe.real_features(model, theta, reals)
    taken = peak_bytes(lambda: cafe.match(model, theta, target, images, (0.1,) * len(target.means)))
    if real:
        taken = max(taken, peak_bytes(lambda: cafe.real_features(model, theta, reals)))
    assert 0.9 * taken <= class_bytes(model, real, synthetic, 0, "maps") <= 2.5 * taken + 6 * model.size * 4


def test_other_devices_take_larger_chunks() -> None:
    model = build(ModelConfig(width=64), (3, 32, 32), 10)
    assert class_bytes(model, 256, 0, device="cuda") > 3 * class_bytes(model, 256, 0)
