"""Building the store: its name, missing experts, interruption, extension, and messages."""

import pickle
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from raydd.config import Config, DataConfig, Execution
from raydd.data import Dataset, Resident, load
from raydd.errors import DataError, ResourceError
from raydd.experts.build import Progress, inline_jobs, recipe, store_root
from raydd.experts.jobs import group_of
from raydd.experts.store import Store
from raydd.experts.worker import ExpertWorker
from raydd.models import build
from raydd.training import accuracy
from tests.experts.conftest import Setting


def snapshots(store: Store, expert: int) -> list[np.ndarray]:
    return [store.theta(expert, epoch) for epoch in range((store.epochs(expert) or 0) + 1)]


def same(first: Store, second: Store, expert: int) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(snapshots(first, expert), snapshots(second, expert), strict=True))


def test_missing_experts_are_trained_with_their_story(setting: Setting) -> None:
    store = setting.train()
    assert store.experts(3) == [0, 1]
    about = store.metadata(1)
    model = build(setting.config.model, setting.dataset.shape, 10)
    test = Resident.load(setting.dataset.test, setting.transform, "cpu")
    assert about["test_accuracy"] == [[3, pytest.approx(accuracy(model, store.tensor(1, 3)[None], test).item())]]
    assert len(about["train_loss"]) == len(about["train_accuracy"]) == 3
    assert about["layout"][0] == [model.layout[0][0], list(model.layout[0][1])] and "torch" in about["versions"]
    assert about["recipe"] == recipe(setting.config, setting.dataset)
    assert setting.store().missing(2, 3) == []


def test_nothing_is_trained_twice(setting: Setting) -> None:
    setting.train()

    def refuse(*arguments: object) -> None:
        raise AssertionError("there is nothing to train")

    setting.train(run_jobs=refuse)


class Stopped(Exception):
    """Stands for a killed process."""


def test_an_interrupted_build_goes_on_where_it_stopped(setting: Setting, tmp_path: Path) -> None:
    expected = setting.but(root=str(tmp_path / "whole")).train()

    def killed_after_one(make: Callable[[], Any], jobs: Sequence[Any], on_result: Callable[[Any], None]) -> None:
        on_result(make()(jobs[0]))
        raise Stopped

    with pytest.raises(Stopped):
        setting.train(run_jobs=killed_after_one)
    folder = Path(setting.store().folder.place(""))
    (folder / ".expert_00001.arrow.99.tmp").write_bytes(b"half")
    first = (folder / "expert_00000.arrow").stat().st_mtime_ns
    store = setting.train()
    assert (folder / "expert_00000.arrow").stat().st_mtime_ns == first
    assert same(store, expected, 0) and same(store, expected, 1) and not list(folder.glob(".*.tmp"))


def test_the_order_and_number_of_jobs_change_no_bit(setting: Setting, tmp_path: Path) -> None:
    def backwards(make: Callable[[], Any], jobs: Sequence[Any], on_result: Callable[[Any], None]) -> None:
        inline_jobs(make, jobs[::-1], on_result)

    few = setting.train()
    many = setting.but(root=str(tmp_path / "other"), count=4).train(run_jobs=backwards)
    assert many.key == few.key and many.experts() == [0, 1, 2, 3]
    assert same(few, many, 0) and same(few, many, 1)


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}, {"together": 2}], ids=str)
def test_an_extended_expert_equals_one_trained_at_once(setting: Setting, tmp_path: Path, options: dict[str, Any]) -> None:
    short = setting.but(**options)
    whole = short.but(root=str(tmp_path / "whole"), epochs=5).train()
    short.train()
    extended = short.but(epochs=5).train()
    assert extended.epochs(1) == 5 and same(extended, whole, 0) and same(extended, whole, 1)
    for name in ("train_loss", "train_accuracy"):
        assert extended.metadata(1)[name] == whole.metadata(1)[name]
    assert extended.metadata(0)["sha256"] == whole.metadata(0)["sha256"]


def test_extension_trains_only_what_is_new(setting: Setting) -> None:
    setting.train()
    store = setting.but(epochs=5).store()
    seen: list[int] = []

    def count(make: Callable[[], Any], jobs: Sequence[Any], on_result: Callable[[Any], None]) -> None:
        worker = make()
        seen.extend(worker(job).images for job in jobs)

    setting.but(epochs=5).train(run_jobs=count)
    assert seen == [2 * 80, 2 * 80] and store.epochs(0) == 5


def test_groups_are_trained_whole(setting: Setting, tmp_path: Path) -> None:
    assert group_of(5, 1) == [5] and group_of(4, 3) == [3, 4, 5]
    one = setting.but(together=2, count=1).train()
    three = setting.but(together=2, count=3, root=str(tmp_path / "three")).train()
    assert one.experts() == [0, 1] and three.experts() == [0, 1, 2, 3]
    assert same(one, three, 0) and same(one, three, 1)
    Path(one.folder.place("expert_00000.arrow")).unlink()
    assert same(setting.but(together=2, count=2).train(), three, 0)


