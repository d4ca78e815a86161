"""A trial of a sweep: one run inside a Tune function, its driver and workers in one placement group made from its own settings.

The run lies in a folder of its own under the sweep, by a name that only its settings decide. Whatever ends a trial, the next one with
these settings carries on from the run's newest checkpoint: after a failure, after `Tuner.restore`, after a killed process.
Experts, real data and curriculum scores belong to the store: the first trial makes them under a lock, the others wait and read.
Sources: specs/ray.md sections 1.1, 5 and 9.
"""

import contextlib
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from filelock import FileLock
from ray import tune

from raydd import artifact
from raydd import plan as planner
from raydd.actors import fork
from raydd.actors.cluster import Bundle, Cluster, bundles
from raydd.actors.options import worker_options
from raydd.actors.services import RayServices
from raydd.actors.trial_reports import ObservedFolder, TrialReports
from raydd.config import Config, Execution, fingerprint, flatten, from_dict, override, to_dict
from raydd.devices import resolve
from raydd.errors import CheckpointError, ConfigError, DataError, DivergenceError, ResourceError, StoreError
from raydd.experts.build import recipe, store_root
from raydd.files import atomic_write_json, read_json
from raydd.methods import method
from raydd.models import build, named
from raydd.places import is_uri, join
from raydd.progressive import total_steps
from raydd.run import identity, run
from raydd.runfolder import RunFolder
from raydd.services import InlineServices, Services
from raydd.setup import Evaluator, Setup, compared, prepare, random_job, staged, synthetic_job
from raydd.transition import build_experts, never, ready_curriculum

_SETTLED = (ConfigError, DataError, StoreError, CheckpointError, DivergenceError)
"""Errors that another attempt would meet again."""
ARCHITECTURES = "cross_architecture.json"


@dataclass(frozen=True)
class TrialPlan:
    """What all trials of a sweep have in common.

    runs          folder of the run folders, reachable from every node, or its URI
    bases         the settings of every recipe, nested dictionaries, by its name
    execution     `workers` None is one for each candidate, up to the devices; `run` is set by the trial
    gpus          GPUs of each worker, or of the trial itself without workers
    local         one machine: workers near each other; else they are spread, so that one lost node costs one
    driver        whether nodes offer the custom resource `driver` (cluster.yaml)
    every         steps between two reports to Tune
    population    PBT: reports carry a checkpoint, and a trial given another's forks it (`raydd.actors.fork`)
    models        networks by name on which the result is evaluated beside the run's own
    devices       of the cluster, for a worker each, where the number of workers is left open; 0 counts those of this machine
    """

    runs: str
    bases: dict[str, dict[str, Any]]
    execution: Execution
    gpus: float = 0.0
    local: bool = True
    driver: bool = False
    every: int = 10
    population: bool = False
    models: tuple[str, ...] = ()
    devices: int = 0

    def config(self, order: dict[str, Any]) -> Config:
        """The settings of a trial. `order` is what Tune holds under that name: {"arm", "recipe", "seed", "settings": {dotted name: value}}.

        Raises `ConfigError` for settings that are unknown or of the wrong type.
        """
        given = {name: _plain(value) for name, value in order["settings"].items()}
        return override(from_dict(Config, self.bases[order["recipe"]]), {**given, "seed": int(order["seed"])})

    def workers(self, config: Config) -> int:
        """K of a trial; 0 runs inside the trial's own process."""
        if self.execution.workers is None and self.devices:
            return min(config.selection.candidates, self.devices)
        return planner.worker_count(config, self.execution)

    def bundles(self, order: dict[str, Any]) -> list[Bundle]:
        """What a trial asks of the cluster: its driver, then its workers."""
        workers, threads = self.workers(self.config(order)), float(self.execution.threads)
        if workers == 0:
            return [{"CPU": threads} | ({"GPU": self.gpus} if self.gpus else {})]
        cluster = Cluster(({"driver": 1.0},) if self.driver else ())
        return bundles(workers, self.execution.threads, self.gpus, cluster)

    def __call__(self, parameters: dict[str, Any]) -> tune.PlacementGroupFactory:
        """The same in Tune's words, for `tune.with_resources`; `parameters` are {"order": ...}."""
        return tune.PlacementGroupFactory(self.bundles(parameters["order"]), strategy="PACK" if self.local else "SPREAD")


def run_name(order: dict[str, Any], config: Config) -> str:
    """The name of a trial's run folder: its arm, its seed and a hash of all that decides its images, and of how far stages go."""
    decides = {**identity(config), "stages": [config.stages.count, config.steps if config.stages.count > 1 else 0]}
    label = re.sub(r"[^A-Za-z0-9.+-]+", "-", str(order.get("arm") or "trial")).strip("-")[:60]
    return f"{label}-seed{config.seed}-{fingerprint(decides)[:8]}"


def run_trial(parameters: dict[str, Any], plan: TrialPlan) -> None:
    """Tune's function: see the run of {"order": ...} through, reporting as `raydd.actors.trial_reports` says.

    What another attempt would meet again ends the trial with a last report that names it as `failure`; everything else is raised, so
    that Tune tries again.
    """
    order = parameters["order"]
    try:
        config = plan.config(order)
        folder, told = _folder(order, plan, config)
    except (ConfigError, CheckpointError) as error:
        tune.report({"finished": False, "failure": str(error), "run": ""})
        return
    with folder:
        reports = TrialReports(folder, config, plan.workers(config), plan.every, _teller(plan, folder))
        if told:
            reports({"phase": "note", "text": told})
        try:
            evaluations = _see_through(folder, plan, config, reports)
        except _SETTLED as error:
            reports.last(finished=False, failure=str(error))
        else:
            reports.last(finished=True, models=evaluations)


