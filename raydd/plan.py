"""Predicts memory and seconds per step before anything starts, and refuses what cannot fit.

Memory is counted, not guessed: one inner step of the real network is run on one and on two images, and the bytes that automatic
differentiation keeps are extrapolated, since they are exactly linear in the batch (specs/mtt_pdd.md section 6.1).
Seconds are measured on the same inner step at (up to) its real batch size on the device at hand.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil
import torch
from rich.table import Table
from torch import Tensor
from torch.nn.functional import cross_entropy

from raydd.config import Config, Execution, expert_epochs
from raydd.devices import resolve
from raydd.errors import ResourceError
from raydd.metagrad import Derivatives, derivatives_of
from raydd.models import FlatModel
from raydd.rng import stream

# Peak memory of a backward pass over what the forward pass kept, as measured on a CPU (specs/mtt_pdd.md section 6.1: 1.05 to 1.3).
PEAK_OVER_KEPT = 1.3
# Resident size of a worker before it does anything: the interpreter with torch imported (specs/ray.md section 4).
PROCESS_BYTES = 300 * 2**20
PROBE_IMAGES = 32


@dataclass(frozen=True)
class Plan:
    """A prediction for one run: bytes for each worker, seconds for each step.

    kept        the inner parameters theta_0..theta_N of the worker's candidates
    graph       what differentiation holds at its peak (one inner step, or all N with grad_mode unroll)
    experts     the expert snapshots that the run reads; on a CPU they stay in the page cache, shared by all workers
    available   free memory of the device now, shared by `sharing` workers
    """

    device: str
    parameters: int
    images: int
    batch: int
    workers: int
    kept: int
    graph: int
    process: int
    experts: int
    available: int
    sharing: int
    score_seconds: float | None
    update_seconds: float | None
    step_seconds: float | None

    @property
    def worker_bytes(self) -> int:
        """Memory that one worker needs at its peak."""
        resident = self.experts if self.device == "cuda" else 0
        return self.kept + self.graph + self.process + resident

    @property
    def fits(self) -> bool:
        """Whether the workers that share a device fit into its free memory."""
        return self.worker_bytes * self.sharing <= self.available


def predict(config: Config, execution: Execution, model: FlatModel, timed: bool = True) -> Plan:
    """Predict a run of `config` with this network; `timed` also measures one inner step (a second or so)."""
    device = resolve(execution.device)
    images = model.classes * config.ipc
    batch = min(config.mtt.batch_syn or images, images)
    workers = max(1, worker_count(config, execution))
    share = math.ceil(config.selection.candidates / workers)
    fixed, each = kept_bytes(model)
    graph = int((fixed + each * batch) * PEAK_OVER_KEPT)
    if config.mtt.grad_mode == "unroll":
        graph *= config.mtt.syn_steps
    score = update = step = None
    if timed:
        gradient, pullback = (_seconds(work) * max(batch / PROBE_IMAGES, 1) for work in _probe(model, min(batch, PROBE_IMAGES), device))
        score, update = config.mtt.syn_steps * gradient, config.mtt.syn_steps * pullback
        step = score * share + update
    return Plan(
        device=device.type,
        parameters=model.size,
        images=images,
        batch=batch,
        workers=workers,
        kept=share * (config.mtt.syn_steps + 1) * model.size * 4,
        graph=graph,
        process=PROCESS_BYTES + 4 * images * math.prod(model.shape) * 4,
        experts=config.experts.count * (expert_epochs(config) + 1) * model.size * 4,
        available=available_bytes(device),
        sharing=workers if device.type == "cpu" else 1,
        score_seconds=score,
        update_seconds=update,
        step_seconds=step,
    )


def worker_count(config: Config, execution: Execution) -> int:
    """Worker actors K: as asked for, else one for each device (CUDA devices, or processor cores) up to one for each candidate."""
    if execution.workers is not None:
        return execution.workers
    device = resolve(execution.device)
    devices = torch.cuda.device_count() if device.type == "cuda" else len(psutil.Process().cpu_affinity())
    return min(config.selection.candidates, devices)


def available_bytes(device: torch.device) -> int:
    """Free memory of a device, in bytes."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def refuse_what_cannot_fit(config: Config, plan: Plan) -> None:
    """Raise `ResourceError` with the numbers and the settings that lower them when the workers exceed the free memory."""
    if plan.fits:
        return
    per_image = max(1, plan.graph // plan.batch)
    room = plan.available // plan.sharing - (plan.worker_bytes - plan.graph)
    advice = []
    if config.mtt.grad_mode == "unroll":
        advice.append("--mtt.grad_mode adjoint (the same gradient in constant memory)")
    elif room > per_image:
        advice.append(f"--mtt.batch_syn {room // per_image} or less")
    if plan.sharing > 1:
        advice.append("fewer --workers")
    raise ResourceError(
        f"Each of {plan.workers} worker(s) needs about {gigabytes(plan.worker_bytes)} (graph {gigabytes(plan.graph)} for "
        f"--mtt.grad_mode {config.mtt.grad_mode} with {plan.batch} images in an inner step), but {plan.device} has "
        f"{gigabytes(plan.available)} free for {plan.sharing}. Use {', or '.join(advice) or 'a larger device'}."
    )


def gigabytes(count: int) -> str:
    """A number of bytes for people."""
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def kept_bytes(model: FlatModel) -> tuple[int, int]:
    """(bytes for each inner step, bytes for each image of it) that one differentiable inner step keeps, counted exactly."""
    one, two = (_kept_by(model, batch) for batch in (1, 2))
    return 2 * one - two, two - one


def _kept_by(model: FlatModel, batch: int) -> int:
    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    theta = model.init(stream(0, 0, "plan")).requires_grad_()
    images = torch.randn(batch, *model.shape, generator=stream(0, 0, "plan-images")).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = cross_entropy(model(theta, images), torch.zeros(batch, dtype=torch.int64))
        (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
    del gradient, loss
    return sum(storages.values())


def _probe(model: FlatModel, batch: int, device: torch.device) -> list[Callable[[], object]]:
    """One first-order inner step, and one reverse step, on random images."""
    derivatives: Derivatives = derivatives_of(model)
    theta = model.init(stream(0, 0, "plan")).to(device)
    images = torch.randn(batch, *model.shape, generator=stream(0, 0, "plan-images")).to(device)
    labels = torch.zeros(batch, dtype=torch.int64, device=device)
    return [lambda: derivatives.gradient(theta, images, labels), lambda: derivatives.pullback(theta, images, labels, theta)]


def _seconds(work: Callable[[], object]) -> float:
    def once() -> float:
        started = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - started

    once()
    return min(once() for _ in range(3))


def plan_table(config: Config, plan: Plan) -> Table:
    """The prediction for people."""
    table = Table(box=None, show_header=False)
    rows = [
        ("device", f"{plan.device}, {gigabytes(plan.available)} free"),
        ("network", f"{plan.parameters:,} parameters"),
        ("synthetic images", f"{plan.images}, {plan.batch} in each of {config.mtt.syn_steps} inner steps"),
        ("candidates, workers", f"{config.selection.candidates}, {plan.workers}"),
        ("memory of a worker", gigabytes(plan.worker_bytes)),
        ("  graph of a differentiated step", f"{gigabytes(plan.graph)} (grad_mode {config.mtt.grad_mode})"),
        ("  inner parameters kept", gigabytes(plan.kept)),
        ("experts on disk", f"{gigabytes(plan.experts)} for {config.experts.count} experts of {expert_epochs(config)} epochs"),
    ]
    if plan.step_seconds is not None:
        rows += [
            ("score of a candidate", f"{plan.score_seconds:.3g} s"),
            ("gradient of the chosen one", f"{plan.update_seconds:.3g} s"),
            ("a step", f"{plan.step_seconds:.3g} s; {config.steps} steps {config.steps * plan.step_seconds / 3600:.2f} h"),
        ]
    for row in rows:
        table.add_row(*row)
    return table
