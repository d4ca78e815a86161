"""The plan against the published count of bytes, and advice that fits when it is followed."""

import itertools
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from raydd import metagrad, plan
from raydd.config import Config, Execution, ModelConfig, override
from raydd.errors import ResourceError
from raydd.launch import predict as predict_without_data
from raydd.models import build
from raydd.plan import Plan, advice, gigabytes, kept_bytes, refuse_missing_devices, refuse_what_cannot_fit, worker_count
from raydd.recipes import load_recipe, recipe_names
from raydd.step_time import LOCAL
from tests.helpers import SMALL, model

GIGABYTE = 10**9
INLINE = Execution(workers=0, device="cpu")


def made(**changes: object) -> Plan:
    """A plan of round numbers: 1 MB for each inner step and 1 MB for each image of it, on a machine of 10 GB."""
    values = {
        "device": "cpu", "grad_mode": "adjoint", "parameters": 1000, "images": 100, "batch": 100, "inner_steps": 20, "candidates": 3,
        "workers": 1, "step_bytes": 10**6, "image_bytes": 10**6, "process": 10**8, "experts": 0, "available": 10 * GIGABYTE,
    }  # fmt: skip
    return Plan(**{**values, **changes})


# Counting


@pytest.mark.parametrize(
    ("depth", "side", "classes", "step", "image"),
    [(3, 32, 10, 2_560_088, 2_958_464), (3, 32, 100, 4_035_368, 2_959_544), (4, 64, 200, 6_857_288, 11_917_672)],
)
def test_bytes_of_an_inner_step(depth: int, side: int, classes: int, step: int, image: int) -> None:
    """specs/mtt_pdd.md section 6.1, measured there with another program: unique storage saved for double back-propagation."""
    counted = kept_bytes(build(ModelConfig(width=128, depth=depth), (3, side, side), classes))
    # Within half a percent: which scalars and statistics are kept differs between versions of torch.
    assert counted == (pytest.approx(step, rel=0.005), pytest.approx(image, rel=0.005))


def test_bytes_are_linear_in_the_batch() -> None:
    network = model(SMALL)
    step, image = kept_bytes(network)
    assert plan._kept_by(network, 7) == step + 7 * image


def test_memory_of_a_plan() -> None:
    found = made()
    assert found.graph == int(1.1 * 1.6 * (10**6 + 100 * 10**6))
    assert found.kept == 3 * 21 * 1000 * 4
    assert found.worker_bytes == found.graph + found.kept + 10**8
    assert replace(found, grad_mode="unroll").graph == int(1.1 * 20.6 * 101 * 10**6)
    assert replace(found, grad_mode="tesla").graph == found.graph


def test_workers_share_memory_and_candidates() -> None:
    one = made(available=made().worker_bytes)
    two = replace(one, workers=2)
    assert one.fits and not two.fits
    assert (one.share, two.share, replace(one, workers=3).share) == (3, 2, 1)
    assert two.kept < one.kept
    # On GPUs each worker has a device of its own.
    assert replace(two, device="cuda").fits


@pytest.mark.parametrize("width", [8, 32])
@pytest.mark.parametrize("mode", ["adjoint", "unroll"])
def test_graph_is_what_a_gradient_takes(mode: str, width: int) -> None:
    """Peak of tensor memory in a whole gradient of N steps, against the prediction without its margin for the process."""
    network, count, steps = model(replace(SMALL, width=width)), 20, 4
    step, image = kept_bytes(network)
    predicted = made(grad_mode=mode, step_bytes=step, image_bytes=image, batch=count, inner_steps=steps)
    start, target = (network.init(torch.Generator().manual_seed(seed)) for seed in range(2))
    batch = metagrad.InnerBatch(torch.arange(count), None)
    place = (target, torch.randn(count, *network.shape), torch.zeros(count, dtype=torch.int64), torch.tensor(0.01), (batch,) * steps)
    if mode == "unroll":
        taken = peak_bytes(lambda: metagrad.unroll(network, start, *place))
        assert predicted.graph / plan.MARGIN == pytest.approx(taken, rel=0.05)
        return
    for derivatives in (metagrad.autograd_derivatives(network), metagrad.derivatives_of(network)):
        thetas = metagrad.walk(derivatives, start, *place[1:])
        taken = peak_bytes(lambda d=derivatives, t=thetas: metagrad.adjoint(d, t, *place))
        assert taken <= predicted.graph
    assert predicted.graph <= 1.6 * taken  # and not without measure


