"""One run in one folder: experts, the loop with its checkpoints, evaluations beside it, and the result file.

A run may be killed at any moment. What it does again after a resume gives the same bits, because every step depends only on the
checkpoint and on named random streams.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import torch

from raydd import artifact, checkpoint, plan
from raydd.config import Config, Execution, to_dict
from raydd.distill import Record, State, distill
from raydd.errors import StoreError
from raydd.experts.build import Progress, train_missing
from raydd.experts.store import Store
from raydd.report import write_report
from raydd.runfolder import RunFolder, images_sha256
from raydd.services import Services
from raydd.setup import (
    EvaluationJob,
    EvaluatorFactory,
    MethodFactory,
    Setup,
    expert_store,
    initial_set,
    needed_snapshots,
    prepare,
    random_job,
    synthetic_job,
)
from raydd.types import SyntheticSet

Report = Callable[[dict[str, Any]], None]


def identity(config: Config) -> dict[str, Any]:
    """What a checkpoint must agree on to be continued: all that decides the images, but not how far or how they are evaluated."""
    values = to_dict(config)
    for name in ("steps", "evaluation") if config.selection.policy != "annealed" else ("evaluation",):
        values.pop(name)
    return values


def build_experts(setup: Setup, services: Services, report: Report) -> Store:
    """The store with every expert that the run reads, training what is missing or too short.

    Raises `StoreError` instead when `train_experts` is off.
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

        def progress(at: Progress) -> None:
            report({"phase": "experts", **asdict(at)})

        train_missing(config, setup.dataset, setup.transform, store, services.run_jobs, progress, str(setup.device))
    return store


def run(
    folder: RunFolder, config: Config, execution: Execution, services: Services, should_stop: Callable[[], bool], report: Report
) -> dict[str, Any]:
    """Run (or carry on) the distillation in `folder` until it is done or `should_stop()`; returns the content of result.json.

    `report` receives the progress as dictionaries with a `phase`. Raises the errors of the parts; checkpoints stay usable.
    """
    setup = prepare(config, execution, lambda done, total: report({"phase": "data", "done": done, "total": total}))
    plan.refuse_what_cannot_fit(plan.predict(config, execution, setup.model, timed=False))
    store = build_experts(setup, services, report)
    session = Session(folder, setup, services, report)
    executor = services.executor(MethodFactory.of(setup, store))
    try:
        state = distill(config, session.state, executor, session.on_step, should_stop)
        session.save(state)
        return session.finish(state)
    finally:
        executor.close()
        session.close()


