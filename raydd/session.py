"""The files of a run in progress: its state, records, checkpoints, evaluations and result.

The process may end between any two writes. Every file is either made from the newest checkpoint, or put back to it by the
next `Session`; see `tests/test_resume.py`.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from raydd import artifact, checkpoint
from raydd.config import to_dict
from raydd.distill import Record, State, is_done, next_stage
from raydd.errors import CheckpointError, ConfigError
from raydd.evaluate import rate
from raydd.files import check_fields, read_object
from raydd.progressive import first_step, joined, total_steps, up_to
from raydd.report import write_report
from raydd.runfolder import RunFolder, images_sha256
from raydd.saved_state import state_from, state_tensors
from raydd.services import Services
from raydd.setup import (
    EvaluationJob,
    EvaluatorFactory,
    Setup,
    compared,
    initial_set,
    job_decoding,
    protocol,
    random_job,
    staged,
    synthetic_job,
)
from raydd.stage_files import read_stages, write_stage
from raydd.types import SyntheticSet

Report = Callable[[dict[str, Any]], None]

# The result file is written beside checkpoints too, as often as costs at most one part in so many of the time.
_PREVIEW_SHARE = 50
_POLL_SECONDS = 0.05


class Session:
    """A run between two checkpoints. `state` is the newest state.

    Making one loads the newest good checkpoint and puts the records back to it, or starts anew where there is none. `identity` is
    what a checkpoint must agree on. Raises `CheckpointError` when there are checkpoints but none is good, `ConfigError` when the
    run has already gone further than asked for.
    """

    def __init__(self, folder: RunFolder, setup: Setup, identity: dict[str, Any], services: Services, report: Report):
        self._folder, self._setup, self._identity, self._services, self._report = folder, setup, identity, services, report
        self._background = services.background(EvaluatorFactory(setup.config, setup.execution))
        self._waiting: list[EvaluationJob] = []
        self._pending: dict[tuple[int, str], EvaluationJob] = {}
        self._recorded: set[tuple[int, str]] = set()
        self._started, self._seconds_before = time.monotonic(), 0.0
        self._previewed, self._preview_seconds = self._started, 0.0
        self._stage_hashes: list[str] = []
        self._resumed_at: int | None = None
        self.links: tuple[dict[str, Any], ...] = ()
        """The trainings behind the networks that the stages so far have started from (`raydd.transition.StageResources`)."""
        self.state, self.initial_images = self._resume() or self._begin()

    # Starting

    def _begin(self) -> tuple[State, torch.Tensor]:
        state = State.start(initial_set(staged(self._setup, 1)))
        self._rewind(0)
        if self._setup.config.evaluation.every:
            self._waiting.append(synthetic_job(self._setup.config, state.synthetic, 0))
        return state, state.synthetic.images

    def _resume(self) -> tuple[State, torch.Tensor] | None:
        if not any(self._folder.checkpoints.glob("*.safetensors")):
            return None
        found = checkpoint.load_latest(self._folder.checkpoints, self._identity)
        for warning in found.warnings:
            self._report({"phase": "warning", "text": f"{warning} Carrying on from {found.path.name}."})
        self._refuse_fewer_steps(found.step)
        _check_state(found)
        self._warn_of_rounding(found.state["rounding"])
        state = state_from(found.tensors, found.state, found.step)
        self._stage_hashes, self.links = found.state["stage_hashes"], tuple(found.state["links"])
        read_stages(self._folder.path, self._stage_hashes)  # refuses what is missing or altered before anything is done
        self._seconds_before = found.state["seconds"]
        self._rewind(found.step)
        self._resumed_at = found.step
        self._waiting = [self._unfinished(entry, found.tensors[_name(entry)], state.whole) for entry in found.state["pending"]]
        return state, found.tensors["initial_images"]

    def _unfinished(self, entry: dict[str, Any], images: torch.Tensor, whole: SyntheticSet) -> EvaluationJob:
        """An evaluation that a checkpoint holds: of the stages that there were then."""
        config, kind = self._setup.config, entry["kind"]
        rates = tuple(rate(config, lr) for lr in entry["rates"])
        then = up_to(whole, len(rates))
        return EvaluationJob(entry["step"], kind, images, then.labels, then.stages, rates, job_decoding(config, kind))

    def _refuse_fewer_steps(self, done: int) -> None:
        config = self._setup.config
        if done > total_steps(config):
            raise ConfigError([f"--steps={config.steps}: {self._folder.location} has done {done} steps already. Ask for at least as many."])

    def _warn_of_rounding(self, before: dict[str, Any]) -> None:
        now = _rounding(self._setup)
        for name in now:
            if now[name] != before.get(name):
                text = f"--{name} {now[name]} where the run had {before.get(name)}: equal up to rounding, not bit for bit."
                self._report({"phase": "warning", "text": text})

    def _rewind(self, step: int) -> None:
        """Put the records back to `step` steps done, and note which evaluations there are."""
        self._folder.remove_leftovers()
        self._folder.truncate_after(step - 1)
        settings = protocol(self._setup.config)
        for record in self._folder.read_evaluations():
            if record.get("protocol") == settings:
                self._recorded.add((record["step"], record["kind"]))

    def accept(self) -> None:
        """Have the folder name the settings that the run is carried on with, and where and from which step that is.

        Only from here on has a resumption changed the folder. A run that has got more to do is no longer complete.
        """
        if self._resumed_at is not None:
            self._folder.note_resumption(self._resumed_at, self._setup.execution)
        self._folder.update_config(self._setup.config)
        if self._folder.result.exists() and not is_done(self._setup.config, self.state):
            self._folder.write_result({**read_object(self._folder.result), "complete": False})

    def submit_waiting(self) -> None:
        """Start the evaluations that were due before the first step of this session."""
        for job in self._waiting:
            self._evaluate(job)
        self._waiting = []

    # Running

    def on_step(self, state: State, record: Record) -> None:
        """Write the step's record, and a checkpoint or an evaluation when one is due."""
        setup, self.state = self._setup, state
        record["seconds"]["evaluation"] = self._collect()
        self._folder.append(record)
        self._note_faults(record["step"])
        every = setup.config.evaluation.every
        if every and state.step % every == 0:
            self._evaluate(synthetic_job(setup.config, state.whole, state.step, step_sizes=state.stage_step_sizes))
        if state.step % setup.execution.checkpoint_every == 0:
            self.save()
            self._preview()
        stage = {"stage": state.stage, "stages": setup.config.stages.count} if setup.config.stages.count > 1 else {}
        self._report({"phase": "distill", "done": state.step, "total": total_steps(setup.config), "loss": record["loss"], **stage})

    def save(self) -> None:
        """Write a checkpoint of the state, with the evaluations that are still to be done."""
        tensors, values = state_tensors(self.state)
        unfinished = [*self._waiting, *self._pending.values()]
        pending = [{"step": job.step, "kind": job.kind, "rates": list(job.rates)} for job in unfinished]
        tensors |= {"initial_images": self.initial_images}
        tensors |= {_name(entry): job.images for entry, job in zip(pending, unfinished, strict=True)}
        values |= {"seconds": self._seconds(), "pending": pending, "rounding": _rounding(self._setup), "stage_hashes": self._stage_hashes}
        values |= {"links": list(self.links)}
        # After a loss of power too, no record may be missing that the checkpoint has behind it.
        self._folder.sync_records()
        keep = self._setup.execution.keep_checkpoints
        checkpoint.save(self._folder.checkpoints, self.state.step, tensors, values, self._identity, keep)
        self._folder.publish(self._report)

    def _preview(self) -> None:
        """The result file of a run in progress: at every checkpoint, but for large ones (ZCA matrices) more seldom."""
        started = time.monotonic()
        if started - self._previewed >= _PREVIEW_SHARE * self._preview_seconds:
            self._write_artifact()
            self._previewed = time.monotonic()
            self._preview_seconds = self._previewed - started

    # Stages

    def end_stage(self) -> None:
        """Keep the result of a finished stage that others are to follow: its file, and then a checkpoint that knows of it."""
        if len(self._stage_hashes) < self.state.stage:
            self._stage_hashes.append(write_stage(self._folder.path, self.state.stage, self._artifact()))
            self.save()

    def finished_stages(self) -> list[SyntheticSet]:
        """The images after each stage that `end_stage` has kept, as they were then, each with the step size of its last stage."""
        return read_stages(self._folder.path, self._stage_hashes)

    def enter_stage(self, block: SyntheticSet, links: tuple[dict[str, Any], ...]) -> None:
        """Begin the stage after the one that has ended, with its new images."""
        self.links = links
        self.initial_images = joined(replace(self.state.whole, images=self.initial_images, frozen=0), block).images
        self.state = next_stage(self._setup.config, self.state, block)

    # Ending

    def finish(self, should_stop: Callable[[], bool]) -> dict[str, Any]:
        """Write checkpoint and result, having evaluated what was asked for if all steps are done; the content of result.json.

        `complete` in it is whether nothing is left to do. Stops waiting for evaluations when `should_stop()`.
        """
        config, state = self._setup.config, self.state
        self.save()
        self._write_artifact()
        complete = is_done(config, state)
        if complete:
            if config.evaluation.at_end:
                learned = state.stage_step_sizes
                self._waiting.append(synthetic_job(config, state.whole, state.step, step_sizes=learned))
                self._waiting.append(random_job(self._setup, state.whole, state.step, learned))
            self._finish_evaluations(should_stop)
            complete = not (self._waiting or self._pending)
        self._note_faults(max(0, state.step - 1))
        result = self.write_result(complete)
        self._folder.publish(self._report, last=True)
        return result

    def write_result(self, complete: bool) -> dict[str, Any]:
        """Write result.json and the report; a report that fails is told of and takes nothing away."""
        state = self.state
        last = {record["kind"]: record for record in self._folder.read_evaluations() if record["step"] == state.step}
        evaluation = compared(last["synthetic"], last["random"]) if last.keys() >= {"synthetic", "random"} else None
        result = {"images_sha256": images_sha256(state.whole.images), "steps": state.step, "complete": complete, "evaluation": evaluation}
        stages = self._stage_results() if self._setup.config.stages.count > 1 else None
        self._folder.write_result({**result, "seconds": self._seconds()} | ({"stages": stages} if stages else {}))
        try:
            write_report(self._folder.path)
        except Exception as error:
            what = str(error) or type(error).__name__
            text = f"The report could not be written ({what}). The result is complete; try `raydd report {self._folder.location}`."
            self._report({"phase": "warning", "text": text})
        return result

    def _stage_results(self) -> list[dict[str, Any]]:
        """What each stage so far came to: its learned step size, the hash of the images after it, its best accuracy on the way."""
        config, state, found = self._setup.config, self.state, self._folder.read_evaluations()
        hashes = [*self._stage_hashes[: state.stage - 1], images_sha256(state.whole.images)]
        entries = []
        for stage, (sha256, size) in enumerate(zip(hashes, (*state.step_sizes, state.synthetic.step_size.item()), strict=True), start=1):
            first, last = first_step(config, stage), first_step(config, stage + 1)
            own = [record["accuracy_mean"] for record in found if record["kind"] == "synthetic" and first < record["step"] <= last]
            entries.append({"stage": stage, "step_size": size, "images_sha256": sha256, "best_accuracy": max(own, default=None)})
        return entries

    def stop_diverged(self) -> None:
        """Keep the last good state of a run that cannot go on: checkpoint, result file, result.json and report."""
        self.save()
        self._write_artifact()
        self._note_faults(max(0, self.state.step - 1))
        self.write_result(complete=False)
        self._folder.publish(self._report)

    def close(self) -> None:
        """Release the background evaluator."""
        self._background.close()

    def _write_artifact(self) -> None:
        artifact.write(self._folder.synthetic, self._artifact())

    def _artifact(self) -> artifact.Artifact:
        setup, state = self._setup, self.state
        return artifact.Artifact(
            synthetic=state.whole,
            initial_images=self.initial_images,
            transform=setup.transform.state(),
            rule=setup.transform.rule,
            classes=setup.dataset.classes,
            dataset=setup.dataset.name,
            fingerprint=setup.dataset.fingerprint,
            config=to_dict(setup.config),
            step=state.step,
            decode=job_decoding(setup.config, "synthetic"),
            step_sizes=state.step_sizes,
        )

    # Evaluations

    def _finish_evaluations(self, should_stop: Callable[[], bool]) -> None:
        """Do what waits and wait for what is under way."""
        self._waiting = [job for job in self._waiting if job.place not in self._recorded | self._pending.keys()]
        total, told = len(self._waiting) + len(self._pending), -1
        while (left := len(self._waiting) + len(self._pending)) and not should_stop():
            if told != total - left:
                told = total - left
                self._report({"phase": "evaluate", "done": told, "total": total})
            if self._waiting:
                self._evaluate(self._waiting.pop(0))
            if not self._collect() and not self._waiting:
                time.sleep(_POLL_SECONDS)

    def _evaluate(self, job: EvaluationJob) -> None:
        if job.place not in self._recorded | self._pending.keys():
            self._pending[job.place] = job
            self._background.submit(job.place, job)

    def _collect(self) -> float:
        """Record finished evaluations; returns the seconds that evaluating took."""
        seconds = 0.0
        finished = self._background.poll()
        for place, record in finished:
            self._folder.append_evaluation(record)
            self._recorded.add(place)
            self._pending.pop(place, None)
            self._report({"phase": "evaluation", **record})
            seconds += record["seconds"]
        if finished:
            self._folder.publish(self._report)
        return seconds

    def _note_faults(self, step: int) -> None:
        for kind, text in self._services.drain_events():
            self._folder.append_fault(step, kind, text)

    def _seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._started


