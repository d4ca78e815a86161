"""The prediction for methods whose networks train between updates: bytes of a worker, seconds of a step.

Memory is what the path that really runs takes: a chunk of classes (`raydd.methods.chunks`, which the method asks too) at the peak of
each (`raydd.matching.memory`), what is found of the real images of all classes, the images of a step, the real images and the
networks. Seconds are those of the method itself on two classes of random images, scaled to all.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from raydd.config import Config, Execution
from raydd.data import RealData, Resident, Transform
from raydd.data.resident import FLOAT_BUDGET
from raydd.decode import count, sources
from raydd.devices import resolve
from raydd.errors import ResourceError
from raydd.matching.memory import Matched
from raydd.methods import method
from raydd.methods.base import NetworkRules, Resources, slot_count
from raydd.methods.chunks import Chunks
from raydd.models import FlatModel, build
from raydd.plan import (
    MARGIN,
    PROCESS_BYTES,
    Transition,
    available_bytes,
    devices_for,
    gigabytes,
    matched_stages,
    step_text,
    worker_count,
)
from raydd.rng import stream
from raydd.step_time import StepTime, Traffic, Work, network_traffic, step_time
from raydd.types import Candidate, SyntheticSet

PROBE_CLASSES = 2
REAL_COPIES, SYNTHETIC_COPIES = 4, 8
"""Images that are held for each image of a step: taken, normalised and augmented, the synthetic ones decoded before, with a graph."""


@dataclass(frozen=True)
class NetworkPlan:
    """A prediction for one run: bytes for each worker, seconds for each step.

    section           of the settings that holds `batch_real` and `class_chunk`
    images            synthetic images that the last stage matches with
    real, synthetic   images of a class in a step, the second after decoding
    chunk, each       classes in memory at once, in the pass that takes most, and the bytes of one of them
    cuttable          whether a smaller chunk takes less
    gradients         bytes of what is found of the real images of all classes: gradients, or features
    batches           bytes of the images of a step, augmented
    resident          bytes of the real images
    slots             networks in the pool; each is sent with its momentum
    beside            whether networks train without a look at the synthetic set, beside an update
    available         free memory of the device now; `sharing` workers divide it
    devices           cores or GPUs that the workers have
    between           image updates for each selection of a network
    traffic           what a step sends; None where everything is in one process
    *_seconds         None where nothing was measured
    transitions       the beginnings of later stages
    """

    device: str
    section: str
    parameters: int
    images: int
    real: int
    synthetic: int
    classes: int
    chunk: int
    each: int
    cuttable: bool
    gradients: int
    batches: int
    resident: int
    slots: int
    candidates: int
    workers: int
    beside: bool
    available: int
    devices: int = 1
    between: int = 1
    traffic: Traffic | None = None
    score_seconds: float | None = None
    update_seconds: float | None = None
    train_seconds: float | None = None
    transitions: tuple[Transition, ...] = ()

    @property
    def sharing(self) -> int:
        """Workers that share the free memory: all on a CPU, one on each GPU."""
        return self.workers if self.device == "cpu" else 1

    @property
    def graph(self) -> int:
        """Bytes that the classes of a chunk take at their peak."""
        return int(MARGIN * self.chunk * self.each)

    @property
    def worker_bytes(self) -> int:
        """Memory that one worker needs at its peak."""
        return PROCESS_BYTES + self.resident + self.gradients + self.batches + self.graph + 4 * self.parameters * 4

    @property
    def fits(self) -> bool:
        """Whether the workers that share a device fit into its free memory."""
        return self.worker_bytes * self.sharing <= self.available

    @property
    def step_time(self) -> StepTime | None:
        """An image update with the training of its network, beside one another where two workers can, and its share of the selection.

        What networks begin with is apart.
        """
        if self.score_seconds is None or self.update_seconds is None or self.train_seconds is None:
            return None
        seconds = (self.score_seconds, self.update_seconds, self.update_seconds)
        work = Work(*seconds, self.candidates, train=self.train_seconds, beside=self.beside, between=self.between)
        return step_time(work, self.workers, self.devices, self.traffic)

    @property
    def step_seconds(self) -> float | None:
        """All of it; None where nothing was measured."""
        return self.step_time and self.step_time.total


def predict_networks(config: Config, execution: Execution, model: FlatModel, train_images: int, timed: bool = True) -> NetworkPlan:
    """Predict a run of `config`, whose method trains networks, on `train_images` real images; `timed` measures a step on two classes."""
    entry, device = method(config.method), resolve(execution.device)
    section = next(iter(entry.rates(config))).partition(".")[0]
    settings = getattr(config, section)
    real = getattr(settings, "batch_real", 0)
    stored = config.ipc * matched_stages(config)
    synthetic = min(count(entry.decoding(config), stored), getattr(settings, "batch_syn_max", math.inf))
    frozen = frozen_images(config, synthetic)
    matched, given = entry.matched(config), getattr(settings, "class_chunk", None)
    # IDC's family keeps batch statistics of features class by class, as it does those of gradients.
    chunks = Chunks(model, device, matched, given, apart=section == "idc", threads=execution.threads)
    passes = [(chunks.of(*place), chunks.bytes(*place)) for place in ((real, 0, 0), (0, synthetic, frozen))]
    chunk, each = max(passes, key=lambda one: one[0] * one[1])
    between, traffic = _sent(config, entry.networks, model, model.classes * stored)
    plan = NetworkPlan(
        device=device.type,
        section=section,
        parameters=model.size,
        images=model.classes * stored,
        real=real,
        synthetic=synthetic,
        classes=model.classes,
        chunk=chunk,
        each=each,
        cuttable=chunks.cuttable and hasattr(settings, "class_chunk"),
        gradients=_found_bytes(model, matched, real),
        batches=model.classes * (REAL_COPIES * real + SYNTHETIC_COPIES * synthetic) * math.prod(model.shape) * 4,
        resident=min(train_images * math.prod(model.shape) * 4, FLOAT_BUDGET),
        slots=slot_count(config, entry.networks),
        candidates=config.selection.candidates,
        workers=max(1, worker_count(config, execution)),
        beside=entry.networks.independent,
        available=available_bytes(device),
        devices=devices_for(max(1, worker_count(config, execution)), execution),
        between=between,
        traffic=traffic if worker_count(config, execution) else None,
    )
    return replace(plan, **_timed(config, model, real, synthetic, device)) if timed else plan


def _sent(config: Config, rules: NetworkRules, model: FlatModel, images: int) -> tuple[int, Traffic]:
    """(image updates for each selection, what a step sends to workers and back)."""
    length = rules.length(config)
    between = min(config.selection.every or length, length)
    # A network travels with its momentum. One whose lifetime is a single update is not trained.
    sizes = (4 * images * math.prod(model.shape), 8 * model.size)
    return between, network_traffic(config.selection.candidates, *sizes, between, trains=length > 1 or rules.trains_last)


def frozen_images(config: Config, synthetic: int) -> int:
    """Of the `synthetic` decoded images of a class in a step of the last stage, how many at least are held fixed."""
    stages, decoding = matched_stages(config), method(config.method).decoding(config)
    if stages == 1 or config.stages.frozen_lr_scale:
        return 0
    held = sources(decoding, config.ipc * stages) < config.ipc * (stages - 1)
    return max(0, synthetic - int((~held).sum()))


def _found_bytes(model: FlatModel, matched: Matched, real: int) -> int:
    """What a step finds of the real images of all classes and compares: gradients (C, P), mean features (C, F), or CAFE's (C, n, F)."""
    if matched == "gradients":
        return 2 * model.classes * model.size * 4
    numbers = model.embed(model.init(stream(0, 0, "plan")), torch.zeros(2, *model.shape)).shape[1]
    return 2 * model.classes * numbers * 4 * (real if matched == "maps" else 1)


