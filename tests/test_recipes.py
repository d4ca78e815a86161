"""Every shipped recipe is valid, complete and documented; wrong ones are refused with all their faults."""

import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from raydd.config import Config, Execution, override
from raydd.data import source_info
from raydd.errors import ConfigError
from raydd.methods.base import check
from raydd.models import build
from raydd.plan import gigabytes
from raydd.planning import predicted
from raydd.recipes import load_recipe, recipe_names

# specs/mtt_pdd.md section 2.3: N, M, T+, b, ZCA, lr_img, lr_lr, start value of the step size, depth.
TABLE = {
    "cifar10-mtt-ipc1": (50, 2, 2, None, True, 100, 1e-7, 0.01, 3),
    "cifar10-mtt-ipc10": (30, 2, 20, None, True, 100, 1e-5, 0.001, 3),
    "cifar10-mtt-ipc50": (30, 2, 40, None, False, 1000, 1e-5, 0.001, 3),
    "cifar100-mtt-ipc1": (20, 3, 20, None, True, 1000, 1e-5, 0.01, 3),
    "cifar100-mtt-ipc10": (20, 2, 20, None, False, 1000, 1e-5, 0.01, 3),
    "cifar100-mtt-ipc50": (80, 2, 40, 125, True, 1000, 1e-5, 0.01, 3),
    "tiny-imagenet-mtt-ipc1": (10, 2, 10, None, False, 1e4, 1e-4, 0.01, 4),
    "tiny-imagenet-mtt-ipc10": (20, 2, 40, 200, False, 1e4, 1e-4, 0.01, 4),
    "tiny-imagenet-mtt-ipc50": (20, 2, 40, 300, False, 1e4, 1e-4, 0.01, 4),
}


@pytest.mark.parametrize("name", recipe_names())
def test_is_valid_and_documented(name: str) -> None:
    recipe = load_recipe(name)
    check(recipe.config)
    assert recipe.config.recipe == name
    assert recipe.title and recipe.source and recipe.expected and recipe.hardware


@pytest.mark.parametrize("name", TABLE)
def test_equals_the_published_row(name: str) -> None:
    config = load_recipe(name).config
    mtt = config.mtt
    row = (mtt.syn_steps, mtt.expert_epochs, mtt.max_start_epoch, mtt.batch_syn, config.data.zca, mtt.lr_img, mtt.lr_lr, mtt.lr_init)
    assert (*row, config.model.depth) == TABLE[name]
    assert config.experts.count == 100 and config.experts.lr == 0.01 and config.experts.batch_size == 256
    assert config.model.width == 128 and config.init == "real" and config.mtt.momentum == 0.5