class Session:
    """The files and the background evaluations of a run in progress."""

    def __init__(self, folder: RunFolder, setup: Setup, services: Services, report: Report):
        self._folder, self._setup, self._services, self._report = folder, setup, services, report
        self._background = services.background(EvaluatorFactory(setup.config, setup.execution))
        self._pending: dict[tuple[int, str], EvaluationJob] = {}
        self._started, self._seconds_before = time.monotonic(), 0.0
        self.state, self.initial_images = self._resume() or self._begin()

    def _begin(self) -> tuple[State, torch.Tensor]:
        synthetic = initial_set(self._setup)
        self._folder.truncate_after(-1)
        if self._setup.config.evaluation.every:
            self._evaluate(synthetic_job(self._setup.config, synthetic, 0))
        return State.start(synthetic), synthetic.images

    def _resume(self) -> tuple[State, torch.Tensor] | None:
        if not any(self._folder.checkpoints.glob("*.safetensors")):
            return None
        found = checkpoint.load_latest(self._folder.checkpoints, identity(self._setup.config))
        for warning in found.warnings:
            self._report({"phase": "warning", "text": warning})
        tensors = found.tensors
        synthetic = SyntheticSet(*(tensors[name] for name in ("images", "labels", "step_size", "stages")))
        state = State(synthetic, tensors["velocity_images"], tensors["velocity_step_size"], found.step, found.state["skips"])
        self._seconds_before = found.state["seconds"]
        self._folder.truncate_after(found.step - 1)
        self._folder.note_resumption(found.step, self._setup.execution)
        self._resubmit(found)
        return state, tensors["initial_images"]

    def _resubmit(self, found: checkpoint.Checkpoint) -> None:
        """Evaluations that were under way at the checkpoint and whose records never came."""
        done = {(record["step"], record["kind"]) for record in self._folder.read_evaluations()}
        for entry in found.state["pending"]:
            place = (entry["step"], entry["kind"])
            if place not in done:
                images = found.tensors[f"pending.{place[0]}.{place[1]}"]
                self._evaluate(EvaluationJob(*place, images, found.tensors["labels"], entry["lr"]))

    def on_step(self, state: State, record: Record) -> None:
        """Write the step's record, and a checkpoint or an evaluation when one is due."""
        setup = self._setup
        record["seconds"]["evaluation"] = self._collect(self._background.poll())
        self._folder.append(record)
        for kind, text in self._services.drain_events():
            self._folder.append_fault(record["step"], kind, text)
        every = setup.config.evaluation.every
        if every and state.step % every == 0 and state.step < setup.config.steps:
            self._evaluate(synthetic_job(setup.config, state.synthetic, state.step))
        if state.step % setup.execution.checkpoint_every == 0:
            self.save(state)
        self._report({"phase": "distill", "done": state.step, "total": setup.config.steps, "loss": record["loss"]})

    def save(self, state: State) -> None:
        """Write a checkpoint of this state, with the evaluations that are still under way."""
        tensors = {
            "images": state.synthetic.images,
            "labels": state.synthetic.labels,
            "step_size": state.synthetic.step_size,
            "stages": state.synthetic.stages,
            "velocity_images": state.velocity_images,
            "velocity_step_size": state.velocity_step_size,
            "initial_images": self.initial_images,
        }
        tensors |= {f"pending.{step}.{kind}": job.images for (step, kind), job in self._pending.items()}
        pending = [{"step": step, "kind": kind, "lr": job.lr} for (step, kind), job in self._pending.items()]
        values = {"skips": state.skips, "seconds": self._seconds(), "pending": pending}
        setup = self._setup
        checkpoint.save(self._folder.checkpoints, state.step, tensors, values, identity(setup.config), setup.execution.keep_checkpoints)

    def finish(self, state: State) -> dict[str, Any]:
        """Write the result file, evaluate what was asked for, write result.json and the report."""
        setup, config, synthetic = self._setup, self._setup.config, state.synthetic
        complete = state.step >= config.steps
        artifact.write(self._folder.synthetic, self._artifact(state))
        if complete and config.evaluation.at_end:
            self._evaluate(synthetic_job(config, synthetic, state.step))
            self._evaluate(random_job(setup, synthetic.labels, state.step))
        if complete:
            self._report({"phase": "evaluate", "done": 0, "total": len(self._pending)})
            self._collect(self._background.drain())
        last = {record["kind"]: record for record in self._folder.read_evaluations() if record["step"] == state.step}
        evaluation = _summary(last) if complete and config.evaluation.at_end else None
        self._folder.write_result(images_sha256(synthetic.images), state.step, self._seconds(), evaluation)
        write_report(self._folder.path)
        return {"images_sha256": images_sha256(synthetic.images), "steps": state.step, "complete": complete, "evaluation": evaluation}

    def close(self) -> None:
        """Release the background evaluator."""
        self._background.close()

    def _artifact(self, state: State) -> artifact.Artifact:
        setup = self._setup
        return artifact.Artifact(
            synthetic=state.synthetic,
            initial_images=self.initial_images,
            transform=setup.transform.state(),
            rule=setup.transform.rule,
            classes=setup.dataset.classes,
            dataset=setup.dataset.name,
            fingerprint=setup.dataset.fingerprint,
            config=to_dict(replace(setup.config)),
            step=state.step,
        )

    def _evaluate(self, job: EvaluationJob) -> None:
        place = (job.step, job.kind)
        self._pending[place] = job
        self._background.submit(place, job)

    def _collect(self, results: list[tuple[tuple[int, str], dict[str, Any]]]) -> float:
        """Record finished evaluations; returns the seconds that evaluating took."""
        for place, record in results:
            self._folder.append_evaluation(record)
            self._pending.pop(tuple(place), None)
            self._report({"phase": "evaluation", **record})
        return sum(record["seconds"] for _, record in results)

    def _seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._started


def _summary(last: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The evaluation of the final images beside random real ones, as `raydd evaluate --json` prints it."""
    synthetic, random = last["synthetic"], last["random"]
    return {
        "accuracy_mean": synthetic["accuracy_mean"],
        "accuracy_std": synthetic["accuracy_std"],
        "nets": synthetic["nets"],
        "random_accuracy_mean": random["accuracy_mean"],
        "random_accuracy_std": random["accuracy_std"],
    }
