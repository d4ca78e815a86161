"""A sweep from its arms to its files: what the cluster must have, Tune's part, and what came of it.

Run folders are the truth. A sweep of given arms is always a new Tune experiment over the trials that are left; a search is restored by
Tune, because the searcher remembers. Either way a trial carries on from its run's own checkpoint. Sources: specs/ray.md section 1.1.
"""

import os
import re
import sys
from dataclasses import replace
from typing import Any

import torch
from ray import tune
from ray.tune.experiment import Trial
from rich.console import Console

from raydd import plan as planner
from raydd.actors.cluster import connect, describe, disconnect, preflight
from raydd.actors.trial import TrialPlan, run_trial
from raydd.config import override, to_dict
from raydd.errors import ResourceError
from raydd.files import atomic_write_bytes
from raydd.places import join, working_folder
from raydd.progressive import total_steps
from raydd.report.sweep import write_sweep_report
from raydd.rng import stream
from sweeping import outcome, storage
from sweeping.arguments import Options, shown
from sweeping.feedback import Board, Lines
from sweeping.outcome import Order
from sweeping.question import SEARCH, Arm, Question, named
from sweeping.spaces import domain, scheduler, searcher, spaces_of
from sweeping.table import markdown, table

_REPORTS = 50
_TUNE = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "10",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "60",
}  # the misspelt name is Tune's


def sweep(question: Question, options: Options, arms: list[Arm]) -> int:
    """Run what is left of a sweep, write its files and print its table; returns the exit code. Raises `RayddError`s."""
    for name, value in _TUNE.items():
        os.environ.setdefault(name, value)
    plan = trial_plan(question, options, arms)
    working_folder(options.folder).mkdir(parents=True, exist_ok=True)
    arms = arms if question.space else drawn(arms, options.num_samples)
    orders = [outcome.order_for(plan, arm, seed) for arm in arms for seed in options.seeds]
    varied = {name for given, _ in orders for name in given["settings"]} | {name for name, _ in _spaces(question, options)}
    names = sorted(varied - {"evaluation.every"})  # it follows from the steps
    storage.fetch(plan.runs, [order.run.name for _, order in orders if order.run])
    left = [pair for pair in orders if question.space or not outcome.is_finished(pair[1], plan.config(pair[0]))]
    if left:
        found, without = _on_ray(question, options, plan, left, Board(plan, names))
    else:
        found, without = [], ""
    by_run = {order.run: order for order in found}
    trials = found if question.space else [by_run.get(order.run, order) for _, order in orders]
    if question.space:
        arms = [order.arm for order in trials]
    return _conclude(question, options, plan, arms, trials, without)