def peak_bytes(work: Callable[[], object]) -> int:
    """Most bytes of CPU tensors that were allocated at once while `work()` ran."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    events = (event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]")
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(itertools.accumulate(changes))


@pytest.mark.parametrize(
    ("name", "parameters", "images", "batch", "snapshots"),
    [
        ("cifar10-mtt-ipc10", 320_010, 100, 100, 22),
        ("cifar100-mtt-ipc50", 504_420, 5000, 125, 42),
        ("tiny-imagenet-mtt-ipc50", 857_160, 10_000, 300, 42),
    ],
)
def test_prediction_needs_no_data(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, parameters: int, images: int, batch: int, snapshots: int
) -> None:
    monkeypatch.setenv("RAYDD_DATA", str(tmp_path / "absent"))
    monkeypatch.setattr("raydd.plan._seconds", lambda work: 2.0)
    recipe = load_recipe(name)
    found = predict_without_data(recipe.config, INLINE)
    assert (found.parameters, found.images, found.batch) == (parameters, images, batch)
    assert found.experts == 100 * snapshots * parameters * 4
    # What the recipe says is what the plan says.
    unrolled = replace(found, grad_mode="unroll")
    assert recipe.hardware == (
        f"{gigabytes(found.worker_bytes)} for a worker ({gigabytes(unrolled.worker_bytes)} with grad_mode unroll) "
        f"and {gigabytes(found.experts)} of experts, as raydd plan predicts"
    )


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_states_its_memory(name: str) -> None:
    assert "for a worker" in load_recipe(name).hardware and "as raydd plan predicts" in load_recipe(name).hardware


def test_seconds_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """N times what was measured on at most 32 images, scaled to the batch; the reverse walk reuses the score's."""
    taken = iter([0.5, 2.0] * 4)
    monkeypatch.setattr("raydd.plan._seconds", lambda work: next(taken))
    network = model(SMALL, classes=4)  # 16 images an ipc step of 4
    settings = {"ipc": 16, "mtt.syn_steps": 5, "experts.count": 3}
    one = plan.predict(override(Config(), settings), INLINE, network)
    assert (one.score_seconds, one.update_seconds) == (0.5 * 5 * 2, 2.0 * 5 * 2)
    assert one.step_seconds == one.score_seconds + one.update_seconds
    three = plan.predict(override(Config(), {**settings, "selection.candidates": 3}), INLINE, network)
    assert three.step_seconds == 3 * three.score_seconds + three.update_seconds
    assert one.transport_seconds == three.transport_seconds == 0
    monkeypatch.setattr("raydd.plan.cores", lambda: 4)
    shared = plan.predict(override(Config(), {**settings, "selection.candidates": 3}), replace(INLINE, workers=3), network)
    # Four calls in two rounds; 64 images of 64 numbers go out, their gradient comes back.
    assert shared.transport_seconds == pytest.approx(2 * LOCAL.round + 4 * LOCAL.call + 2 * 64 * 64 * 4 * LOCAL.byte)
    assert shared.step_seconds == pytest.approx(shared.score_seconds + shared.update_seconds + shared.transport_seconds)
    # Two workers of two threads have the four cores; of three, one waits half of the time.
    crowded = plan.predict(override(Config(), {**settings, "selection.candidates": 3}), replace(INLINE, workers=3, threads=2), network)
    assert crowded.step_seconds == pytest.approx(shared.step_seconds + 0.5 * shared.score_seconds)


def test_what_is_measured_runs() -> None:
    found = plan.predict(override(Config(), {"mtt.syn_steps": 2}), INLINE, model(SMALL))
    assert found.score_seconds > 0 and found.update_seconds > 0
    assert plan.predict(Config(), INLINE, model(SMALL), timed=False).step_seconds is None


# Refusing


def test_what_fits_is_not_refused() -> None:
    refuse_what_cannot_fit(made(available=made().worker_bytes))
    with pytest.raises(ResourceError, match="needs about"):
        refuse_what_cannot_fit(made(available=made().worker_bytes - 1))


ADJOINT = "--mtt.grad_mode adjoint (the same gradient in constant memory)"
SMALLER = "--mtt.batch_syn {} (changes results)"