def refuse_networks(plan: NetworkPlan) -> None:
    """Raise `ResourceError` with the numbers, and with settings that fit, when the workers exceed the free memory."""
    if plan.fits:
        return
    ways = []
    if plan.chunk > 1 and plan.cuttable and replace(plan, chunk=1).fits:
        ways.append(f"--{plan.section}.class_chunk 1")
    fewer = [replace(plan, workers=workers) for workers in range(plan.workers - 1, 0, -1)]
    ways += [f"--workers {found.workers}" for found in fewer if found.fits][:1]
    raise ResourceError(
        f"Each of {plan.workers} worker(s) needs about {gigabytes(plan.worker_bytes)} ({gigabytes(plan.graph)} for {plan.chunk} of "
        f"{plan.classes} classes at once), but {plan.device} has {gigabytes(plan.available)} free for {plan.sharing}. "
        f"Use {' or '.join(ways) or 'a device with more memory'}."
    )


def network_rows(config: Config, plan: NetworkPlan) -> list[tuple[str, str]]:
    """The prediction for people."""
    rows = [
        ("device", f"{plan.device}, {gigabytes(plan.available)} free"),
        ("network", f"{plan.parameters:,} parameters"),
        ("synthetic images", f"{plan.images}; {plan.synthetic} of a class in a step, beside {plan.real} real ones"),
        ("candidates, slots, workers", f"{plan.candidates}, {plan.slots}, {plan.workers}"),
        ("memory of a worker", gigabytes(plan.worker_bytes)),
        ("  classes at once", f"{gigabytes(plan.graph)}: {plan.chunk} of {plan.classes}, each {gigabytes(plan.each)}"),
        ("  images of a step", gigabytes(plan.batches)),
        ("  what is matched", gigabytes(plan.gradients)),
        ("  real images", gigabytes(plan.resident)),
    ]
    if plan.step_seconds is not None:
        rows += [
            ("score of a candidate", f"{plan.score_seconds:.3g} s"),
            ("image update", f"{plan.update_seconds:.3g} s"),
            ("network training", f"{plan.train_seconds:.3g} s"),
            ("calls of workers", f"{plan.step_time.transport:.3g} s"),
            ("a step", step_text(config, plan.step_seconds)),
        ]
    return rows


