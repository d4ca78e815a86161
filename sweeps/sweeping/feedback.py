"""What is seen of a sweep while it runs: lines on the terminal, TensorBoard with images, and the note of a trial that fell behind."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.logger import TBXLoggerCallback
from ray.tune.schedulers import ASHAScheduler
from tensorboardX.summary import hparams

from raydd.actors.trial import TrialPlan
from raydd.config import flatten, to_dict
from sweeping.outcome import STOPPED
from sweeping.question import SEARCH
from sweeping.storage import note

_COMPARED = tuple(f"ray/tune/{name}" for name in ("accuracy", "best_accuracy", "accuracy_std", "loss", "device_seconds", "passes"))
_ASIDE = ("picture", "run", "failure", "finished", "done", "time_this_iter_s", "time_since_restore", "iterations_since_restore")


class Lines(tune.Callback):
    """One line for every start and end of a trial, and for every new evaluation."""

    def __init__(self) -> None:
        self._shown: dict[str, int] = {}

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Say which trial begins."""
        print(f"{label(trial)}: started", flush=True)

    def on_trial_result(self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any) -> None:
        """Show accuracies as they come."""
        evaluated = result.get("evaluated_step", 0)
        if result.get("failure"):
            print(f"{label(trial)}: {result['failure']}", flush=True)
        elif evaluated > self._shown.get(trial.trial_id, -1) and not math.isnan(result.get("accuracy", math.nan)):
            self._shown[trial.trial_id] = evaluated
            loss = "" if math.isnan(result.get("loss", math.nan)) else f", loss {result['loss']:.4g}"
            print(f"{label(trial)}: step {evaluated}, accuracy {result['accuracy']:.2%}{loss}", flush=True)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Say that a trial died; Tune says itself whether it tries again."""
        print(f"{label(trial)}: died; its log is in {trial.storage.trial_fs_path if trial.storage else 'its folder'}", flush=True)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Count trials that are over."""
        over = sum(other.is_finished() for other in trials)
        print(f"{label(trial)}: over ({over + (not trial.is_finished())} of {len(trials)})", flush=True)


class Board(TBXLoggerCallback):
    """TensorBoard files of scalars, hyper-parameters and the synthetic images; steps are distillation steps.

    `names` are the settings shown as hyper-parameters, the same for all trials: TensorBoard takes the columns of its table from one.
    """

    def __init__(self, plan: TrialPlan, names: Sequence[str]) -> None:
        super().__init__()
        self._plan, self._names = plan, names

    def log_trial_result(self, iteration: int, trial: Trial, result: dict[str, Any]) -> None:
        """Write a report without what Tune keeps for itself."""
        super().log_trial_result(iteration, trial, {name: value for name, value in result.items() if name not in _ASIDE})
        if "evaluated_step" not in result:  # a trial that was refused
            return
        if result["evaluated_step"] or not math.isnan(result["accuracy"]):  # it may come later than the steps that it is of
            self._trial_writer[trial].add_scalar("test accuracy", result["accuracy"], global_step=result["evaluated_step"])
        picture = result.get("picture")
        if picture and Path(picture).exists():
            pixels = np.asarray(Image.open(picture).convert("RGB"))
            self._trial_writer[trial].add_image("synthetic images", pixels, global_step=result["evaluated_step"], dataformats="HWC")

    def _try_log_hparams(self, trial: Trial, result: dict[str, Any]) -> None:
        """Hyper-parameters under the names of raydd's settings, with the measurements that trials are compared by."""
        order = trial.config["order"]
        known = flatten(to_dict(self._plan.config(order)))
        values = {"arm": order["arm"], "seed": order["seed"], **{name: known[name] for name in self._names}}
        plain = {name: value if isinstance(value, (str, bool, int, float)) else str(value) for name, value in values.items()}
        for part in hparams(hparam_dict=plain, metric_dict={name: result.get(name, math.nan) for name in _COMPARED}):
            self._trial_writer[trial].file_writer.add_summary(part)


class Halving(ASHAScheduler):
    """Successive halving that leaves a note in the run folder of every trial that it ends, so that it is not taken for interrupted."""

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Tune's decision on a report."""
        decision = super().on_trial_result(tune_controller, trial, result)
        if decision == self.STOP and not result.get("finished") and result.get("run"):
            reason = f"behind the others: accuracy {result['accuracy']:.2%} after {result['evaluated_step']} steps"
            note(result["run"], STOPPED, {"step": result["step"], "reason": reason})
        return decision


def label(trial: Trial) -> str:
    """A trial on the terminal."""
    order = trial.config["order"]
    varied = order["arm"] if order["arm"] != SEARCH else f"{SEARCH} {trial.trial_id}"
    return f"{varied} seed={order['seed']}"
