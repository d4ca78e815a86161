"""The plan of methods whose networks train: memory against what a step takes, the chunk that the method too will take, and advice."""

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from raydd.config import Config, Execution, override
from raydd.errors import ResourceError
from raydd.methods import chunks
from raydd.methods.chunks import Chunks
from raydd.models import build
from raydd.plan import PROCESS_BYTES
from raydd.plan_networks import NetworkPlan, frozen_images, network_rows, predict_networks, refuse_networks
from tests.methods.contract import CLASSES, SHAPE, case, settings

INLINE = Execution(workers=0, device="cpu")


def planned(config: Config, execution: Execution = INLINE, classes: int = CLASSES) -> NetworkPlan:
    return predict_networks(config, execution, build(config.model, SHAPE, classes), 36, timed=False)


def peak_bytes(work: Callable[[], object]) -> int:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(itertools.accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


@pytest.mark.parametrize("name", ["dsa", "dm", "cafe", "dreamplus"])
@pytest.mark.parametrize("changes", [{}, {"model__activation": "swish"}, {"model__norm": "batch"}])
def test_a_step_takes_what_is_predicted(name: str, changes: dict) -> None:
    more = {"dc__batch_real": 12, "dm__batch_real": 12, "cafe__batch_real": 12, "idc__batch_real": 12, "model__width": 16, **changes}
    found = case(name, **more)
    made, plan = found.fresh(), planned(found.config)
    made.update(found.synthetic, found.candidates[0], found.entry.draw(found.config, found.synthetic, 1, 0))
    taken = peak_bytes(lambda: made.update(found.synthetic, found.candidates[0], found.draws))
    predicted = plan.graph + plan.gradients + plan.batches
    assert 0.95 * taken <= predicted <= 4 * taken
    assert plan.worker_bytes == PROCESS_BYTES + predicted + plan.resident + 16 * plan.parameters


@pytest.mark.parametrize("name", ["dc", "dm", "cafe", "idc"])
def test_the_chunk_is_that_of_the_method(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With memory for all classes, and for two and a half; CAFE has no derivatives by hand, so free memory decides nothing."""
    found, eight = case(name), replace(INLINE, threads=8)
    each, free = planned(found.config).each, [1 << 40]
    monkeypatch.setattr(chunks, "free_bytes", lambda device: free[0])
    monkeypatch.setattr(chunks.torch, "get_num_threads", lambda: 8)
    for free[0], chunk in ((1 << 40, CLASSES), (int(2.5 * each / chunks.SHARE), CLASSES if name == "cafe" else 2)):
        seen: list[int] = []
        with pytest.MonkeyPatch.context() as patch:
            of = Chunks.of
            patch.setattr(Chunks, "of", lambda self, of=of, seen=seen, **place: seen.append(of(self, **place)) or seen[-1])
            found.fresh().update(found.synthetic, found.candidates[0], found.draws)
        assert planned(found.config, eight).chunk == min(seen) == chunk
    assert planned(found.config).chunk == (CLASSES if name == "cafe" else 1)


def test_frozen_images_take_less() -> None:
    plans = [planned(settings("idc", ipc=8, stages__count=stages, idc__batch_real=4)) for stages in (1, 3)]
    whole = planned(settings("idc", ipc=24, idc__batch_real=4))
    assert plans[1].synthetic == whole.synthetic == 96 and plans[0].graph <= plans[1].graph < whole.graph
    assert [frozen_images(settings("dm", ipc=4, stages__count=stages), 4 * stages) for stages in (1, 2, 3)] == [0, 4, 8]
    many = settings("idc", ipc=8, stages__count=3, idc__batch_syn_max=40)
    assert frozen_images(many, 40) == 8, "at most the stage's own 32 of the 40 are free"
    assert frozen_images(settings("dm", ipc=4, stages__count=3, stages__frozen_lr_scale=0.1), 12) == 0
    assert frozen_images(settings("dm", ipc=4, stages__count=3, stages__conditioning=False), 4) == 0


def test_what_does_not_fit_is_refused_with_what_does() -> None:
    config = settings("cafe", cafe__class_chunk=CLASSES, model__width=64)
    plan = planned(config)
    assert plan.cuttable and plan.chunk == CLASSES
    refuse_networks(plan)
    tight = replace(plan, available=plan.worker_bytes - 1)
    with pytest.raises(ResourceError, match=rf"{CLASSES} of {CLASSES} classes at once.*Use --cafe.class_chunk 1\.$"):
        refuse_networks(tight)
    assert replace(tight, chunk=1).fits
    for hopeless in (replace(tight, cuttable=False), replace(tight, available=1)):
        with pytest.raises(ResourceError, match="Use a device with more memory"):
            refuse_networks(hopeless)


def test_chunk_and_its_bytes_are_shown() -> None:
    config = settings("cafe")
    plan = replace(planned(config), chunk=2, each=5_000_000)
    rows = dict(network_rows(config, plan))
    assert rows["  classes at once"] == f"11.0 MB: 2 of {CLASSES}, each 5.0 MB"
    assert {"  images of a step", "  what is matched"} <= rows.keys()


def test_seconds_of_a_step_with_its_share_of_the_selection(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"score_seconds": 1.0, "update_seconds": 4.0, "train_seconds": 3.0}
    config = settings("idc", selection__candidates=4, selection__pool=4, selection__policy="dynadistill", idc__inner_steps=20)
    monkeypatch.setattr("raydd.plan.cores", lambda: 4)
    inline, two = (replace(planned(config, replace(INLINE, workers=workers)), **seconds) for workers in (0, 2))
    assert (inline.between, inline.traffic, inline.step_seconds) == (20, None, pytest.approx(4 / 20 + 4 + 3))
    assert two.step_seconds == pytest.approx(2 / 20 + 4 + two.step_time.transport)  # trained beside the update
    often = replace(planned(override(config, {"selection.every": 2})), **seconds)
    assert often.step_seconds == pytest.approx(4 / 2 + 4 + 3)
    alone = replace(planned(settings("dm")), **seconds, candidates=1)
    assert alone.step_seconds == pytest.approx(4 + 3) and alone.between == 1
    assert "calls of workers" in dict(network_rows(config, two)) and planned(config).step_seconds is None