def _timed(config: Config, model: FlatModel, real: int, synthetic: int, device: torch.device) -> dict[str, float]:
    """Seconds of a score, an update and a network's training, from two classes."""
    entry = method(config.method)
    small = build(config.model, model.shape, PROBE_CLASSES)
    generator = stream(0, 0, "plan-probe")
    most = max(real, getattr(config.cafe, "queries", 0) if config.method == "cafe" else 0, synthetic, 1)
    labels = torch.arange(PROBE_CLASSES).repeat_interleave(most)
    transform = Transform.standard(model.shape, (0.5,) * model.shape[0], (0.25,) * model.shape[0]).to(device)
    images = torch.randn(len(labels), *model.shape, generator=generator).to(device)
    rows = tuple(torch.nonzero(labels == label).squeeze(1) for label in range(PROBE_CLASSES))
    data = RealData(Resident(images, labels.to(device), transform), rows)
    alone = replace(config.selection, candidates=1, rank_classes=None)
    short = replace(config, selection=alone, idc=replace(config.idc, early=0), dream=replace(config.dream, warm_up=0))
    built: Any = entry.build(short, Resources(small, None, device, data))
    matched = matched_stages(config)
    stages = torch.arange(1, matched + 1).repeat_interleave(config.ipc).repeat(PROBE_CLASSES)
    own = torch.arange(PROBE_CLASSES).repeat_interleave(config.ipc * matched)
    pixels = torch.rand(len(own), *model.shape, generator=generator)
    synthetic_set = SyntheticSet(pixels, own, torch.tensor(0.01), stages, config.ipc * (matched - 1)).to(device)
    # Another step for the update, so that nothing that the score kept is left out of it.
    draws, others = (entry.draw(short, synthetic_set, step, 0) for step in (0, 1))
    candidate = Candidate(0, 0, 0, built.begin(0))
    scale = model.classes / PROBE_CLASSES
    # A network that trains on real data sees as many images however many classes there are.
    trained = 1.0 if entry.networks.independent else scale
    return {
        "score_seconds": scale * _seconds(lambda: built.score(synthetic_set, candidate, draws)),
        "update_seconds": scale * _seconds(lambda: built.update(synthetic_set, candidate, others)),
        "train_seconds": trained * _seconds(lambda: built.advance(synthetic_set, candidate.network, draws)),
    }


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started
