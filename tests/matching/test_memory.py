"""Predicted bytes against measured peaks of tensor memory."""

from collections.abc import Callable

import pytest
import torch

from raydd.config import ModelConfig
from raydd.matching import gradients
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
