"""Every shipped recipe is valid, complete and documented; wrong ones are refused with all their faults."""

from pathlib import Path

import pytest

from raydd.errors import ConfigError
from raydd.methods.base import check
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


def test_unknown_recipe_lists_those_that_exist() -> None:
    with pytest.raises(ConfigError, match="'nosuch' is not a recipe; known: cifar10-mtt-ipc1, .*digits-mtt-ipc1"):
        load_recipe("nosuch")


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