def _check_state(found: checkpoint.Checkpoint) -> None:
    """Raise `CheckpointError` for a checkpoint whose seal is good and whose content no session has written."""
    check_fields(found.path, found.state, {"rounding": dict, "stage_hashes": list, "links": list, "seconds": (int, float), "pending": list})
    for entry in found.state["pending"]:
        check_fields(found.path, {"pending": entry}, {"pending": dict})
        check_fields(found.path, entry, {"step": int, "kind": str, "rates": list})
        if _name(entry) not in found.tensors:
            raise CheckpointError(f"{found.path}: lacks the images of an evaluation.")
    for name, kind in (("links", dict), ("stage_hashes", str)):
        for entry in found.state[name]:
            check_fields(found.path, {name: entry}, {name: kind})
    if len(found.state["links"]) > len(found.state["stage_hashes"]):
        raise CheckpointError(f"{found.path}: names more start networks than stages before.")
    if "initial_images" not in found.tensors:
        raise CheckpointError(f"{found.path}: lacks the initial images.")
    try:
        state_from(found.tensors, found.state, found.step)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{found.path}: does not hold the state of a run ({error}).") from error


def _name(entry: dict[str, Any]) -> str:
    """The tensor of an unfinished evaluation in a checkpoint."""
    return f"pending.{entry['step']}.{entry['kind']}"


def _rounding(setup: Setup) -> dict[str, Any]:
    """Settings of execution that decide the order of sums, and with it the last bits."""
    return {"device": setup.device.type, "threads": setup.execution.threads}