# specs/dc_dsa_dm_cafe_selection_cl.md section 4: ipc -> outer, inner, image steps in total.
LOOPS = {1: (1, 1, 1001), 10: (10, 50, 10_010), 50: (50, 10, 50_050)}
# Sections 3 to 5: data set -> DSA's operations; DC's evaluation.
FLIPPED, UNFLIPPED = "color_crop_cutout_flip_scale_rotate", "color_crop_cutout_scale_rotate"
GRADIENT_SETS = {"cifar10": FLIPPED, "cifar100": FLIPPED, "svhn": UNFLIPPED, "mnist": UNFLIPPED, "fashionmnist": FLIPPED}
# Sections 4 to 7, and PDD, Table A9: published accuracies for ipc 1, 10 and 50; "no" where there is none.
PUBLISHED = {
    "cifar10-dc": "28.3 44.9 53.9", "cifar100-dc": "12.8 25.2", "mnist-dc": "91.7 97.4 98.8", "fashionmnist-dc": "70.5 82.3 83.6",
    "svhn-dc": "31.2 76.1 82.3", "cifar10-dsa": "28.8 52.1 60.6", "cifar100-dsa": "13.9 32.3 42.8", "mnist-dsa": "88.7 97.8 99.2",
    "fashionmnist-dsa": "70.6 84.6 88.7", "svhn-dsa": "27.5 79.2 84.4", "cifar10-dm": "26.0 48.9 63.0", "cifar100-dm": "11.4 29.7 43.6",
    "tiny-imagenet-dm": "3.9 12.9 24.1", "cifar10-cafe": "30.3 46.3 55.5", "cifar100-cafe": "12.9 27.8 37.9",
    "cifar10-cafe-dsa": "31.6 50.9 62.3", "cifar100-cafe-dsa": "14.0 31.5 42.9",
    "cifar10-idc": "50.6 67.5 74.5", "cifar100-idc": "28.21 45.1 52.5", "cifar10-idc-i": "36.7 58.3 69.5",
    "cifar10-dream": "no 68.7 74.8", "cifar10-dreamplus": "50.69 68.7 74.15", "cifar100-dreamplus": "27.37 43.32 51.3",
}  # fmt: skip
# specs/idc_dream_pdd.md section 1.11: effective image rate at ipc 1, 10, 20 and 50; metric; images of a network update; CutMix.
IDC_SETS = {
    "cifar10": ((5e-4, 5e-3, 1e-2, 2.5e-2), "mse", 2000, 0.5),
    "cifar100": ((5e-4, 5e-3, 1e-2, 2.5e-2), "mse", 2000, 0.5),
    "svhn": ((5e-4, 5e-3, 1e-2, 2.5e-2), "mse", 500, 0.5),
    "mnist": ((1e-5, 1e-4, 2e-4, 5e-4), "l1", 500, 0.0),
    "fashionmnist": ((7.65625e-6, 7.65625e-5, 1.53125e-4, 3.828125e-4), "l1", 500, 0.5),
}
# Sections 1.8 and 1.11: matching, evaluation.
IDC_AUGMENTATION = {
    "mnist": ("color_crop", "color_crop_scale_rotate"),
    "svhn": ("color_crop_cutout", "color_crop_scale_rotate"),
}


def rows(sets: object, methods: str, ipcs: tuple[int, ...] = (1, 10, 50)) -> list[str]:
    return [f"{data}-{method}-ipc{ipc}" for data, method, ipc in product(sets, methods.split(), ipcs)]