def trial_plan(question: Question, options: Options, arms: list[Arm]) -> TrialPlan:
    """What the trials have in common, before a cluster is known."""
    bases = {recipe: to_dict(options.base(recipe)) for recipe in {arm.recipe for arm in arms}}
    configs = [override(options.base(arm.recipe), arm.settings) for arm in arms]
    every = options.every or max(1, min(total_steps(config) for config in configs) // _REPORTS)
    # A fork begins at a checkpoint, so that a population has one for every evaluation.
    often = min([options.execution.checkpoint_every, *(config.evaluation.every or 100 for config in configs)])
    execution = replace(options.execution, checkpoint_every=often if options.scheduler == "pbt" else options.execution.checkpoint_every)
    local, cuda = options.address == "local", options.execution.device == "cuda"
    cuda = cuda or (local and options.execution.device == "auto" and torch.cuda.is_available())
    return TrialPlan(
        runs=join(options.folder, "runs"),
        bases=bases,
        execution=execution,
        gpus=(options.gpus or 1.0) if cuda else 0.0,
        local=local,
        every=every,
        population=options.scheduler == "pbt",
        models=question.models(options),
    )


def drawn(arms: list[Arm], count: int | None) -> list[Arm]:
    """So many arms by lot, in their order; all when `count` is None. Every resumption draws the same."""
    if count is None or count >= len(arms):
        return arms
    places = torch.randperm(len(arms), generator=stream(0, 0, "sweep-arms"))[:count]
    return [arms[place] for place in sorted(places.tolist())]


def _on_ray(
    question: Question, options: Options, plan: TrialPlan, left: list[tuple[dict[str, Any], Order]], board: Board
) -> tuple[list[Order], str]:
    """Run these trials; returns them with what Tune says, and why trials did not start, if any."""
    each = max(sum(bundle.get("CPU", 0.0) for bundle in plan.bundles(given)) for given, _ in left)
    at_once = options.max_concurrent or (max(1, int(planner.cores() // each)) if plan.local else None)
    at_once = min(at_once, len(left)) if at_once and not question.space else at_once
    connection = connect(options.address, num_cpus=int((at_once or 1) * each))
    try:
        cluster = describe()
        remote = not plan.local and options.execution.device == "auto" and cluster.total("GPU") > 0
        plan = replace(plan, gpus=(options.gpus or 1.0) if remote else plan.gpus, driver=cluster.total("driver") > 0)
        plan = plan if plan.local else replace(plan, devices=cluster.workers(plan.execution.threads, plan.gpus))
        for given, order in left:
            try:
                preflight(plan.bundles(given), cluster)
            except ResourceError as error:
                raise ResourceError(f"{order.arm.name}: {error}") from error
        told = connection.dashboard and f"dashboard: {connection.dashboard}"
        print(f"{len(left)} trials to run, {at_once or 'as many as fit'} at once {told}".rstrip(), flush=True)
        grid = _tuner(question, options, plan, [given for given, _ in left], at_once, board).fit()
        without = f"no room or no time: a trial asks for up to {each:g} CPUs; the cluster has {cluster.total('CPU'):g}, for all trials"
        return (_searched(grid, left[0][1]) if question.space else _answered(grid, left)), without
    finally:
        disconnect(connection)


def _spaces(question: Question, options: Options) -> list[tuple[str, str]]:
    return spaces_of(options) if question.space else []


def _tuner(
    question: Question, options: Options, plan: TrialPlan, orders: list[dict[str, Any]], at_once: int | None, board: Board
) -> tune.Tuner:
    trainable = tune.with_resources(tune.with_parameters(run_trial, plan=plan), plan)
    # Killed in its first moments it has no state yet; the same seed then draws the same settings, whose runs are there.
    known = storage.holds(options.folder, "experiment_state-") and tune.Tuner.can_restore(options.folder)
    if question.space and options.resume and known:
        return tune.Tuner.restore(options.folder, trainable, resume_errored=True)
    order: Any = tune.grid_search(orders)
    if question.space:
        space = {name: domain(name, text) for name, text in _spaces(question, options)}
        order = {**orders[0], "settings": {**orders[0]["settings"], **space}}
    return tune.Tuner(
        trainable,
        param_space={"order": order},
        tune_config=tune.TuneConfig(
            metric="accuracy",
            mode="max",
            num_samples=(options.num_samples or 10) if question.space else 1,
            max_concurrent_trials=None if options.scheduler == "pbt" else at_once,
            search_alg=searcher(options) if question.space else None,
            scheduler=scheduler(options),
            time_budget_s=options.time_budget,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=tune.RunConfig(
            name=options.name,
            storage_path=options.storage,
            callbacks=[Lines(), board],
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=3),
            # All of a population's are kept: Tune would delete a donor's before the other trial has its turn.
            checkpoint_config=tune.CheckpointConfig(),
        ),
    )


def _trial_name(trial: Trial) -> str:
    """The folder of a trial in Tune's experiment; that of a search needs Tune's number."""
    order = trial.config["order"]
    own = f"-{trial.trial_id}" if order["arm"] == SEARCH else ""
    return re.sub(r"[^A-Za-z0-9.+=-]+", "_", f"{order['arm']}-seed{order['seed']}")[:80] + own


def _said(result: tune.Result) -> str:
    """Why a trial failed, in one sentence; "" when it did not."""
    failure = (result.metrics or {}).get("failure", "")
    if failure or result.error is None:
        return failure
    cause: BaseException = result.error
    while isinstance(getattr(cause, "cause", None), BaseException):
        cause = cause.cause
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[-1] if lines else 'no detail'}"[:500]


def _answered(grid: tune.ResultGrid, left: list[tuple[dict[str, Any], Order]]) -> list[Order]:
    """The trials of given arms with what Tune says of them; one that Tune says nothing of has not started."""
    said = {(r.config["order"]["arm"], r.config["order"]["seed"]): _said(r) for r in grid if r.config}
    return [replace(order, failure=said.get((given["arm"], given["seed"]), "")) for given, order in left]


def _searched(grid: tune.ResultGrid, base: Order) -> list[Order]:
    """The trials of a search, every one an arm of its own."""
    orders = []
    for number, result in enumerate(grid):
        given = result.config["order"] if result.config else {"settings": {}}
        settings = {name: _plain(value) for name, value in given["settings"].items()}
        factors = {name: value for name, value in settings.items() if name not in base.settings}
        arm = replace(base.arm, name=f"{number}: {named(factors)}" if factors else f"{number}", settings=settings, factors=factors)
        run = (result.metrics or {}).get("run")
        orders.append(Order(arm, base.seed, settings, working_folder(run) if run else None, _said(result), factors))
    return orders


def _plain(value: Any) -> Any:
    """A number as Python has it; samplers give numpy's."""
    return value.item() if hasattr(value, "item") else value


def _conclude(question: Question, options: Options, plan: TrialPlan, arms: list[Arm], orders: list[Order], without: str) -> int:
    """Write what came of the sweep and print it; returns the exit code."""
    folder = working_folder(options.folder)
    without = without or "the sweep ended before its turn"
    storage.fetch(plan.runs, [order.run.name for order in orders if order.run])
    trials = [outcome.trial_record(order, folder, without) for order in orders]
    found = outcome.write(folder, outcome.summary(question, options.recipe, shown(options), arms, trials), plan)
    atomic_write_bytes(folder / "table.md", markdown(found).encode())
    Console(width=None if sys.stdout.isatty() else 160).print(table(found))
    for trial in trials:
        if trial["status"] not in ("finished", "stopped"):
            print(f"{trial['arm']} seed={trial['seed']} {trial['status']}: {trial['reason']}", file=sys.stderr)
    write_sweep_report(folder)
    storage.deliver(options.folder)
    place = options.folder
    print(f"results: {join(place, 'sweep.json')}\nreport: {join(place, 'report.html')}\ntensorboard --logdir {place}", flush=True)
    if any(trial["status"] == "interrupted" for trial in trials):
        return 130
    return 2 if any(trial["status"] in ("failed", "never started") for trial in trials) else 0