def _see_through(folder: ObservedFolder, plan: TrialPlan, config: Config, reports: TrialReports) -> dict[str, float]:
    """The run, and its result on other networks: their mean accuracies by name."""
    execution = replace(plan.execution, run=folder.location, workers=plan.workers(config))
    services = _services(execution, plan.gpus)
    setup = prepare(config, execution)
    build_shared(setup, services, reports)
    result = run(folder, config, execution, services, never, reports)
    reports.finished_run(result)
    return {name: found["accuracy_mean"] for name, found in _architectures(folder, setup, plan.models, reports).items()}


def _services(execution: Execution, gpus: float) -> Services:
    """Workers in the bundles behind the trial's own; everything in this process without workers."""
    if not execution.workers:
        return InlineServices(resolve(execution.device))
    options = worker_options(execution, execution.device, gpus, "the sweep with --resume")
    return RayServices(execution.workers, options, ray.util.get_current_placement_group())


def build_shared(setup: Setup, services: Services, report: TrialReports) -> None:
    """Have what trials share in the store: the first one trains it, the others wait until it is there.

    A lock belongs to the process that holds it, so a trial that dies lets the next one in, which trains what is still missing.
    """
    config = setup.config
    over_experts = method(config.method).networks is None
    if not over_experts and config.curriculum.scores == "none":
        return
    root = store_root(setup.execution)
    with _locked(root, fingerprint(recipe(config, setup.dataset))[:16]):
        ready_curriculum(setup, services, report)
        if over_experts:
            build_experts(staged(setup, 1), services, report)


@contextlib.contextmanager
def _locked(root: str, name: str) -> Iterator[None]:
    """Hold a lock beside a store; of a store at a URI, whose writes are whole or nothing, one for each machine."""
    place = Path(tempfile.gettempdir()) / "raydd-locks" if is_uri(root) else Path(root).expanduser()
    place.mkdir(parents=True, exist_ok=True)
    with FileLock(place / f".{name}.building.lock"):
        yield


def _folder(order: dict[str, Any], plan: TrialPlan, config: Config) -> tuple[ObservedFolder, str]:
    """The trial's run folder, locked, made where there is none; and what is to be told of it."""
    given = tune.get_checkpoint() if plan.population else None
    name, told = run_name(order, config), ""
    if plan.population:
        name = f"{name}-{tune.get_context().get_trial_id()}"
    if given is not None:
        with given.as_directory() as place:
            name, told = fork.adopted(Path(place), Path(plan.runs), name, config, plan.execution)
    path = join(plan.runs, name)
    execution = replace(plan.execution, run=path, workers=plan.workers(config))
    with contextlib.suppress(ConfigError):  # it is there
        RunFolder.create(path, config, execution).close()
    folder = _opened(path)
    own = folder.settings()[0]
    changed = [name for name, value in flatten(identity(own)).items() if flatten(identity(config)).get(name) != value]
    if changed:
        folder.close()
        raise ConfigError([f"{path} is a run of other settings ({', '.join(changed)}). Choose another --name for the sweep."])
    return folder, told


def _opened(path: str, patience: float = 120.0) -> ObservedFolder:
    """The folder; the process that had it may have been killed a moment ago. Raises `ResourceError` naming the holder."""
    end = time.monotonic() + patience
    while True:
        try:
            return ObservedFolder.open(path)
        except ResourceError:
            if time.monotonic() > end:
                raise
            time.sleep(0.5)


def _teller(plan: TrialPlan, folder: RunFolder) -> Callable[[dict[str, Any]], None]:
    """How reports reach Tune: for a population those of a new evaluation with what a fork needs."""
    if not plan.population:
        return tune.report
    packed = -1

    def tell(metrics: dict[str, Any]) -> None:
        nonlocal packed
        with tempfile.TemporaryDirectory() as scratch:
            saved = metrics["evaluated_step"] > packed and fork.pack(folder, Path(scratch))
            packed = metrics["evaluated_step"] if saved else packed
            tune.report(metrics, checkpoint=tune.Checkpoint.from_directory(scratch) if saved else None)

    return tell


def _architectures(folder: RunFolder, setup: Setup, models: tuple[str, ...], reports: TrialReports) -> dict[str, dict[str, Any]]:
    """The result of a finished run on networks by name, beside random real images; what is in the folder is not done again."""
    path = folder.path / ARCHITECTURES
    known = read_json(path) if path.exists() else {}
    protocol = fingerprint([to_dict(setup.config.evaluation), total_steps(setup.config)])[:16]
    found = known["models"] if known.get("protocol") == protocol else {}
    missing = [name for name in models if name not in found]
    if missing:
        result = artifact.read(folder.synthetic)
        learned = result.stage_step_sizes
        jobs = (
            synthetic_job(setup.config, result.synthetic, result.step, result.decode, learned),
            random_job(setup, result.synthetic, result.step, learned),
        )
        evaluator = Evaluator(setup)
        for name in missing:
            own = evaluator.of(build(named(name, setup.config.model), setup.model.shape, setup.model.classes))
            found[name] = compared(*(own(job) for job in jobs))
            atomic_write_json(path, {"protocol": protocol, "models": found})
            folder.publish(reports, last=True)
            reports({"phase": "note", "text": f"{name}: {found[name]['accuracy_mean']:.2%}"})
    return {name: found[name] for name in models}


def _plain(value: Any) -> Any:
    """A number as Python has it; samplers give numpy's."""
    return value.item() if hasattr(value, "item") else value