DC_ROWS = rows(GRADIENT_SETS, "dc dsa")
DM_ROWS = rows(("cifar10", "cifar100", "tiny-imagenet"), "dm")
DM_ROWS += [*rows(("cifar10",), "dm", (100, 200, 500, 1000, 1250)), *rows(("cifar100",), "dm", (100, 125))]
CAFE_ROWS = rows(("cifar10", "cifar100"), "cafe cafe-dsa")
IDC_ROWS = [*rows(IDC_SETS, "idc dream dreamplus"), *rows(("cifar10",), "idc-i"), "cifar100-idc-i-ipc10", "cifar100-idc-ipc20"]
IDC_ROWS += ["svhn-idc-i-ipc1"]
TINY_DREAM_ROWS = rows(("tiny-imagenet",), "dream")
# specs/mtt_pdd.md section 3.3: images per class of a stage, N, M, T+, lr_img, lr_lr, start value of the step size, b, ZCA, depth, epochs
# of evaluation (None for 2000 / (P + 1)), accuracy.
STAGED_MTT = {
    "cifar10-pdd-mtt-ipc10": (2, 50, 2, 5, 1000, 1e-7, 0.01, 20, True, 3, None, "66.9 ± 0.4"),
    "cifar10-pdd-mtt-ipc50": (10, 30, 2, 15, 1000, 1e-5, 0.01, 100, True, 3, None, "74.2 ± 0.5"),
    "cifar100-pdd-mtt-ipc10": (2, 20, 3, 20, 1000, 1e-5, 0.01, 200, True, 3, 1500, "43.1 ± 0.7"),
    "cifar100-pdd-mtt-ipc50": (10, 20, 2, 20, 1000, 1e-5, 0.01, 512, True, 3, 1500, "52.0 ± 0.5"),
    "tiny-imagenet-pdd-mtt-ipc10": (2, 20, 2, 20, 1e4, 1e-4, 0.01, 64, False, 4, 1500, "27.3 ± 0.5"),
    "tiny-imagenet-pdd-mtt-ipc50": (10, 20, 2, 20, 1e4, 1e-4, 0.01, 64, False, 4, 1500, "29.2 ± 0.6"),
}
# The paper's Tables 3 to 7 and Figure 3: stages, images per class of each, what differs from the run of five stages, and what came of it.
STAGED_EXPERIMENTS = {
    "cifar10-pdd-mtt-ipc10-p1": (1, 10, {}, "65.3 ± 0.7"),
    "cifar10-pdd-mtt-ipc20": (2, 10, {}, "68.7 ± 0.8 %, union 60.4 %, sequential 64.1 %"),
    "cifar10-pdd-mtt-ipc30": (3, 10, {}, "71.5 ± 0.4 %, union 65.4 %, sequential 67.4 %"),
    "cifar10-pdd-mtt-ipc40": (4, 10, {}, "73.1 ± 0.6 %, union 63.2 %, sequential 66.0 %"),
    "cifar10-pdd-mtt-ipc50": (5, 10, {}, "74.2 ± 0.5 % (Table 1), union 65.9 %, sequential 67.4 %"),
    "cifar10-pdd-mtt-ipc20-no-transition": (2, 10, {"transition": False}, "66.0 ± 0.6"),
    "cifar10-pdd-mtt-ipc30-no-transition": (3, 10, {"transition": False}, "66.3 ± 0.4"),
    "cifar10-pdd-mtt-ipc40-no-transition": (4, 10, {"transition": False}, "65.6 ± 0.5"),
    "cifar10-pdd-mtt-ipc50-no-transition": (5, 10, {"transition": False}, "63.6 ± 0.7"),
    "cifar10-pdd-mtt-ipc20-no-conditioning": (2, 10, {"conditioning": False}, "67.9 ± 0.5"),
    "cifar10-pdd-mtt-ipc30-no-conditioning": (3, 10, {"conditioning": False}, "69.8 ± 0.9"),
    "cifar10-pdd-mtt-ipc40-no-conditioning": (4, 10, {"conditioning": False}, "71.4 ± 0.5"),
    "cifar10-pdd-mtt-ipc50-no-conditioning": (5, 10, {"conditioning": False}, "71.9 ± 0.7"),
    "cifar10-pdd-mtt-ipc50-moving": (5, 10, {"frozen_lr_scale": 0.1}, "69.1 "),
    "cifar10-pdd-mtt-ipc10-p2": (2, 5, {}, "65.5 ± 0.9"),
    "cifar10-pdd-mtt-ipc10-p10": (10, 1, {}, "64.4 ± 0.6"),
    "cifar10-pdd-mtt-ipc10-p1-forgetting": (1, 10, {"scores": "forgetting"}, "65.9 % from 36.5 % of the images, 65.3 % from all"),
    "cifar10-pdd-mtt-ipc30-forgetting": (3, 10, {"scores": "forgetting"}, "71.6 % from 55.8 % of the images, 71.5 % from all"),
    "cifar10-pdd-mtt-ipc50-forgetting": (5, 10, {"scores": "forgetting"}, "73.7 % from 66.4 % of the images, 74.2 % from all"),
    "cifar100-pdd-mtt-ipc20-p1": (1, 20, {}, "55.7, 52.1, 48.3, 43.0, 41.2"),
    "cifar100-pdd-mtt-ipc20": (2, 10, {}, "61.2, 56.6, 51.5, 48.3, 45.1"),
    "cifar10-pdd-mtt-ipc250": (5, 50, {}, "90 % of the 88.1"),
    "cifar100-pdd-mtt-ipc100": (5, 20, {}, "90 % of the 56.2"),
}
# The paper's Tables 1, 3, A8 and A9: stages, images per class of each, and what came of it; specs/idc_dream_pdd.md section 4.3.
STAGED_OTHERS = {
    "cifar10-pdd-idc-ipc10": (5, 2, "67.9 ± 0.2"),
    "cifar10-pdd-idc-ipc20": (2, 10, "71.4 ± 0.2 %, union 71.1 %, sequential 68.5 %"),
    "cifar10-pdd-idc-ipc30": (3, 10, "74.0 ± 0.3 %, union 74.2 %, sequential 68.2 %"),
    "cifar10-pdd-idc-ipc40": (4, 10, "75.4 ± 0.1 %, union 75.4 %, sequential 69.9 %"),
    "cifar10-pdd-idc-ipc50": (5, 10, "76.5 ± 0.4 % (Table 1), union 76.2 %, sequential 69.9 %"),
    "cifar100-pdd-idc-ipc10": (5, 2, "45.8 ± 0.5"),
    "cifar100-pdd-idc-ipc50": (5, 10, "54.4 ± 0.4"),
    "cifar10-pdd-dream-ipc10": (5, 2, "69.3 ± 0.3 %; DREAM alone 68.7 %"),
    "cifar10-pdd-dream-ipc50": (5, 10, "76.7 ± 0.2 %; DREAM alone 74.8 %"),
    "cifar10-pdd-dc-ipc50": (5, 10, "56.3 ± 0.5 %; DC alone 53.9 %"),
    "cifar10-pdd-dsa-ipc50": (5, 10, "61.3 ± 0.4 %; DSA alone 60.6 %"),
    "cifar10-pdd-dm-ipc50": (5, 10, "63.4 ± 0.5 %; DM alone 63.0 %"),
}
MEASURED = json.loads((Path(__file__).parents[1] / "benchmarks" / "results" / "digits_recipes.json").read_text())["rows"]
DIGITS_STAGED = ["digits-pdd-mtt-ipc6", "digits-pdd-idc-ipc6", "digits-pdd-dm-ipc6"]
# What each has in place of the settings of its base.
DIGITS_COMPARED = {
    "digits-pdd-mtt-ipc6-no-transition": {"stages.transition": False},
    "digits-pdd-mtt-ipc6-no-conditioning": {"stages.conditioning": False},
    "digits-pdd-mtt-ipc6-1x6": {"ipc": 6, "stages.count": 1, "steps": 300},
    "digits-pdd-mtt-ipc6-2x3": {"ipc": 3, "stages.count": 2, "steps": 150},
    "digits-pdd-mtt-ipc6-6x1": {"ipc": 1, "stages.count": 6, "steps": 50},
    "digits-pdd-mtt-ipc6-forgetting": {"curriculum.scores": "forgetting", "curriculum.quantiles": True},
    "digits-pdd-dm-continual": {},
}


