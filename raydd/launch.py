"""Starting and resuming runs, training experts and evaluating sets: what both the command line and a notebook call.

Ray is imported only when workers are asked for.
"""

import contextlib
import shlex
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from raydd import artifact, devices, places, plan, planning
from raydd.artifact import Artifact
from raydd.config import Config, EvaluationConfig, Execution, flatten, from_dict
from raydd.data import source_info
from raydd.errors import ConfigError, DataError, ResourceError, StoreError
from raydd.files import read_object
from raydd.methods.base import DataFacts, check, method
from raydd.models import build, named
from raydd.plan import Plan
from raydd.plan_networks import NetworkPlan
from raydd.run import Report, identity, run
from raydd.runfolder import RunFolder
from raydd.services import InlineServices, Services
from raydd.setup import Evaluator, compared, prepare, random_job, staged, synthetic_job
from raydd.stage_config import of_the_count
from raydd.transition import build_experts, ready_curriculum


def silent(progress: dict[str, Any]) -> None:
    """A progress receiver that shows nothing."""


def distill(config: Config, execution: Execution | None = None, report: Report = silent) -> dict[str, Any]:
    """Start a run and see it through; returns the content of its result.json with `run`, the folder.

    What is refused before the first step leaves no folder behind. Raises `RayddError`s, and `KeyboardInterrupt` with the command
    that carries on.
    """
    config, execution = absolute(config), execution or Execution()
    path = execution.run or f"runs/{config.recipe or config.method}-{config.seed}"
    execution = replace(execution, run=places.absolute(path), store=places.absolute(execution.store))
    _check(config, execution)
    setup = prepare(config, execution)
    planning.refuse_run(config, execution, setup.model, len(setup.dataset.train.labels))
    folder = RunFolder.create(execution.run, config, execution)
    folder.close()
    try:
        return _see_through(config, execution, report)
    except (ConfigError, DataError, StoreError, ResourceError):
        folder.withdraw()
        raise


def resume(
    run_path: str | Path, config: Config | None = None, execution: Execution | None = None, report: Report = silent
) -> dict[str, Any]:
    """Carry on with a run from its last good checkpoint; `config` may differ from the run's in steps and evaluation only.

    Raises `ConfigError` for other differences and `CheckpointError` when no checkpoint is usable.
    """
    folder = RunFolder.view(run_path)
    own_config, own_execution = folder.settings()
    config, execution = config or own_config, execution or own_execution
    _check(config, execution)
    changed = changed_settings(config, own_config)
    if changed:
        free = "--steps, --evaluation.*" if _steps_are_free(own_config) else "--evaluation.*"
        hint = f" --extend {run_path} adds stages." if config.stages.count != own_config.stages.count else ""
        raise ConfigError(
            [f"--resume {run_path} keeps the run's settings; only {free} and where it runs may change: {', '.join(changed)}.{hint}"]
        )
    return _see_through(config, replace(execution, run=places.absolute(str(run_path))), report)


def extend(
    run_path: str | Path, stages: int, config: Config | None = None, execution: Execution | None = None, report: Report = silent
) -> dict[str, Any]:
    """Add stages to a finished run, in its folder; the images that it has stay as they are.

    The result equals, bit for bit, that of a run which asked for all these stages at first. `config` may differ from the run's in its
    evaluation only. Raises `ConfigError` for other differences, for a run that has steps left, and for settings that depend on the
    number of stages.
    """
    folder = RunFolder.view(run_path)
    own_config, own_execution = folder.settings()
    config = config or own_config
    if stages < 1:
        raise ConfigError([f"--stages.add={stages} must be at least 1."])
    if not own_config.steps:
        raise ConfigError([f"--extend {run_path} adds stages, and that run has no steps: a selection has no stages. Use --resume."])
    if not folder.result.exists() or not read_object(folder.result).get("complete"):
        name = shlex.quote(str(run_path))
        raise ConfigError([f"--extend {name} adds stages to a finished run, and this one is not. First: raydd distill --resume {name}."])
    changed = changed_settings(config, own_config, more_steps=False)
    if changed:
        raise ConfigError(
            [f"--extend {run_path} keeps the run's settings; only --evaluation.* and where it runs may change: {', '.join(changed)}."]
        )
    divided = of_the_count(config)
    if divided:
        raise ConfigError([f"{divided[0]} divides the images by the number of stages, so --extend {run_path} cannot add any."])
    longer = replace(config, stages=replace(config.stages, count=config.stages.count + stages))
    execution = execution or own_execution
    _check(longer, execution)
    return _see_through(longer, replace(execution, run=places.absolute(str(run_path))), report)


