"""The prediction for methods whose networks train between updates: bytes of a worker, seconds of a step.

Memory is an upper bound: what automatic differentiation keeps for one chunk of classes (`raydd.plan.kept_bytes`), the gradients of
all classes, the real images and the networks. Seconds are those of the method itself on two classes of random images, scaled to all.
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
from raydd.decode import count
from raydd.devices import resolve
from raydd.errors import ResourceError
from raydd.methods import method
from raydd.methods.base import Resources, slot_count
from raydd.methods.networks import class_chunk
from raydd.models import FlatModel, build
from raydd.plan import (
    MARGIN,
    PROCESS_BYTES,
    TRANSIENT,
    Transition,
    available_bytes,
    gigabytes,
    kept_bytes,
    matched_stages,
    step_text,
    worker_count,
)
from raydd.rng import stream
from raydd.types import Candidate, SyntheticSet

PROBE_CLASSES = 2


@dataclass(frozen=True)
class NetworkPlan:
    """A prediction for one run: bytes for each worker, seconds for each step.

    section           of the settings that holds `batch_real` and `class_chunk`
    images            synthetic images that the last stage matches with
    real, synthetic   images of a class in a step, the second after decoding
    chunk             classes that are differentiated together
    graph             bytes that differentiating them holds, at most
    gradients         bytes of the real gradients of all classes
    resident          bytes of the real images
    slots             networks in the pool; each is sent with its momentum
    beside            whether networks train without a look at the synthetic set, beside an update
    available         free memory of the device now; `sharing` workers divide it
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
    graph: int
    gradients: int
    resident: int
    slots: int
    candidates: int
    workers: int
    beside: bool
    available: int
    score_seconds: float | None = None
    update_seconds: float | None = None
    train_seconds: float | None = None
    transitions: tuple[Transition, ...] = ()

    @property
    def sharing(self) -> int:
        """Workers that share the free memory: all on a CPU, one on each GPU."""
        return self.workers if self.device == "cpu" else 1

    @property
    def worker_bytes(self) -> int:
        """Memory that one worker needs at its peak."""
        return PROCESS_BYTES + self.resident + self.gradients + self.graph + 4 * self.parameters * 4

    @property
    def fits(self) -> bool:
        """Whether the workers that share a device fit into its free memory."""
        return self.worker_bytes * self.sharing <= self.available

    @property
    def step_seconds(self) -> float | None:
        """An image update with the training of its network, beside one another where two workers can; selection apart."""
        if self.update_seconds is None or self.train_seconds is None:
            return None
        parts = (self.update_seconds, self.train_seconds)
        return max(parts) if self.beside and self.workers > 1 else sum(parts)


def predict_networks(config: Config, execution: Execution, model: FlatModel, train_images: int, timed: bool = True) -> NetworkPlan:
    """Predict a run of `config`, whose method trains networks, on `train_images` real images; `timed` measures a step on two classes."""
    entry, device = method(config.method), resolve(execution.device)
    section = next(iter(entry.rates(config))).partition(".")[0]
    settings = getattr(config, section)
    real = getattr(settings, "batch_real", 0)
    stored = config.ipc * matched_stages(config)
    synthetic = min(count(entry.decoding(config), stored), getattr(settings, "batch_syn_max", math.inf))
    given = getattr(settings, "class_chunk", None)
    chunk = min(model.classes, class_chunk(given, synthetic, device))
    fixed, each = kept_bytes(model)
    # The real batch goes through without a second derivative, which keeps about half as much.
    together = max(chunk * synthetic, class_chunk(given, max(real, 1), device) * real / 2)
    plan = NetworkPlan(
        device=device.type,
        section=section,
        parameters=model.size,
        images=model.classes * stored,
        real=real,
        synthetic=synthetic,
        classes=model.classes,
        chunk=chunk,
        graph=int(MARGIN * (1 + TRANSIENT) * (fixed * chunk + each * together)),
        gradients=2 * model.classes * model.size * 4 if section in ("dc", "idc") else 0,
        resident=min(train_images * math.prod(model.shape) * 4, FLOAT_BUDGET),
        slots=slot_count(config, entry.networks),
        candidates=config.selection.candidates,
        workers=max(1, worker_count(config, execution)),
        beside=entry.networks.independent,
        available=available_bytes(device),
    )
    return replace(plan, **_timed(config, model, real, synthetic, device)) if timed else plan


def refuse_networks(plan: NetworkPlan) -> None:
    """Raise `ResourceError` with the numbers, and with settings that fit, when the workers exceed the free memory."""
    if plan.fits:
        return
    ways = []
    smaller = replace(plan, chunk=1, graph=plan.graph // plan.chunk)
    if plan.chunk > 1 and smaller.fits and plan.section in ("dc", "idc"):
        ways.append(f"--{plan.section}.class_chunk 1")
    fewer = [replace(plan, workers=workers) for workers in range(plan.workers - 1, 0, -1)]
    ways += [f"--workers {found.workers}" for found in fewer if found.fits][:1]
    raise ResourceError(
        f"Each of {plan.workers} worker(s) needs about {gigabytes(plan.worker_bytes)} (graph {gigabytes(plan.graph)} for {plan.chunk} of "
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
        ("  differentiated step", f"{gigabytes(plan.graph)} at most, {plan.chunk} of {plan.classes} classes at once"),
        ("  real gradients", gigabytes(plan.gradients)),
        ("  real images", gigabytes(plan.resident)),
    ]
    if plan.step_seconds is not None:
        rows += [
            ("score of a candidate", f"{plan.score_seconds:.3g} s"),
            ("image update", f"{plan.update_seconds:.3g} s"),
            ("network training", f"{plan.train_seconds:.3g} s"),
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
    short = replace(config, idc=replace(config.idc, early=0), dream=replace(config.dream, warm_up=0))
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