def row(name: str) -> tuple[str, str, int, Config]:
    """(data set, method as named, ipc, settings) of a recipe, whose own words must agree."""
    recipe = load_recipe(name)
    start, _, ipc = name.rpartition("-ipc")
    data = next(data for data in ("tiny-imagenet", *IDC_SETS) if start.startswith(f"{data}-"))
    method, config = start.removeprefix(f"{data}-"), recipe.config
    assert config.data.source == data and config.ipc == int(ipc) and recipe.title.endswith(f"ipc {ipc}")
    assert config.model.width == 128 and config.model.depth == (4 if data == "tiny-imagenet" else 3) and not config.data.zca
    assert config.selection.candidates == 1
    return data, method, config.ipc, config


def test_every_row_is_there() -> None:
    own = {name for name in recipe_names() if name.startswith("digits-")}
    staged = {*STAGED_MTT, *STAGED_EXPERIMENTS, *STAGED_OTHERS}
    assert {*recipe_names()} - own == {*TABLE, *DC_ROWS, *DM_ROWS, *CAFE_ROWS, *IDC_ROWS, *TINY_DREAM_ROWS, *staged}
    plain = {*rows(("digits",), "mtt dc dsa idc dream dreamplus dm cafe", (1, 10))}
    assert own == {*plain, *DIGITS_STAGED, *DIGITS_COMPARED} and {measured["recipe"] for measured in MEASURED} == plain


@pytest.mark.parametrize("start", PUBLISHED)
def test_published_accuracies(start: str) -> None:
    for ipc, accuracy in zip((1, 10, 50), PUBLISHED[start].split()):
        assert accuracy in load_recipe(f"{start}-ipc{ipc}").expected