def changed_settings(config: Config, own: Config, more_steps: bool = True) -> list[str]:
    """What decides the images and is not as in a run with the settings `own`, as flags with both values; [] where it may be carried on.

    Without `more_steps` their number stays too, as it does wherever there are several stages.
    """
    ours, theirs = flatten(identity(config)), flatten(identity(own))
    changed = [f"--{name}={ours[name]} (the run has {theirs[name]})" for name in ours if ours[name] != theirs.get(name)]
    if "stages.count" not in ours and config.stages.count != own.stages.count:
        changed.append(f"--stages.count={config.stages.count} (the run has {own.stages.count})")
    if "steps" not in ours and config.steps != own.steps and not (more_steps and _steps_are_free(own)):
        changed.append(f"--steps={config.steps} (the run has {own.steps}{' in every stage' if own.stages.count > 1 else ''})")
    return changed


def _steps_are_free(own: Config) -> bool:
    """Whether a run may be carried on to more steps."""
    return own.stages.count == 1 and own.selection.policy != "annealed"


def absolute(config: Config) -> Config:
    """The same settings with absolute folders: a run is carried on, and its result evaluated, from anywhere."""
    kind, colon, place = config.data.source.partition(":")
    source = f"{kind}:{places.absolute(place)}" if colon else config.data.source
    return replace(config, data=replace(config.data, source=source, root=places.absolute(config.data.root)))


def _check(config: Config, execution: Execution) -> None:
    """Refuse what is wrong before anything is read or started."""
    check(config, execution)
    plan.refuse_missing_devices(config, execution)


def _see_through(config: Config, execution: Execution, report: Report) -> dict[str, Any]:
    try:
        if plan.worker_count(config, execution) == 0:
            result = run_inline(config, execution, report)
        else:
            from raydd.actors import run_on_ray

            result = run_on_ray(config, execution, report)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(f"stopped; carry on with: raydd distill --resume {shlex.quote(execution.run)}") from stop
    return {**result, "run": execution.run}


def run_inline(config: Config, execution: Execution, report: Report = silent) -> dict[str, Any]:
    """The run in this process, stopping cleanly at the next step on Ctrl-C or SIGTERM."""
    with RunFolder.open(execution.run, _teller(report)) as folder, stop_on_signals(report) as should_stop:
        return run(folder, config, execution, InlineServices(devices.resolve(execution.device)), should_stop, report)


def _teller(report: Report) -> Callable[[str], None]:
    return lambda text: report({"phase": "note", "text": text})


