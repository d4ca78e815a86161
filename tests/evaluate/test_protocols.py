"""Protocols against the recorded reference programs, and what settings change of them."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from raydd.config import Config, EvaluationConfig, ModelConfig
from raydd.errors import ConfigError
from raydd.evaluate import Settings, protocol, protocol_names, rate, resolve, schedule
from raydd.training import Phase


def resolved(
    ipc: int = 10,
    model: str = "convnet",
    norm: str = "instance",
    side: int = 32,
    classes: int = 10,
    images: int | None = None,
    **settings: Any,
) -> Settings:
    config = Config(ipc=ipc, evaluation=EvaluationConfig(**settings))
    return resolve(config, ModelConfig(name=model, norm=norm), [(images or ipc) * classes], side, classes)


def recorded(phases: tuple[Phase, ...]) -> list[tuple[int, Any]]:
    return [(phase.epochs, pytest.approx(phase.lr, rel=1e-12)) for phase in phases]


def starts(phases: tuple[Phase, ...]) -> list[int]:
    """The epochs that begin without momentum."""
    return [sum(phase.epochs for phase in phases[:place]) for place, phase in enumerate(phases) if not phase.carries]


@pytest.mark.golden
@pytest.mark.parametrize(
    ("name", "program", "count"),
    [
        ("mtt", "mtt_evaluate_synset", 12),
        *((name, "dc_evaluate_synset", 12) for name in ("dc", "dsa", "dm", "cafe", "cafe-dsa")),
        ("idc", "idc_train", 10),
    ],
)
def test_every_recorded_case(golden: Callable[[str], Any], name: str, program: str, count: int) -> None:
    cases = golden("evaluation_schedules")[program]
    assert len(cases) == count
    for case_name, case in cases.items():
        settings = resolved(protocol=name, epochs=case["epochs_argument"])
        phases = settings.phases(case["initial_lr"])
        assert [(run["epochs"], run["lr"]) for run in case["schedule"]] == recorded(phases), case_name
        assert sum(phase.epochs for phase in phases) == case["training_epochs"]
        assert starts(phases) == case["epoch_indices_that_start_without_momentum"], case_name
        used = case["settings"]
        assert (settings.momentum, settings.weight_decay) == (used["momentum"], used["weight_decay"])
        if name == "idc":
            assert sorted(protocol(name).tested(case["training_epochs"], settings.samples)) == case["validated_after_training_epochs"]
        else:
            assert settings.batch_size == used["batch_size"]
            assert max(protocol(name).tested(case["training_epochs"], settings.samples)) == case["tests_after_training_epochs"][0]


@pytest.mark.golden
def test_idcs_schedule_is_that_of_pdds_start_weights(golden: Callable[[str], Any]) -> None:
    cases = golden("evaluation_schedules")["pdd_idc_progressive_evaluation"]
    for epochs, name in ((200, "start_weights_train_only_epochs200.0"), (1000, "start_weights_train_only_epochs1000")):
        phases = protocol("idc").schedule(epochs, cases[name]["initial_lr"])
        assert [(run["epochs"], run["lr"]) for run in cases[name]["schedule"]] == recorded(phases)


def test_a_thousand_epochs_are_502_and_499() -> None:
    assert [phase.epochs for phase in schedule(1000, 0.01)] == [502, 499]


@pytest.mark.parametrize("epochs", [0, 1])
def test_short_runs_never_drop(epochs: int) -> None:
    assert [(phase.lr, phase.epochs) for phase in schedule(epochs, 0.1)] == [(0.1, epochs + 1)]


def test_what_the_programs_do_by_default() -> None:
    dsa, plain = ("dsa", "color_crop_cutout_flip_scale_rotate"), ("none", "none")
    expected = {
        "mtt": (1000, dsa, 256, 0.0, 5), "dc": (300, plain, 256, 0.0, 5), "dsa": (1000, dsa, 256, 0.0, 5), "dm": (1000, dsa, 256, 0.0, 5),
        "cafe": (600, plain, 256, 0.0, 5), "cafe-dsa": (1000, dsa, 256, 0.0, 5),
        "idc": (1000, ("diffaug", "color_crop_flip_scale_rotate"), 64, 0.5, 4),
    }  # fmt: skip
    assert protocol_names() == sorted(expected)
    for name, (epochs, augment, batch_size, cutmix, samples) in expected.items():
        found = resolved(protocol=name)
        assert (found.epochs, (found.augment, found.strategy), found.batch_size) == (epochs, augment, batch_size), name
        assert (found.cutmix, found.samples, found.parameters) == (cutmix, samples, "per-image"), name
        assert rate(Config(evaluation=EvaluationConfig(protocol=name)), 0.037) == (0.037 if name == "mtt" else 0.01)
        assert rate(Config(evaluation=EvaluationConfig(protocol=name, lr=0.5)), 0.037) == 0.5


def test_augmentation_of_dc_and_cafe_takes_a_thousand_epochs() -> None:
    batch = resolved(protocol="dc", norm="batch")
    assert (batch.augment, batch.strategy, batch.epochs) == ("dc", "crop_noise", 1000)
    mnist = resolved(protocol="dc", augment="dc", strategy="crop_scale_rotate")
    assert (mnist.augment, mnist.strategy, mnist.epochs) == ("dc", "crop_scale_rotate", 1000)
    assert resolved(protocol="dc", model="resnet10", norm="batch").augment == "none"
    assert resolved(protocol="cafe", augment="dsa").epochs == 1000


def test_settings_override_the_protocol() -> None:
    changes = {"epochs": 7, "momentum": 0.0, "weight_decay": 0.0, "batch_size": 3, "cutmix": 0.0, "samples": 1}
    found = resolved(protocol="idc", augment="dsa", strategy="crop_flip", **changes)
    assert {name: getattr(found, name) for name in changes} == changes and (found.augment, found.strategy) == ("dsa", "crop_flip")
    assert resolved(protocol="dsa", augment="none").strategy == "none"
    assert resolved(protocol="dc", augment="diffaug").strategy == "color_crop_flip_scale_rotate"
    run = Config(augment=replace(Config().augment, strategy="crop_scale", parameters="shared"))
    assert (
        resolve(run, ModelConfig(), [10], 32, 10).strategy == "crop_scale"
        and resolve(run, ModelConfig(), [10], 32, 10).parameters == "shared"
    )
    none = replace(run, augment=replace(run.augment, strategy="none"))
    assert resolve(none, ModelConfig(), [10], 32, 10).augment == "none"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"protocol": "tmm"}, "--evaluation.protocol=tmm is not an evaluation protocol; known: cafe, cafe-dsa, dc"),
        ({"strategy": "crop_spin"}, "dsa has no operation 'spin'; join any of color, crop, cutout"),
        ({"augment": "dc", "strategy": "flip"}, "dc has no operation 'flip'; join any of crop, scale, rotate, noise"),
        ({"protocol": "dc", "strategy": "crop"}, "--evaluation.strategy=crop augments nothing here; say with what"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        resolved(**settings)


@pytest.mark.parametrize(("images", "epochs"), [(1, 3000), (9, 2000), (10, 2000), (11, 1500), (90, 1000), (201, 500), (900, 300)])
def test_idcs_epochs_for_images_of_imagenets_size(images: int, epochs: int) -> None:
    assert resolved(protocol="idc", side=224, images=images, ipc=1).epochs == epochs
    hundred = {3000: 2000, 2000: 1300, 1500: 1000, 1000: 600, 500: 300, 300: 200}
    assert resolved(protocol="idc", side=224, images=images, ipc=1, classes=100).epochs == hundred[epochs]


def test_idcs_densenet_trains_less_on_many_decoded_images() -> None:
    assert resolved(50, "densenet-thin", "batch", images=200, protocol="idc").epochs == 400
    assert resolved(50, "densenet-thin", "batch", images=50, protocol="idc").epochs == 1000
    assert resolved(10, "densenet-thin", "batch", images=40, protocol="idc").epochs == 1000
    assert resolved(50, "resnet10-thin", "batch", images=200, protocol="idc").epochs == 1000
    assert resolved(50, "densenet-thin", "batch", images=200, protocol="dsa").epochs == 1000


def test_the_same_compute_for_decoded_images() -> None:
    assert resolved(images=40, protocol="idc", same_compute=True).epochs == 250
    assert resolved(images=90, protocol="idc", same_compute=True, epochs=9).epochs == 1
    assert resolved(images=10, protocol="idc", same_compute=True).epochs == 1000


def test_tests_are_spread_and_end_with_the_last_pass() -> None:
    tested = protocol("mtt").tested
    assert tested(1001, 10) == {100, 200, 300, 400, 500, 601, 701, 801, 901, 1001}
    assert tested(3, 10) == {1, 2, 3} and tested(1001, 1) == {1001}
    assert protocol("idc").tested(11, 4) == {2, 4, 6, 8, 10, 11} and protocol("idc").tested(3, 4) == {1, 2, 3}