@pytest.mark.parametrize("name", DC_ROWS)
def test_dc_and_dsa_rows(name: str) -> None:
    data, method, ipc, config = row(name)
    assert (config.dc.outer, config.dc.inner, config.steps) == LOOPS[ipc]
    assert (config.dc.metric, config.dc.batch_real, config.dc.batch_train) == ("rows", 256, 256)
    assert (config.dc.lr_net, config.dc.lr_img, config.dc.momentum) == (0.01, 0.1, 0.5)
    assert (config.method, config.evaluation.protocol, config.init) == (method, method, "real" if method == "dsa" else "noise")
    if method == "dsa":
        assert config.augment.strategy == GRADIENT_SETS[data]
    augmented = ("dc", "crop_scale_rotate") if (data, method) == ("mnist", "dc") else ("protocol", "")
    assert (config.evaluation.augment, config.evaluation.strategy, config.evaluation.epochs) == (*augmented, None)


@pytest.mark.parametrize("name", DM_ROWS)
def test_dm_rows(name: str) -> None:
    data, method, ipc, config = row(name)
    assert (config.method, config.evaluation.protocol, config.init, config.steps) == (method, "dm", "real", 20_001)
    assert (config.dm.batch_real, config.dm.momentum) == (256, 0.5)
    assert config.dm.lr_img == (10 if data == "cifar10" and ipc >= 100 else 1)
    assert config.augment.strategy == FLIPPED


@pytest.mark.parametrize("name", CAFE_ROWS)
def test_cafe_rows(name: str) -> None:
    _, method, _, config = row(name)
    cafe = config.cafe
    assert (config.method, config.evaluation.protocol, config.init, cafe.dsa) == ("cafe", method, "noise", method == "cafe-dsa")
    assert config.augment.strategy == FLIPPED
    assert (cafe.iterations, cafe.batch_real, cafe.batch_train, cafe.lr_net, cafe.lr_img) == (2000, 256, 256, 0.01, 0.1)
    assert (cafe.momentum, cafe.early_weight, cafe.late_weight, cafe.discrimination_weight) == (0.5, 0.1, 1, 0.01)
    assert (cafe.window, cafe.outer_range, cafe.inner_range, cafe.queries) == (10, 0.04, 0.03, 128)
    assert config.steps == cafe.iterations * cafe.max_outer


@pytest.mark.parametrize("name", IDC_ROWS)
def test_idc_rows(name: str) -> None:
    data, method, ipc, config = row(name)
    idc, side = config.idc, 28 if "mnist" in data else 32
    rates, metric, net_images, cutmix = IDC_SETS[data]
    assert idc.lr_img * ipc / 10 * (side / idc.base_side) ** 2 == pytest.approx(rates[(1, 10, 20, 50).index(ipc)], rel=1e-12)
    assert (idc.metric, idc.net_images, idc.mix_probability) == (metric, net_images, cutmix)
    # The one row that is evaluated in a way of its own (section 1.11).
    plain = name == "svhn-idc-i-ipc1"
    assert config.evaluation.cutmix == (0.0 if data == "mnist" or plain else None)
    matching, evaluation = IDC_AUGMENTATION.get(data, ("color_crop_cutout", ""))
    assert idc.match_strategy == matching
    assert config.evaluation.strategy == ("color_crop_cutout_scale_rotate" if plain else evaluation)
    assert (config.method, idc.factor, config.init) == {
        "idc": ("idc", 2, "mix"),
        "idc-i": ("idc", 1, "real"),
        "dream": ("dream", 2, "kmeans"),
        "dreamplus": ("dreamplus", 2, "kmeans"),
    }[method]
    assert idc.batch_real == (64 if method.startswith("idc") else 128)
    check_idc_settings(config)


@pytest.mark.parametrize("name", TINY_DREAM_ROWS)
def test_dream_on_tiny_imagenet(name: str) -> None:
    _, _, ipc, config = row(name)
    idc = config.idc
    assert (config.method, idc.batch_real, idc.net_images, idc.base_side, idc.metric) == ("dream", 64, 1000, 32, "mse")
    assert idc.lr_img == (1e-6 if ipc == 50 else 5e-3) and not config.dream.spread
    check_idc_settings(config)