@contextlib.contextmanager
def stop_on_signals(report: Report = silent) -> Iterator[Callable[[], bool]]:
    """Turns the first Ctrl-C or SIGTERM into a request to stop at the next step; a second one interrupts at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return

    def ask(number: int, frame: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        report({"phase": "stopping", "text": "stopping at the next step; once more stops at once"})

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def train_experts(config: Config, execution: Execution | None = None, report: Report = silent) -> str:
    """Train every missing expert of a configuration; returns the folder of its store."""
    config, execution = absolute(config), execution or Execution()
    execution = replace(execution, store=places.absolute(execution.store))
    _check(config, execution)
    with services_for(config, execution, report) as services:
        setup = prepare(config, execution)
        ready_curriculum(setup, services, report)
        return build_experts(staged(setup, 1), services, report).folder.location


@contextlib.contextmanager
def services_for(config: Config, execution: Execution, report: Report = silent) -> Iterator[Services]:
    """Inline services for `workers` 0, else a Ray cluster for the duration; `report` hears what it is waited for."""
    if plan.worker_count(config, execution) == 0:
        yield InlineServices(devices.resolve(execution.device))
        return
    from raydd.actors import ray_services

    with ray_services(config, execution, report) as services:
        yield services


def predict(config: Config, execution: Execution | None = None) -> Plan | NetworkPlan:
    """Predicted memory and seconds per step; named data sets need not be on disk."""
    execution = execution or Execution()
    check(config, execution)
    info = None if config.data.classes else source_info(config.data)
    if info is None:
        setup = prepare(config, execution)
        return planning.predicted(config, execution, setup.model, len(setup.dataset.train.labels))
    counts = (info.train_images // info.classes,) * info.classes
    problems = method(config.method).problems(config, DataFacts(tuple(map(str, range(info.classes))), counts, info.shape))
    if problems:
        raise ConfigError(problems)
    devices.prepare(execution.threads, execution.deterministic, config.tf32)
    return planning.predicted(config, execution, build(config.model, info.shape, info.classes), info.train_images)


@dataclass(frozen=True)
class Comparison:
    """A synthetic set beside random real images of the same number: records of `evaluations.jsonl`."""

    synthetic: dict[str, Any]
    random: dict[str, Any]

    def summary(self) -> dict[str, Any]:
        """The two side by side, see `raydd.setup.compared`."""
        return compared(self.synthetic, self.random)


def result_file(path: str | Path) -> Artifact:
    """The result of a run folder, or a result file itself. Raises `CheckpointError` or `ConfigError`."""
    if places.is_uri(path) or Path(path).is_dir():
        path = RunFolder.view(path).synthetic
    path = Path(path)
    if not path.exists():
        raise ConfigError([f"{path} does not exist. Name a run folder that has finished, or a synthetic.safetensors file."])
    return artifact.read(path)


def evaluate(
    path: str | Path,
    execution: Execution | None = None,
    data: str = "",
    root: str = "",
    *,
    model: str = "",
    report: Report = silent,
    **settings: Any,
) -> Comparison:
    """Train fresh networks on a finished set, and on random real images of the same number, and test them.

    See `evaluate_on`, which this is for one model; by default the run's own.
    """
    (comparison,) = evaluate_on(path, [model] if model else [], execution, data, root, report, **settings).values()
    return comparison


def evaluate_on(
    path: str | Path,
    models: Sequence[str],
    execution: Execution | None = None,
    data: str = "",
    root: str = "",
    report: Report = silent,
    **settings: Any,
) -> dict[str, Comparison]:
    """Evaluate a finished set on networks by name (`raydd.models.named`), the run's own if there is none; by name, in their order.

    `settings` override fields of `EvaluationConfig`, for example nets=5. A `protocol` among them brings all of its own values: what
    the run had changed of its protocol is left behind. `data` and `root` say where the real images are now, if they have moved.
    Real images are transformed by the result file's own transform. Raises `ConfigError` when the images at hand are not those of
    the file, and before any training when a network does not exist or cannot take them.
    """
    found = result_file(path)
    if "stages" in settings and len(found.stage_step_sizes) == 1:
        report({"phase": "note", "text": f"--stages {settings['stages']} changes nothing: {path} has one stage only."})
    config = evaluated(from_dict(Config, found.config), settings)
    place = replace(config.data, source=data or config.data.source, root=root or config.data.root)
    config = replace(config, data=place)
    setup = prepare(config, execution or Execution())
    if setup.dataset.fingerprint != found.fingerprint:
        raise ConfigError(
            [f"--data={config.data.source}: these are not the images that {path} was distilled from. Point --data at the same ones."]
        )
    setup = replace(setup, transform=found.pixel_transform().to(setup.device))
    names = models or [config.model.name]
    networks = {name: build(named(name, config.model), setup.model.shape, setup.model.classes) for name in names}  # refuses before training
    learned = found.stage_step_sizes
    jobs = (
        synthetic_job(config, found.synthetic, found.step, found.decode, learned),
        random_job(setup, found.synthetic, found.step, learned),
    )
    done = 0

    def heard(nets: int) -> None:
        nonlocal done
        done += nets
        report({"phase": "evaluate", "done": done, "total": total})

    evaluator = Evaluator(setup, heard)
    evaluators = {name: evaluator.of(network) for name, network in networks.items()}
    total = sum(own.passes(job) for own in evaluators.values() for job in jobs)
    results = {}
    for name, own in evaluators.items():
        results[name] = Comparison(*(own(job) for job in jobs))
        if len(evaluators) > 1:
            report({"phase": "note", "text": f"{name}: {results[name].synthetic['accuracy_mean']:.2%} test accuracy"})
    return results


def evaluated(config: Config, settings: dict[str, Any]) -> Config:
    """The configuration with evaluation settings changed; a protocol named among them starts from its own values.

    How stages are gone through stays as in the run. Epochs and updates each take the place of what the run says of the other.
    """
    own = config.evaluation
    kept = {name: getattr(own, name) for name in ("every", "at_end", "nets", "stages", "carry_momentum")}
    start = EvaluationConfig(**kept) if "protocol" in settings else own
    if "updates" in settings:
        start = replace(start, epochs=None, same_compute=False)
    if "epochs" in settings:
        start = replace(start, updates=None)
    return replace(config, evaluation=replace(start, **settings))
