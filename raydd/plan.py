"""Predicts memory and seconds per step before anything starts, and refuses what cannot fit.

Memory is counted, not guessed: one inner step of the real network is run on one and on two images, and the bytes that automatic
differentiation keeps are extrapolated, since they are exactly linear in the batch (specs/mtt_pdd.md section 6.1). Derivatives written
by hand (`raydd.metagrad.derivatives_of`) take no more, and far less for large batches, so the prediction is an upper bound.
Seconds are measured on the same inner step at (up to) its real batch size on the device at hand.
"""

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import psutil
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from raydd.config import Config, Execution, expert_epochs
from raydd.devices import resolve
from raydd.errors import ResourceError
from raydd.metagrad import Derivatives, derivatives_of
from raydd.models import FlatModel
from raydd.rng import stream
from raydd.step_time import Work, expert_traffic, step_time

# What a backward pass holds for a moment, over what one differentiable step keeps: peaks of tensor memory on a CPU were
# N + 0.53 to N + 0.59 times the latter for N unrolled steps, at widths 8 to 128; see tests/test_plan.py.
TRANSIENT = 0.6
# Growth of a process over the tensors that it holds (specs/mtt_pdd.md section 6.1 measured 1.05 for 20 steps, all else included).
MARGIN = 1.1
# A worker before it does anything, the interpreter with torch imported (specs/ray.md section 4), and the working space of the
# hand-written derivatives, some 10 MB however few the images.
PROCESS_BYTES = 320 * 2**20
PROBE_IMAGES = 32


@dataclass(frozen=True)
class Transition:
    """A prediction for the beginning of a later stage (PDD): training its start networks, and for MTT its experts.

    networks     that are trained, whole groups of `experts.together`
    passes       of each over `images` images, those of the stages before, decoded
    real_epochs  of each over the real data; 0 for methods without experts
    disk         bytes that they add to the store
    seconds      None where nothing was measured
    """

    stage: int
    networks: int
    passes: int
    images: int
    real_epochs: int
    disk: int
    seconds: float | None = None