@pytest.mark.parametrize("name", rows(("digits",), "mtt dc dsa idc dream dreamplus dm cafe", (1, 10)))
def test_digits_rows_are_alike(name: str) -> None:
    config, method = load_recipe(name).config, name.split("-")[1]
    protocol = "idc" if method.startswith("dream") else method
    assert (config.method, config.evaluation.protocol, config.data.source) == (method, protocol, "digits")
    assert (config.model.width, config.model.depth, config.evaluation.epochs, config.evaluation.nets) == (32, 2, 300, 5)
    assert config.augment.strategy == "crop_scale_rotate" and config.selection.candidates == 1 and config.steps <= 200


@pytest.mark.parametrize("measured", MEASURED, ids=lambda row: row["recipe"])
def test_digits_rows_expect_what_they_come_to(measured: dict) -> None:
    """Of the recipe as it stands, from `benchmarks/digits_recipes.py`."""
    recipe = load_recipe(measured["recipe"])
    ours, random = (f"{100 * measured[f'{of}accuracy_mean']:.1f} ± {100 * measured[f'{of}accuracy_std']:.1f} %" for of in ("", "random_"))
    assert recipe.expected == f"{ours} (measured: seed 0, 5 nets); random real images: {random}"
    assert measured["accuracy_mean"] > measured["random_accuracy_mean"]
    settings = (recipe.config.steps, recipe.config.selection.candidates, recipe.config.evaluation.nets, recipe.config.evaluation.protocol)
    assert settings == tuple(measured[key] for key in ("steps", "candidates", "nets", "protocol"))


@pytest.mark.parametrize("name", STAGED_MTT)
def test_staged_mtt_rows(name: str) -> None:
    config = load_recipe(name).config
    mtt, stages = config.mtt, config.stages
    row = (config.ipc, mtt.syn_steps, mtt.expert_epochs, mtt.max_start_epoch, mtt.lr_img, mtt.lr_lr, mtt.lr_init, mtt.batch_syn)
    assert (*row, config.data.zca, config.model.depth, config.evaluation.epochs) == STAGED_MTT[name][:-1]
    assert STAGED_MTT[name][-1] in load_recipe(name).expected
    assert (stages.count, stages.transition_epochs, stages.real_lr, config.steps, config.experts.count) == (5, 1000, 0.01, 5000, 100)
    assert (config.method, config.init, config.model.width, config.evaluation.protocol, mtt.momentum) == ("mtt", "real", 128, "mtt", 0.5)
    assert config.data.source == name.partition("-pdd")[0]


@pytest.mark.parametrize("name", STAGED_EXPERIMENTS)
def test_staged_experiments(name: str) -> None:
    recipe = load_recipe(name)
    config, (count, ipc, changed, expected) = recipe.config, STAGED_EXPERIMENTS[name]
    total = int(name.partition("-ipc")[2].partition("-")[0])
    assert (config.stages.count, config.ipc, count * ipc) == (count, ipc, total) and expected in recipe.expected
    assert f"ipc {total} in {count} stage{'s' if count > 1 else ''}" in recipe.title
    assert config.curriculum.scores == changed.get("scores", "none")
    assert config.stages == replace(
        load_recipe("cifar10-pdd-mtt-ipc50").config.stages,
        count=count,
        **{key: value for key, value in changed.items() if key != "scores"},
    )
    if ipc == 10 and name.startswith("cifar10-"):
        assert config.mtt == load_recipe("cifar10-pdd-mtt-ipc50").config.mtt