class Change(NamedTuple):
    name: str
    value: Any
    matters: bool


@pytest.mark.parametrize(
    "change",
    [
        Change("lr", 0.02, True),
        Change("momentum", 0.5, True),
        Change("weight_decay", 0.1, True),
        Change("batch_size", 16, True),
        Change("augment", False, True),
        Change("together", 2, True),
        Change("decay", True, True),
        Change("count", 7, False),
        Change("epochs", 9, False),
    ],
)
def test_the_name_of_a_store_holds_what_decides_its_bits(setting: Setting, change: Change) -> None:
    changed = setting.but(**{change.name: change.value})
    assert (changed.store().key != setting.store().key) == change.matters


def test_the_name_holds_data_model_augmentation_and_seed(setting: Setting) -> None:
    config = setting.config
    keys = {setting.store().key}
    others = [
        replace(config, experts=replace(config.experts, seed=5)),
        replace(config, tf32=True),
        replace(config, model=replace(config.model, width=9)),
        replace(config, data=replace(config.data, zca=True)),
        replace(config, data=replace(config.data, zca=True, zca_eps=0.2)),
        replace(config, augment=replace(config.augment, strategy="flip")),
        replace(config, augment=replace(config.augment, parameters="shared")),
        replace(config, experts=replace(config.experts, decay=True)),
        replace(config, experts=replace(config.experts, decay=True, epochs=4)),
    ]
    keys |= {replace(setting, config=other).store().key for other in others}
    keys.add(replace(setting, dataset=replace(setting.dataset, fingerprint="f" * 64)).store().key)
    assert len(keys) == len(others) + 2
    assert replace(setting, config=replace(config, ipc=9, steps=3)).store().key in keys


def test_without_augmentation_its_parameters_do_not_matter(setting: Setting) -> None:
    shared = replace(setting.config, augment=replace(setting.config.augment, parameters="shared"))
    assert setting.but(augment=False).store().key == replace(setting, config=shared).but(augment=False).store().key


def test_progress_counts_experts_and_images(setting: Setting) -> None:
    reports: list[Progress] = []
    setting.train(progress=reports.append)
    # Three epochs and the end of each of two experts.
    assert [report.done for report in reports] == [0, 0, 0, 1, 1, 1, 1, 2]
    assert all(report.total == 2 and report.images_per_second > 0 for report in reports)
    assert reports[0].seconds_left > 0 and reports[-1].seconds_left == 0


def test_a_disk_too_small_is_refused_before_training(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    store = setting.store()
    needed = 2 * 4 * store.recipe["parameters"] * 4
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(needed, 1, needed - 1))
    with pytest.raises(
        ResourceError, match=f"2 experts of 3 epochs in {setting.root}.*need {needed:,} bytes, {needed - 1:,} are free.*--store"
    ):
        setting.train()
    assert not Path(setting.root).exists()


def test_a_worker_survives_pickling_and_loads_the_data_itself(setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYDD_CACHE", str(tmp_path / "cache"))
    dataset: Dataset = load(DataConfig())
    order = ExpertWorker(
        setting.config,
        setting.root,
        {"parameters": 1},
        dataset.fingerprint,
        setting.transform,
        epochs=0,
        dataset=setting.dataset,
        on_epoch=lambda images: None,  # cannot be pickled
    )
    result = pickle.loads(pickle.dumps(order))()([3])
    assert result.experts == (3,) and result.images == 0 and 0 <= result.accuracies[0] <= 1
    model = build(setting.config.model, dataset.shape, 10)
    store = Store.open(setting.root, {"parameters": 1})
    assert store.epochs(3) == 0 and store.theta(3, 0).shape == (model.size,)
    with pytest.raises(DataError, match="holds other images on this machine"):
        replace(order, fingerprint="0" * 64, dataset=None)()


def test_a_worker_leaves_alone_what_another_finished(setting: Setting) -> None:
    store = setting.train()
    order = ExpertWorker(
        setting.config, setting.root, store.recipe, setting.dataset.fingerprint, setting.transform, epochs=3, dataset=setting.dataset
    )
    result = order()([0, 1])
    assert result.images == 0 and list(result.accuracies) == [store.metadata(expert)["test_accuracy"][-1][1] for expert in (0, 1)]


def test_the_root_comes_from_the_flag_then_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYDD_STORE", "s3://bucket/experts")
    assert store_root(Execution(store="/here")) == "/here" and store_root(Execution()) == "s3://bucket/experts"
    monkeypatch.delenv("RAYDD_STORE")
    assert store_root(Execution()).endswith(".cache/raydd/experts")


def test_the_default_length_is_what_the_method_reads(setting: Setting) -> None:
    config: Config = replace(setting.config, experts=replace(setting.config.experts, epochs=None, count=1))
    assert replace(setting, config=config).train().epochs(0) == 2


def test_the_global_generator_is_left_alone(setting: Setting) -> None:
    before = torch.get_rng_state()
    setting.train()
    assert torch.equal(before, torch.get_rng_state())