@dataclass(frozen=True)
class Plan:
    """A prediction for one run: bytes for each worker, seconds for each step.

    parameters             P of the network
    images, batch          synthetic images that the last stage matches with, and in each of the `inner_steps`
    candidates, workers    M, and K (1 where everything runs in one process)
    step_bytes, image_bytes  what one differentiable inner step keeps, and each image of it
    process                the interpreter, and the synthetic set with its gradient and momentum
    experts                the expert snapshots that the run reads; on a CPU they stay in the page cache, shared by all workers
    available              free memory of the device now
    score_seconds, update_seconds, transport_seconds, step_seconds  None where nothing was measured (`raydd.step_time`)
    transitions            the beginnings of later stages
    """

    device: str
    grad_mode: str
    parameters: int
    images: int
    batch: int
    inner_steps: int
    candidates: int
    workers: int
    step_bytes: int
    image_bytes: int
    process: int
    experts: int
    available: int
    score_seconds: float | None = None
    update_seconds: float | None = None
    transport_seconds: float | None = None
    step_seconds: float | None = None
    transitions: tuple[Transition, ...] = ()

    @property
    def share(self) -> int:
        """Candidates of the busiest worker."""
        return math.ceil(self.candidates / self.workers)

    @property
    def sharing(self) -> int:
        """Workers that share the free memory: all on a CPU, one on each GPU."""
        return self.workers if self.device == "cpu" else 1

    @property
    def graph(self) -> int:
        """Peak of what differentiation holds: one inner step, or all N of them with grad_mode unroll; an upper bound."""
        return int(self._factor * (self.step_bytes + self.image_bytes * self.batch))

    @property
    def kept(self) -> int:
        """The inner parameters theta_0..theta_N of the worker's candidates."""
        return self.share * (self.inner_steps + 1) * self.parameters * 4

    @property
    def worker_bytes(self) -> int:
        """Memory that one worker needs at its peak.

        On a GPU the experts take what is left, up to half of it, so they ask for nothing.
        """
        return self.kept + self.graph + self.process

    @property
    def fits(self) -> bool:
        """Whether the workers that share a device fit into its free memory."""
        return self.worker_bytes * self.sharing <= self.available

    @property
    def largest_batch(self) -> int:
        """The most images in an inner step that fit beside everything else; 0 when not even one does."""
        room = self.available // self.sharing - self.kept - self.process
        return max(0, int((room / self._factor - self.step_bytes) // self.image_bytes))

    @property
    def _factor(self) -> float:
        """Peak over what one inner step keeps."""
        return MARGIN * (TRANSIENT + (self.inner_steps if self.grad_mode == "unroll" else 1))


def predict(config: Config, execution: Execution, model: FlatModel, timed: bool = True) -> Plan:
    """Predict a run of `config` with this network; `timed` also measures one inner step (a second or so)."""
    device = resolve(execution.device)
    own = model.classes * config.ipc
    images = own * matched_stages(config)
    filled = own * (2 if config.stages.batch_mode == "new_first" and images > own else 1)
    step_bytes, image_bytes = kept_bytes(model)
    plan = Plan(
        device=device.type,
        grad_mode=config.mtt.grad_mode,
        parameters=model.size,
        images=images,
        batch=min(config.mtt.batch_syn or filled, images),
        inner_steps=config.mtt.syn_steps,
        candidates=config.selection.candidates,
        workers=max(1, worker_count(config, execution)),
        step_bytes=step_bytes,
        image_bytes=image_bytes,
        process=PROCESS_BYTES + 4 * images * math.prod(model.shape) * 4,
        experts=config.experts.count * (expert_epochs(config) + 1) * model.size * 4,
        available=available_bytes(device),
    )
    return _timed(plan, model, device, execution) if timed else plan


def matched_stages(config: Config) -> int:
    """How many stages have their images in the matching of the last one."""
    return config.stages.count if config.stages.conditioning else 1


def _timed(plan: Plan, model: FlatModel, device: torch.device, execution: Execution) -> Plan:
    larger = max(plan.batch / PROBE_IMAGES, 1)
    score, update = (plan.inner_steps * larger * _seconds(work) for work in _probe(model, min(plan.batch, PROBE_IMAGES), device))
    # The gradient walks back over what the score kept; an only candidate is not scored, so its gradient walks there too.
    work = Work(score, update, score + update, plan.candidates)
    traffic = expert_traffic(plan.candidates, plan.images * math.prod(model.shape) * 4) if execution.workers != 0 else None
    found = step_time(work, plan.workers, devices_for(plan.workers, execution), traffic)
    seconds = {"score_seconds": score, "update_seconds": update, "transport_seconds": found.transport}
    return replace(plan, **seconds, step_seconds=found.total)


def devices_for(workers: int, execution: Execution) -> int:
    """Cores or GPUs that so many workers compute on: on a CPU of this machine they may be fewer than the workers."""
    shared = execution.address == "local" and resolve(execution.device).type == "cpu"
    return max(1, cores() // execution.threads) if shared else workers


def worker_count(config: Config, execution: Execution) -> int:
    """Worker actors K: as asked for, else one for each device (CUDA devices, or processor cores) up to one for each candidate."""
    if execution.workers is not None:
        return execution.workers
    devices = torch.cuda.device_count() if resolve(execution.device).type == "cuda" else cores()
    return min(config.selection.candidates, devices)


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def refuse_missing_devices(config: Config, execution: Execution) -> None:
    """Raise `ResourceError` when this machine lacks the GPUs, cores or memory for the processes asked for.

    A cluster is asked when it is joined.
    """
    workers = worker_count(config, execution)
    if execution.address != "local":
        return
    if execution.threads > cores():
        raise ResourceError(f"--threads={execution.threads} is more than the {cores()} cores of this machine. Lower it; 1 is often best.")
    free = available_bytes(torch.device("cpu"))
    if workers * PROCESS_BYTES > free:
        raise ResourceError(
            f"--workers={workers} takes {gigabytes(workers * PROCESS_BYTES)} for the processes alone; {gigabytes(free)} are free. "
            "Lower --workers."
        )
    if resolve(execution.device).type == "cuda" and workers > torch.cuda.device_count():
        raise ResourceError(
            f"--workers={workers} asks for {workers} GPUs, one each; this machine has {torch.cuda.device_count()}. Lower --workers "
            "(a worker takes several candidates), use --device cpu, or name a larger cluster with --address."
        )


def available_bytes(device: torch.device) -> int:
    """Free memory of a device, in bytes."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def refuse_what_cannot_fit(plan: Plan) -> None:
    """Raise `ResourceError` with the numbers, and with settings that fit, when the workers exceed the free memory."""
    if plan.fits:
        return
    ways = advice(plan)
    raise ResourceError(
        f"Each of {plan.workers} worker(s) needs about {gigabytes(plan.worker_bytes)} (graph {gigabytes(plan.graph)} for "
        f"--mtt.grad_mode {plan.grad_mode} with {plan.batch} images in an inner step), but {plan.device} has "
        f"{gigabytes(plan.available)} free for {plan.sharing}. Use {'; or '.join(ways) or 'a device with more memory'}."
    )


def advice(plan: Plan) -> list[str]:
    """Settings that make a plan fit; [] when nothing helps.

    Each that changes no result by itself where one is enough, else as many together as are needed, a smaller batch last.
    """
    ways = [way for way in (_adjoint(plan), _fewer_workers(plan)) if way and way[1].fits]
    if ways:
        return [text for text, _ in ways]
    texts = []
    for change in (_adjoint, _fewer_workers, _smaller_batch):
        way = change(plan)
        if way is not None and not plan.fits:
            texts.append(way[0])
            plan = way[1]
    return [" with ".join(texts)] if plan.fits else []


def _adjoint(plan: Plan) -> tuple[str, Plan] | None:
    if plan.grad_mode != "unroll":
        return None
    return "--mtt.grad_mode adjoint (the same gradient in constant memory)", replace(plan, grad_mode="adjoint")


def _fewer_workers(plan: Plan) -> tuple[str, Plan] | None:
    """The most workers that fit, else one."""
    if plan.sharing == 1:
        return None
    fewer = [replace(plan, workers=count) for count in range(plan.workers - 1, 0, -1)]
    found = next((smaller for smaller in fewer if smaller.fits), fewer[-1])
    return f"--workers {found.workers}", found


def _smaller_batch(plan: Plan) -> tuple[str, Plan] | None:
    if not 0 < plan.largest_batch < plan.batch:
        return None
    return f"--mtt.batch_syn {plan.largest_batch} (changes results)", replace(plan, batch=plan.largest_batch)


def gigabytes(count: int) -> str:
    """A number of bytes for people."""
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def kept_bytes(model: FlatModel) -> tuple[int, int]:
    """(bytes for each inner step, bytes for each image of it) that one differentiable inner step keeps, counted exactly.

    The first is that of the parameters and of their gradient.
    """
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
        after = theta - torch.tensor(0.01, requires_grad=True) * gradient
    del after, gradient, loss
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


def plan_rows(config: Config, plan: Plan) -> list[tuple[str, str]]:
    """The prediction for people."""
    rows = [
        ("device", f"{plan.device}, {gigabytes(plan.available)} free"),
        ("network", f"{plan.parameters:,} parameters"),
        ("synthetic images", f"{plan.images}, {plan.batch} in each of {plan.inner_steps} inner steps"),
        ("candidates, workers", f"{plan.candidates}, {plan.workers}"),
        ("memory of a worker", gigabytes(plan.worker_bytes)),
        ("  differentiated step", f"{gigabytes(plan.graph)} at most (grad_mode {plan.grad_mode})"),
        ("  inner parameters", gigabytes(plan.kept)),
        ("experts on disk", f"{gigabytes(plan.experts)} for {config.experts.count} experts of {expert_epochs(config)} epochs"),
    ]
    if plan.step_seconds is not None:
        rows += [
            ("score of a candidate", f"{plan.score_seconds:.3g} s"),
            ("gradient of the chosen", f"{plan.update_seconds:.3g} s"),
            ("calls of workers", f"{plan.transport_seconds:.3g} s"),
            ("a step", step_text(config, plan.step_seconds)),
        ]
    return rows


def step_text(config: Config, seconds: float) -> str:
    """Seconds of a step and of all steps, for people; with several stages those of the last one, whose steps are the longest."""
    stages = config.stages.count
    each = f" in each of {stages} stages" if stages > 1 else ""
    return f"{seconds:.3g} s; {config.steps} steps{each} {duration(stages * config.steps * seconds)}"


def duration(seconds: float) -> str:
    """A length of time for people."""
    for unit, length in (("h", 3600.0), ("min", 60.0)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"
