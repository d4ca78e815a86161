"""Settings, methods and recipes that cannot be are refused before anything is read or written."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.bad_input.refusals import refused, refused_run
from tests.commands import raydd


def test_unknown_command() -> None:
    refused(raydd("distil"), "'distil' is not a command", "recipes, plan, experts, distill")


@pytest.mark.parametrize("command", ["plan", "experts", "distill"])
def test_unknown_recipe(command: str) -> None:
    refused(raydd(command, "nosuch"), "'nosuch' is not a recipe", "digits-mtt-ipc1")
    refused(raydd(command), f"raydd {command} needs a recipe")


def test_unknown_setting(store: Path, tmp_path: Path) -> None:
    refused_run(tmp_path / "run", store, "--temperature", "3", words=("--temperature",))


def test_value_of_the_wrong_type(store: Path, tmp_path: Path) -> None:
    refused_run(tmp_path / "run", store, "--selection.candidates", "many", words=("--selection.candidates", "'many'"))
    refused_run(tmp_path / "run", store, "--selection.policy", "best", words=("--selection.policy", "dynadistill"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--data", "nosuch"), ("--data=nosuch is not a source", "digits", "parquet:DIR")),
        (("--data", "parquet:/no/such/folder"), ("parquet:/no/such/folder", "no such folder")),
        (("--method", "nosuch"), ("--method=nosuch is not a method", "mtt")),
        (("--model.name", "nosuch"), ("--model.name=nosuch is not a model", "convnet")),
        (("--model.depth", "4"), ("--model.depth=4", "8 x 8", "--data.size")),
        (("--selection.candidates", "4"), ("--selection.candidates=4 is more than the pool of 3 experts", "raise --experts")),
        (("--selection.pool", "2"), ("--selection.candidates=3 is more than the pool of 2 experts",)),
        (("--selection.pool", "9"), ("--selection.pool=9 is more than --experts=3",)),
        (("--experts.epochs", "4"), ("experts of 7 epochs", "--experts.epochs=4", "lower --mtt.max_start_epoch")),
        (("--selection.temperature", "0"), ("--selection.temperature=0.0 must be above 0",)),
        (("--selection.temperature", "-1"), ("--selection.temperature=-1.0 must be above 0",)),
        (("--selection.temperature", "nan"), ("--selection.temperature=nan must be a finite number",)),
        (("--selection.sign", "2"), ("--selection.sign=2.0 must be between -1", "and 1")),
        (("--mtt.lr_img", "inf"), ("--mtt.lr_img=inf must be a finite number",)),
        (("--mtt.momentum", "1"), ("--mtt.momentum=1.0 must be below 1",)),
        (("--augment.strategy", "crop_spin"), ("unknown operation 'spin'", "color, crop, cutout")),
        (("--ipc", "125"), ("--ipc=125 is more than the 124 training images of class 8", "at most 124")),
        (("--ipc", "125", "--init", "noise"), ("--ipc=125", "--evaluation.no_at_end")),
        (("--workers", "-1"), ("--workers=-1 must be at least 0",)),
        (("--threads", "0"), ("--threads=0 must be at least 1",)),
        (("--checkpoint_every", "0"), ("--checkpoint_every=0 must be at least 1",)),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith("--") else "",
)
def test_setting_that_cannot_be(store: Path, tmp_path: Path, arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    refused_run(tmp_path / "run", store, *arguments, words=words)


@pytest.mark.parametrize(
    ("method", "arguments", "words"),
    [
        ("dc", ("--ipc", "2"), ("--ipc=2 has no loop counts", "1, 10, 20, 30, 40, 50", "Give --dc.outer", "--dc.inner")),
        ("dsa", ("--ipc", "5", "--dc.outer", "3"), ("--ipc=5 has no loop counts", "--dc.inner")),
        ("dc", (), ("--dc.batch_real=256: class '8' has 124 training images", "at most as many")),
        ("dm", ("--dm.batch_real", "125"), ("--dm.batch_real=125: class '8' has 124",)),
        ("cafe", (), ("--cafe.batch_real=256", "--cafe.queries=128")),
        ("cafe", ("--model.name", "mlp"), ("--model.name=mlp: cafe matches the maps of a convnet", "--model.name convnet")),
        ("idc", ("--init", "real"), ("--init=real with --idc.factor=2", "--init mix, first, kmeans or noise")),
        ("idc", ("--init", "mix", "--idc.factor", "9"), ("--idc.factor=9 is more than the 8 pixels of a side",)),
        ("idc", ("--init", "mix", "--ipc", "32"), ("--init=mix with --ipc=32", "128 training images of each class")),
        ("idc", ("--init", "mix", "--selection.every", "101"), ("--selection.every=101 is more than the 100 image updates",)),
        ("idc", ("--init", "mix", "--selection.rank_batch", "own"), ("--selection.rank_batch=own needs", "dream or dreamplus")),
        ("idc", ("--init", "mix", "--idc.mix_probability", "2"), ("--idc.mix_probability=2.0 must be at most 1",)),
        ("dream", ("--init", "mix", "--idc.batch_real", "125"), ("--idc.batch_real=125: class '8' has 124",)),
        ("dream", ("--init", "kmeans", "--ipc", "32"), ("--init=kmeans with --ipc=32", "128 training images of each class")),
        ("dream", ("--init", "mix", "--dream.subsample", "3"), ("--dream.subsample=3 does not divide --idc.batch_real=64",)),
        ("dreamplus", ("--init", "mix", "--model.depth", "4"), ("--model.depth=4", "8 x 8")),
        ("dm", ("--model.name", "resnet18", "--dm.batch_real", "9"), ("--model resnet18", "cannot take images of 8 x 8")),
        ("dm", ("--selection.slots", "keep", "--selection.pool", "2"), ("--selection.candidates=3 is more than the 2 network slots",)),
        ("dm", ("--selection.share_start",), ("--selection.share_start=True does not go with --method dm",)),
        ("dc", ("--selection.rank_batch", "own"), ("--selection.rank_batch=own does not go with --method dc",)),
        ("mtt", ("--selection.warm_up_images", "9"), ("--selection.warm_up_images=9 does not go with --method mtt",)),
        ("mtt", ("--selection.slots", "keep"), ("--selection.slots=keep does not go with --method mtt",)),
        ("mtt", ("--selection.every", "2", "--selection.no_common_draws"), ("--selection.every=2", "--selection.common_draws=False")),
    ],
    ids=lambda value: value if isinstance(value, str) else next((part for part in value if part.startswith("--")), ""),
)
def test_setting_that_does_not_go_with_the_method(
    store: Path, tmp_path: Path, method: str, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    """The experts of another method are neither looked for nor trained."""
    refused_run(tmp_path / "run", store, "--method", method, *arguments, words=words)


def test_one_class_cannot_be_told_apart(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYDD_CACHE", str(tmp_path / "cache"))
    for split in ("train", "test"):
        folder = tmp_path / "data" / split / "cat"
        folder.mkdir(parents=True)
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "a.png")
    arguments = ("--data", f"folder:{tmp_path / 'data'}", "--method", "cafe", "--cafe.batch_real", "1", "--cafe.queries", "1")
    refused_run(tmp_path / "run", store, *arguments, words=("at least two classes", "found: cat"))


def test_every_fault_is_told_at_once(store: Path, tmp_path: Path) -> None:
    faults = ("--selection.temperature", "0", "--ipc", "0", "--selection.candidates", "9", "--experts.epochs", "2", "--threads", "0")
    words = ("--selection.temperature=0.0", "--ipc=0", "--selection.candidates=9", "--experts.epochs=2", "--threads=0")
    refused_run(tmp_path / "run", store, *faults, words=words)


@pytest.mark.parametrize("command", ["plan", "experts"])
def test_plan_and_experts_check_settings_too(command: str) -> None:
    refused(raydd(command, "digits-mtt-ipc1", "--mtt.syn_steps", "0", "--threads", "0"), "--mtt.syn_steps=0", "--threads=0")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ("No such file",)),
        (b"title = [", ("cannot be read",)),
        (b"\xff\xfe\x00", ("cannot be read",)),
        (b'title = "t"', ("lacks source",)),
        (b'title = "t"\nsource = "s"\nsettings = 3', ("lacks the table [settings]",)),
        (b'title = "t"\nsource = 3\n[settings]', ("lacks source",)),
        (b'title = "t"\nsource = "s"\n[settings]\nmtt = 3\nipx = 2\nsteps = "x"', ("mtt=3", "ipx is not a setting", "steps='x'")),
    ],
)
def test_recipe_file_that_cannot_be_used(tmp_path: Path, content: bytes | None, words: tuple[str, ...]) -> None:
    path = tmp_path / "mine.toml"
    if content is not None:
        path.write_bytes(content)
    refused(raydd("distill", path, "--run", tmp_path / "run"), "mine", *words)
    assert not (tmp_path / "run").exists()
