"""Every shipped recipe is valid, complete and documented; wrong ones are refused with all their faults."""

from itertools import product
from pathlib import Path

import pytest

from raydd.config import Config, Execution
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
# Sections 4 to 7: published accuracies for ipc 1, 10 and 50.
PUBLISHED = {
    "cifar10-dc": "28.3 44.9 53.9", "cifar100-dc": "12.8 25.2", "mnist-dc": "91.7 97.4 98.8", "fashionmnist-dc": "70.5 82.3 83.6",
    "svhn-dc": "31.2 76.1 82.3", "cifar10-dsa": "28.8 52.1 60.6", "cifar100-dsa": "13.9 32.3 42.8", "mnist-dsa": "88.7 97.8 99.2",
    "fashionmnist-dsa": "70.6 84.6 88.7", "svhn-dsa": "27.5 79.2 84.4", "cifar10-dm": "26.0 48.9 63.0", "cifar100-dm": "11.4 29.7 43.6",
    "tiny-imagenet-dm": "3.9 12.9 24.1", "cifar10-cafe": "30.3 46.3 55.5", "cifar100-cafe": "12.9 27.8 37.9",
    "cifar10-cafe-dsa": "31.6 50.9 62.3", "cifar100-cafe-dsa": "14.0 31.5 42.9",
    "cifar10-idc": "50.6 67.5 74.5", "cifar100-idc": "28.21 45.1 52.5", "cifar10-idc-i": "36.7 58.3 69.5",
    "cifar10-dreamplus": "50.69 68.7 74.15", "cifar100-dreamplus": "27.37 43.32 51.3",
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
DM_ROWS = [*rows(("cifar10", "cifar100", "tiny-imagenet"), "dm"), *rows(("cifar10",), "dm", (100, 200, 500, 1000, 1250))]
CAFE_ROWS = rows(("cifar10", "cifar100"), "cafe cafe-dsa")
IDC_ROWS = [*rows(IDC_SETS, "idc dream dreamplus"), *rows(("cifar10",), "idc-i"), "cifar100-idc-i-ipc10", "cifar100-idc-ipc20"]
TINY_DREAM_ROWS = rows(("tiny-imagenet",), "dream")
DIGITS_STAGED = ["digits-pdd-mtt-ipc6", "digits-pdd-idc-ipc6", "digits-pdd-dm-ipc6"]


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
    assert {*recipe_names()} - own == {*TABLE, *DC_ROWS, *DM_ROWS, *CAFE_ROWS, *IDC_ROWS, *TINY_DREAM_ROWS}
    assert own == {*rows(("digits",), "mtt dc dsa idc dream dreamplus dm cafe", (1, 10)), *DIGITS_STAGED}


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
    _, method, ipc, config = row(name)
    assert (config.method, config.evaluation.protocol, config.init, config.steps) == (method, "dm", "real", 20_001)
    assert (config.dm.batch_real, config.dm.lr_img, config.dm.momentum) == (256, 10 if ipc >= 100 else 1, 0.5)
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
    assert config.evaluation.cutmix == (0.0 if data == "mnist" else None)
    assert (idc.match_strategy, config.evaluation.strategy) == IDC_AUGMENTATION.get(data, ("color_crop_cutout", ""))
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
