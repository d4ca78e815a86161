"""One run in one folder: experts, the loop with its checkpoints, evaluations beside it, and the result file.

A run may be killed at any moment. What it does again after a resume gives the same bits, because every step depends only on the
checkpoint and on named random streams.
"""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from raydd import planning
from raydd.config import Config, Execution, to_dict
from raydd.distill import distill, is_done
from raydd.errors import DivergenceError, StoreError
from raydd.experts.build import Progress, train_missing
from raydd.experts.store import Store
from raydd.methods import method
from raydd.runfolder import RunFolder
from raydd.services import Services
from raydd.session import Report, Session
from raydd.setup import MethodFactory, Setup, expert_store, needed_snapshots, prepare


class Stopped(Exception):
    """Raised while experts are trained when the user asked for a stop; finished experts stay."""


def never() -> bool:
    """A `should_stop` for what is not to be stopped."""
    return False


def identity(config: Config) -> dict[str, Any]:
    """What a checkpoint must agree on to be continued: all that decides the images, but not how far or how they are evaluated.

    Where the data lie is left out; that they are the same is known by their fingerprint.
    """
    values = to_dict(config)
    for name in ("steps", "evaluation") if config.selection.policy != "annealed" else ("evaluation",):
        values.pop(name)
    values["data"] = {**values["data"], "root": "", "source": config.data.source.partition(":")[0]}
    return values


def build_experts(setup: Setup, services: Services, report: Report, should_stop: Callable[[], bool] = never) -> Store:
    """The store with every expert that the run reads, training what is missing or too short.

    Raises `StoreError` instead when `train_experts` is off, and `Stopped` soon after `should_stop()`.
    """
    config = setup.config
    count, epochs = needed_snapshots(config)
    store = expert_store(setup)
    missing = store.missing(count, epochs)
    if missing and not setup.execution.train_experts:
        raise StoreError(
            f"--mtt.max_start_epoch={config.mtt.max_start_epoch} needs {count} experts of {epochs} epochs; the store lacks "
            f"{len(missing)} of them (the first is expert {missing[0]}). Run `raydd experts {config.recipe} --experts {count} "
            f"--experts.epochs {epochs}` with the same settings and --store, or leave out --no_train_experts."
        )
    if missing:

        def heed() -> None:
            if should_stop():
                raise Stopped

        def progress(at: Progress) -> None:
            report({"phase": "experts", **asdict(at)})
            heed()

        def run_jobs(*arguments: Any) -> None:
            services.run_jobs(*arguments, heed)

        train_missing(config, setup.dataset, setup.transform, store, run_jobs, progress, setup.execution)
    return store


def run(
    folder: RunFolder, config: Config, execution: Execution, services: Services, should_stop: Callable[[], bool], report: Report
) -> dict[str, Any]:
    """Run (or carry on) the distillation in `folder` until it is done or `should_stop()`; returns the content of result.json.

    `report` receives the progress as dictionaries with a `phase`. Raises the errors of the parts; checkpoints stay usable.
    """
    setup = prepare(config, execution, lambda done, total: report({"phase": "data", "done": done, "total": total}))
    planning.refuse(planning.predicted(config, execution, setup.model, len(setup.dataset.train.labels), timed=False))
    decided_by = {**identity(config), "data_fingerprint": setup.dataset.fingerprint}
    session = Session(folder, setup, decided_by, services, report)
    try:
        if not is_done(config, session.state):
            _distill(session, setup, services, should_stop, report)
        return session.finish(should_stop)
    finally:
        session.close()


def _distill(session: Session, setup: Setup, services: Services, should_stop: Callable[[], bool], report: Report) -> None:
    """Take the steps that are left, leaving the last state in the session."""
    store, rules = None, method(setup.config.method).networks
    if rules is None:
        try:
            store = build_experts(setup, services, report, should_stop)
        except Stopped:
            return
    executor = services.executor(MethodFactory.of(setup, store), independent=rules is not None and rules.independent)
    try:
        session.submit_waiting()
        distill(setup.config, session.state, executor, session.on_step, should_stop)
    except DivergenceError:
        session.stop_diverged()
        raise
    finally:
        executor.close()
