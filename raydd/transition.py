"""What a stage computes with: its experts, or the networks that it starts from.

Whatever is missing is trained first, in parallel and resumably: finished networks stay when this is interrupted.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from raydd import curriculum_scores
from raydd.errors import ConfigError, StoreError
from raydd.experts.build import open_store, store_root, train_missing
from raydd.experts.jobs import Progress, RunJobs
from raydd.experts.starts import TRAINED_LIKE, Link, StartsPlace, build_starts, links
from raydd.experts.store import Store
from raydd.methods import method
from raydd.progressive import of_stage
from raydd.services import Services
from raydd.session import Report
from raydd.setup import MethodFactory, Setup, expert_store, needed_snapshots, staged
from raydd.types import SyntheticSet


class Stopped(Exception):
    """Raised while networks are trained when the user asked for a stop; finished ones stay."""


def never() -> bool:
    """A `should_stop` for what is not to be stopped."""
    return False


@dataclass(frozen=True)
class StageResources:
    """What a stage computes with.

    setup    that of the run, with the real images of the stage
    experts  the store that the stage matches against, its own or that of the first stage; None for a method without experts
    starts   where the networks lie that the stage, or its experts, started from; None for fresh ones
    links    the trainings behind these networks, JSON-ready: a run goes on with the same
    """

    setup: Setup
    stage: int
    experts: Store | None = None
    starts: StartsPlace | None = None
    links: tuple[dict[str, Any], ...] = ()

    def factory(self) -> MethodFactory:
        """Builds the method of the stage in whichever process calls it."""
        return MethodFactory.of(self.setup, self.experts, self.starts)


def stage_resources(
    setup: Setup,
    stage: int,
    finished: Sequence[SyntheticSet],
    services: Services,
    report: Report,
    should_stop: Callable[[], bool] = never,
) -> StageResources:
    """Train what stage number `stage` needs and the stores lack.

    `finished` are the images after each earlier stage, U_1 to U_{stage - 1}, each with the step size that its last stage learned. They
    decide the start networks together with the settings of `raydd.experts.starts.links`. Reports have the phase transition, for start
    networks, or experts, with the stage and what `raydd.experts.jobs.Progress` holds. The networks of later stages belong to the
    run, and are trained whatever `train_experts` says. Raises `Stopped` soon after `should_stop()`.
    """
    over_experts, own = method(setup.config.method).networks is None, staged(setup, stage)
    if stage == 1 or not setup.config.stages.transition:
        return StageResources(own, stage, build_experts(own, services, report, should_stop) if over_experts else None)
    run_jobs, progress = _watched(services, report, should_stop, {"phase": "transition", "stage": stage})
    count = needed_snapshots(setup.config)[0] if over_experts else setup.config.stages.networks
    chain = _chain(setup, finished[: stage - 1])
    behind = tuple(link.identity() for link in chain)
    root = store_root(setup.execution)
    starts = build_starts(setup.config, setup.dataset, chain, count, root, run_jobs, progress, setup.execution)
    if not over_experts:
        return StageResources(own, stage, None, starts, behind)
    run_jobs, progress = _watched(services, report, should_stop, {"phase": "experts", "stage": stage})
    return StageResources(own, stage, stage_experts(own, starts, run_jobs, progress), starts, behind)


def _chain(setup: Setup, finished: Sequence[SyntheticSet]) -> list[Link]:
    """The trainings behind start networks: on all images so far, or without conditioning on those of each stage alone."""
    unions = finished
    if not setup.config.stages.conditioning:
        unions = [of_stage(union, stage) for stage, union in enumerate(finished, start=1)]
    return links(setup.config, setup.model, setup.transform, unions)


def refuse_other_links(setup: Setup, finished: Sequence[SyntheticSet], known: Sequence[dict[str, Any]]) -> None:
    """Raise `ConfigError` where the evaluation settings would make other start networks than those that stages of the run have used.

    `known` are the `StageResources.links` of the run's stage, `finished` as for `stage_resources`.
    """
    for stage, (link, theirs) in enumerate(zip(_chain(setup, finished[: len(known)]), known, strict=True), start=2):
        ours = json.loads(json.dumps(link.identity()))  # as the known ones have been through a file
        changed = [name for name in ours if ours[name] != theirs.get(name)]
        if changed:
            raise ConfigError(
                [
                    f"--evaluation: the networks that stage {stage} started from were trained as the run's evaluation did then, and now "
                    f"{' and '.join(changed)} would differ. Keep {', '.join(TRAINED_LIKE[:-1])} and {TRAINED_LIKE[-1]}, or "
                    "evaluate the result otherwise with raydd evaluate."
                ]
            )


def stage_experts(setup: Setup, starts: StartsPlace, run_jobs: RunJobs, progress: Callable[[Progress], None]) -> Store:
    """The store of the experts that begin as these networks and train on the real data of `setup`; trains what is missing.

    They are as long as the stage reads, at a constant rate: `experts.epochs` and `experts.decay` are for those of the first stage.
    """
    config = replace(setup.config, experts=replace(setup.config.experts, count=starts.count, epochs=None, decay=False))
    store = open_store(config, starts.root, setup.dataset, starts=starts)
    train_missing(config, setup.dataset, setup.transform, store, run_jobs, progress, setup.execution, starts, setup.stage)
    return store


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
        run_jobs, progress = _watched(services, report, should_stop, {"phase": "experts"})
        train_missing(config, setup.dataset, setup.transform, store, run_jobs, progress, setup.execution, stage=setup.stage)
    return store


def ready_curriculum(setup: Setup, services: Services, report: Report, should_stop: Callable[[], bool] = never) -> dict[str, Any] | None:
    """Have the scores that decide which real images each stage uses, `raydd.curriculum_scores.ready`; None without a curriculum.

    Raises `Stopped` soon after `should_stop()`.
    """
    run_jobs, _ = _watched(services, report, should_stop, {})

    def heed() -> None:
        if should_stop():
            raise Stopped

    root = store_root(setup.execution)
    return curriculum_scores.ready(setup.config, root, setup.dataset, setup.transform, setup.execution, run_jobs, report, heed)


def _watched(
    services: Services, report: Report, should_stop: Callable[[], bool], phase: dict[str, Any]
) -> tuple[RunJobs, Callable[[Progress], None]]:
    """Jobs on the services that end soon after `should_stop()`, and progress that is reported as part of a phase."""

    def heed() -> None:
        if should_stop():
            raise Stopped

    def progress(at: Progress) -> None:
        report({**phase, **asdict(at)})
        heed()

    def run_jobs(*arguments: Any) -> None:
        services.run_jobs(*arguments, heed)

    return run_jobs, progress