@pytest.mark.parametrize("name", STAGED_OTHERS)
def test_staged_rows_of_other_methods(name: str) -> None:
    """Each stage has the settings of the base method's own row, for DC, DSA and DM that of 10 images per class."""
    recipe = load_recipe(name)
    config, (count, ipc, expected) = recipe.config, STAGED_OTHERS[name]
    assert (config.stages.count, config.ipc, config.method) == (count, ipc, name.split("-")[2]) and expected in recipe.expected
    base = load_recipe(f"{config.data.source}-{config.method}-ipc10").config
    for part in ("method", "init", "data", "model", "augment", "dc", "dm", "idc", "dream", "mtt"):
        assert getattr(config, part) == getattr(base, part), part
    assert config.steps == (100_000 if name == "cifar100-pdd-idc-ipc50" else base.steps)
    gradients = config.method in ("dc", "dsa", "dm")
    assert (config.stages.networks, config.stages.transition_epochs) == (20, 333 if gradients else 200)
    epochs = 1500 if config.data.source == "cifar100" else 1000 if gradients else None
    assert (config.evaluation.protocol, config.evaluation.epochs) == (base.evaluation.protocol, epochs)


@pytest.mark.parametrize("name", DIGITS_STAGED)
def test_staged_digits_rows(name: str) -> None:
    config = load_recipe(name).config
    assert (config.stages.count, config.ipc, config.method, config.data.source) == (3, 2, name.split("-")[2], "digits")
    assert (config.evaluation.updates, config.evaluation.epochs, config.evaluation.nets) == (300, None, 5)
    assert config.model == load_recipe("digits-idc-ipc1").config.model and config.steps <= 200


@pytest.mark.parametrize("name", DIGITS_COMPARED)
def test_digits_rows_for_comparison(name: str) -> None:
    recipe, base = load_recipe(name), load_recipe("digits-pdd-dm-ipc6" if "dm" in name else "digits-pdd-mtt-ipc6").config
    assert recipe.config == replace(override(base, DIGITS_COMPARED[name]), recipe=name)
    assert "measured: " in recipe.expected
    check(recipe.config)


def check_idc_settings(config: Config) -> None:
    """What sections 1.11, 2 and 3 hold in common."""
    idc = config.idc
    assert (config.steps, idc.inner_steps, idc.batch_syn_max, idc.momentum, idc.decode, idc.match) == (
        200_000,
        100,
        128,
        0.5,
        "single",
        "grad",
    )
    assert (idc.lr_net, idc.momentum_net, idc.weight_decay_net, idc.batch_net, idc.early) == (0.01, 0.9, 5e-4, None, 0)
    assert (idc.net_strategy, idc.bias, idc.fc, config.evaluation.protocol) == ("color_crop", False, False, "idc")
    assert (config.dream.interval, config.dream.subsample, config.dream.alpha, config.dream.warm_up) == (10, 1, 1.0, 1)


@pytest.mark.parametrize("name", ["cifar10-idc-ipc10", "mnist-dsa-ipc1", "tiny-imagenet-dm-ipc50", "digits-cafe-ipc1"])
def test_memory_is_what_the_plan_predicts(name: str) -> None:
    recipe = load_recipe(name)
    info = source_info(recipe.config.data)
    model = build(recipe.config.model, info.shape, info.classes)
    plan = predicted(recipe.config, Execution(workers=0, device="cpu"), model, info.train_images, timed=False)
    assert f"{gigabytes(plan.worker_bytes)} for a worker, as raydd plan predicts" in recipe.hardware


def test_unknown_recipe_names_those_like_it() -> None:
    with pytest.raises(ConfigError, match="'cifar10-mtt-ip1' is not a recipe; near it: cifar10-mtt-ipc1, .*See raydd recipes"):
        load_recipe("cifar10-mtt-ip1")
    with pytest.raises(ConfigError, match="'zzz' is not a recipe. See raydd recipes; digits-mtt-ipc1 is one"):
        load_recipe("zzz")


def test_own_file_and_its_faults(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('title = "t"\nsource = "s"\n[settings]\nipc = 3\n')
    assert load_recipe(str(path)).config.ipc == 3
    path.write_text('title = "t"\nsource = "s"\n[settings]\nipc = "three"\n[settings.mtt]\nsteps = 3\n')
    with pytest.raises(ConfigError) as caught:
        load_recipe(str(path))
    assert len(caught.value.problems) == 2
    with pytest.raises(ConfigError, match="cannot be read"):
        load_recipe(str(tmp_path / "absent.toml"))
