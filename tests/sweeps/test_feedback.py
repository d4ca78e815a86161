"""What TensorBoard finds of a trial: its own reader reads the files back."""

import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from raydd.actors.trial import TrialPlan
from raydd.config import Execution, to_dict
from raydd.pictures import png
from sweeping.feedback import Board
from tests.sweeps.runs_by_hand import CONFIG

NAMES = ("selection.candidates", "selection.temperature")
event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", exc_type=ImportError)


@dataclass(frozen=True)
class Trial:
    """As much of Tune's trial as the board asks for."""

    local_path: str
    order: tuple[tuple[str, Any], ...]

    @property
    def config(self) -> dict[str, Any]:
        return {"order": {"arm": "an arm", "seed": 3, "recipe": "digits-mtt-ipc1", "settings": dict(self.order)}}

    @property
    def evaluated_params(self) -> dict[str, Any]:
        return self.config

    def init_local_path(self) -> None:
        Path(self.local_path).mkdir(parents=True, exist_ok=True)


def report(step: int, accuracy: float, evaluated: int, **more: Any) -> dict[str, Any]:
    known = {
        "step": step, "timesteps_total": step, "training_iteration": 1, "loss": 0.5 / (step + 1), "accuracy": accuracy,
        "accuracy_std": 0.01,
        "best_accuracy": accuracy, "evaluated_step": evaluated, "device_seconds": 2.0 * step, "passes": 4 * step, "run": "a/folder",
        "finished": False, "done": False, "time_this_iter_s": 1.0,
    }  # fmt: skip
    return known | more


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The files of a trial with three reports: before the first evaluation, of one, and of another with a picture."""
    folder = tmp_path_factory.mktemp("board")
    pixels = np.arange(3 * 8 * 16, dtype=np.uint8).reshape(3, 8, 16)
    (folder / "images.png").write_bytes(png(pixels))
    plan = TrialPlan(runs=str(folder), bases={"digits-mtt-ipc1": to_dict(CONFIG)}, execution=Execution(workers=0))
    trial, board = Trial(str(folder / "trial"), (("selection.candidates", 5),)), Board(plan, NAMES)
    board.log_trial_result(1, trial, report(2, math.nan, 0))
    board.log_trial_result(2, trial, report(6, 0.4, 4))
    board.log_trial_result(3, trial, report(8, 0.6, 8, picture=str(folder / "images.png")))
    board.log_trial_end(trial)
    (file,) = (folder / "trial").iterdir()
    return event_accumulator.EventAccumulator(str(file), size_guidance={"images": 0, "scalars": 0}).Reload()


def test_scalars_lie_at_distillation_steps(read: Any) -> None:
    assert [(event.step, round(event.value, 3)) for event in read.Scalars("ray/tune/loss")] == [(2, 0.167), (6, 0.071), (8, 0.056)]
    assert [(event.step, round(event.value, 3)) for event in read.Scalars("test_accuracy")] == [(4, 0.4), (8, 0.6)]
    assert not {name for name in read.Tags()["scalars"] if "iter" in name or "done" in name or "finished" in name}


def test_the_images_are_there_at_their_step(read: Any) -> None:
    (event,) = read.Images("synthetic_images")
    assert (event.step, event.width, event.height) == (8, 16, 8)
    shown = np.asarray(Image.open(io.BytesIO(event.encoded_image_string)).convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(shown, np.arange(3 * 8 * 16, dtype=np.uint8).reshape(3, 8, 16))


def test_settings_are_hyper_parameters_also_those_that_an_arm_leaves_as_they_are(read: Any) -> None:
    from tensorboard.plugins.hparams.metadata import EXPERIMENT_TAG, parse_experiment_plugin_data, parse_session_start_info_plugin_data

    content = {tag: read.SummaryMetadata(tag).plugin_data.content for tag in ("_hparams_/session_start_info", EXPERIMENT_TAG)}
    values = parse_session_start_info_plugin_data(content["_hparams_/session_start_info"]).hparams
    assert values["arm"].string_value == "an arm" and values["seed"].number_value == 3
    assert values["selection.candidates"].number_value == 5
    assert values["selection.temperature"].number_value == CONFIG.selection.temperature
    columns = parse_experiment_plugin_data(content[EXPERIMENT_TAG])
    assert {info.name for info in columns.hparam_infos} == {"arm", "seed", *NAMES}
    measured = {info.name.tag for info in columns.metric_infos}
    assert "ray/tune/accuracy" in measured and measured <= set(read.Tags()["scalars"])
