"""One run in one folder: experts, the loop with its checkpoints, evaluations beside it, and the result file.

A run may be killed at any moment. What it does again after a resume gives the same bits, because every step depends only on the
checkpoint and on named random streams.
"""

from collections.abc import Callable
from typing import Any

from raydd import planning
from raydd.config import Config, Execution, to_dict
from raydd.distill import distill, is_done, is_stage_done
from raydd.errors import DivergenceError
from raydd.files import atomic_write_json
from raydd.methods import method
from raydd.runfolder import RunFolder
from raydd.services import Services
from raydd.session import Report, Session
from raydd.setup import Setup, initial_set, prepare
from raydd.stage_config import of_the_count
from raydd.transition import StageResources, Stopped, ready_curriculum, refuse_other_links, stage_resources


def identity(config: Config) -> dict[str, Any]:
    """What a checkpoint must agree on to be continued: all that decides the images, but not how far or how they are evaluated.

    How far is the number of steps, and of stages, unless a curriculum divides the images by it. Where the data lie is left out; that
    they are the same is known by their fingerprint.
    """
    values = to_dict(config)
    if not of_the_count(config):
        values["stages"].pop("count")
    for name in ("steps", "evaluation") if config.selection.policy != "annealed" else ("evaluation",):
        values.pop(name)
    values["data"] = {**values["data"], "root": "", "source": config.data.source.partition(":")[0]}
    return values


def run(
    folder: RunFolder, config: Config, execution: Execution, services: Services, should_stop: Callable[[], bool], report: Report
) -> dict[str, Any]:
    """Run (or carry on) the distillation in `folder` until it is done or `should_stop()`; returns the content of result.json.

    `report` receives the progress as dictionaries with a `phase`. Raises the errors of the parts; checkpoints stay usable.
    """
    setup = prepare(config, execution, lambda done, total: report({"phase": "data", "done": done, "total": total}))
    planning.refuse_run(config, execution, setup.model, len(setup.dataset.train.labels))
    try:
        told = ready_curriculum(setup, services, report, should_stop)
    except Stopped:
        return {"images_sha256": "", "steps": 0, "complete": False, "evaluation": None}
    decided_by = {**identity(config), "data_fingerprint": setup.dataset.fingerprint}
    session = Session(folder, setup, decided_by, services, report)
    try:
        refuse_other_links(setup, session.finished_stages(), session.links)
        session.accept()
        for text in folder.told:
            report({"phase": "warning", "text": text})
        if told is not None:
            atomic_write_json(folder.path / "curriculum.json", told)
        _warn(setup, report)
        _stages(session, setup, services, should_stop, report)
        return session.finish(should_stop)
    finally:
        session.close()


def _warn(setup: Setup, report: Report) -> None:
    """Tell of settings that work, and perhaps not as meant.

    Stored images whose side the factor does not divide are filled up (`raydd.decode`). Earlier images that move leave the networks behind
    that were trained on them (the PDD paper, appendix A3.2).
    """
    config, side = setup.config, setup.model.shape[-1]
    factor, stages = method(config.method).decoding(config).factor, config.stages
    if side % factor:
        text = (
            f"--idc.factor={factor} does not divide {side} pixels: stored images are filled up with grey to {-(-side // factor) * factor} "
            "pixels a side. A factor that divides the side wastes nothing."
        )
        report({"phase": "warning", "text": text})
    if stages.count > 1 and stages.transition and stages.frozen_lr_scale:
        text = (
            f"--stages.frozen_lr_scale={stages.frozen_lr_scale:g} moves images of earlier stages: start networks were trained on earlier "
            "versions of them. The paper found that worse than frozen images."
        )
        report({"phase": "warning", "text": text})


def _stages(session: Session, setup: Setup, services: Services, should_stop: Callable[[], bool], report: Report) -> None:
    """Go through the stages that are left, leaving the last state in the session."""
    config = setup.config
    while not is_done(config, session.state):
        over = is_stage_done(config, session.state)
        stage = session.state.stage + over
        if over:
            session.end_stage()
        try:
            resources = stage_resources(setup, stage, session.finished_stages(), services, report, should_stop)
        except Stopped:
            return
        except DivergenceError:
            if stage > 1:
                session.stop_diverged()
            raise
        if over:
            session.enter_stage(initial_set(resources.setup, stage, resources.starts), resources.links)
        _distill(session, resources, services, should_stop)
        if not is_stage_done(config, session.state):
            return  # stopped


def _distill(session: Session, resources: StageResources, services: Services, should_stop: Callable[[], bool]) -> None:
    """Take the steps that are left of a stage."""
    setup, rules = resources.setup, method(resources.setup.config.method).networks
    executor = services.executor(resources.factory(), independent=rules is not None and rules.independent)
    try:
        session.submit_waiting()
        distill(setup.config, session.state, executor, session.on_step, should_stop)
    except DivergenceError:
        session.stop_diverged()
        raise
    finally:
        executor.close()