@pytest.mark.parametrize(
    ("tight", "words"),
    [
        (made(grad_mode="unroll", available=10**9), [ADJOINT]),
        (made(grad_mode="unroll", workers=2, available=2 * 10**9 + 5 * 10**8), [ADJOINT, "--workers 1"]),
        (made(grad_mode="unroll", workers=3, available=300 * 10**6), [f"{ADJOINT} with --workers 1"]),
        (made(workers=3, available=300 * 10**6), ["--workers 1"]),
        # 1.1 x 1.6 x 56 MB beside 100 MB.
        (made(available=200 * 10**6), [SMALLER.format(55)]),
        (made(device="cuda", workers=3, available=200 * 10**6), [SMALLER.format(55)]),
        (made(workers=2, available=220 * 10**6), ["--workers 1 with " + SMALLER.format(67)]),
        (made(available=90 * 10**6), []),
    ],
)
def test_advice(tight: Plan, words: list[str]) -> None:
    assert not tight.fits
    assert advice(tight) == words


TIGHT = [
    made(grad_mode=mode, workers=workers, device=device, available=available)
    for mode in ("adjoint", "unroll")
    for workers in (1, 2, 3)
    for device in ("cpu", "cuda")
    for available in (101 * 10**6, 103 * 10**6, 110 * 10**6, 150 * 10**6, 250 * 10**6, 400 * 10**6, 10**9, 3 * 10**9)
]


def followed(plan: Plan, text: str) -> Plan:
    """The plan with the settings that an advice names."""
    words = text.replace(" with ", " ").split()
    changes: dict[str, object] = {"grad_mode": "adjoint"} if "--mtt.grad_mode" in words else {}
    for flag, field in (("--workers", "workers"), ("--mtt.batch_syn", "batch")):
        if flag in words:
            changes[field] = int(words[words.index(flag) + 1])
    assert changes
    return replace(plan, **changes)


@pytest.mark.parametrize(
    "tight", [plan for plan in TIGHT if not plan.fits], ids=lambda p: f"{p.device}-{p.grad_mode}-{p.workers}-{p.available}"
)
def test_advice_fits_when_followed(tight: Plan) -> None:
    ways = advice(tight)
    for way in ways:
        assert followed(tight, way).fits
    smallest = (
        replace(tight, grad_mode="adjoint", workers=1, batch=1) if tight.device == "cpu" else replace(tight, grad_mode="adjoint", batch=1)
    )
    assert bool(ways) == smallest.fits
    with pytest.raises(ResourceError) as caught:
        refuse_what_cannot_fit(tight)
    assert all(way in str(caught.value) for way in ways or ["a device with more memory"])


def test_largest_batch_is_the_largest() -> None:
    tight = made(available=2 * 10**8)
    assert replace(tight, batch=tight.largest_batch).fits
    assert not replace(tight, batch=tight.largest_batch + 1).fits


def test_free_memory_is_what_the_system_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raydd.plan.available_bytes", lambda device: 12345)
    found = plan.predict(Config(), INLINE, model(SMALL), timed=False)
    assert found.available == 12345 and not found.fits


# Devices


def test_worker_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raydd.plan.cores", lambda: 4)
    many = override(Config(), {"selection.candidates": 9})
    assert worker_count(many, Execution(device="cpu")) == 4
    assert worker_count(Config(), Execution(device="cpu")) == 1
    assert [worker_count(many, Execution(workers=count)) for count in (0, 1, 7)] == [0, 1, 7]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert worker_count(many, Execution(device="cuda")) == 2


def test_devices_of_a_cluster_are_not_judged_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raydd.plan.cores", lambda: 4)
    refuse_missing_devices(Config(), Execution(threads=4))
    refuse_missing_devices(Config(), Execution(threads=99, workers=99, address="10.0.0.1:6379"))
    with pytest.raises(ResourceError, match="--threads=5 is more than the 4 cores"):
        refuse_missing_devices(Config(), Execution(threads=5))
    assert plan.cores() == 4 and os.cpu_count()


@pytest.mark.parametrize(("seconds", "text"), [(0.51, "0.5 s"), (59, "59.0 s"), (90, "1.5 min"), (9000, "2.5 h")])
def test_durations_for_people(seconds: float, text: str) -> None:
    assert plan.duration(seconds) == text


@pytest.mark.parametrize(("count", "text"), [(5, "0.0 MB"), (64 * 10**6, "64.0 MB"), (10**8, "0.10 GB"), (44_450_000_000, "44.45 GB")])
def test_bytes_for_people(count: int, text: str) -> None:
    assert gigabytes(count) == text
