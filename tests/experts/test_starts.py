"""Start networks: the chain from stage to stage, what names it, interruption, and the experts that begin from it."""

import pickle
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from raydd.config import Config, override
from raydd.data import Resident
from raydd.errors import DivergenceError, ResourceError, StoreError
from raydd.experts.build import open_store, train_missing
from raydd.experts.jobs import Progress, inline_jobs
from raydd.experts.starts import Link, StartsPlace, build_starts, links, starts_recipe, transition_epochs
from raydd.experts.store import Store
from raydd.experts.train import training_recipe
from raydd.models import FlatModel, build
from raydd.rng import stream
from raydd.training import Networks, Phase, Streams, TensorBatches, fit
from raydd.training import initial as fresh_networks
from raydd.types import SyntheticSet
from tests.experts.conftest import Setting


def union(stage: int, step_size: float = 0.02, changed: float = 0.0) -> SyntheticSet:
    """The images after a stage: one of each class and stage, class-major; those of a stage stay the same."""
    images = torch.stack([torch.randn(10, 1, 8, 8, generator=stream(0, number, "union")) for number in range(stage)], 1).flatten(0, 1)
    images[-1, 0, 0, 0] += changed
    labels = torch.arange(10).repeat_interleave(stage)
    return SyntheticSet(images, labels, torch.tensor(step_size), torch.arange(1, stage + 1).repeat(10))


UNIONS = (union(1), union(2, 0.03), union(3, 0.01))


@dataclass(frozen=True)
class Starts:
    """A configuration and where its starts lie."""

    setting: Setting

    @property
    def config(self) -> Config:
        return self.setting.config

    @property
    def model(self) -> FlatModel:
        return build(self.config.model, self.setting.dataset.shape, 10)

    def but(self, root: Path | None = None, **settings: Any) -> "Starts":
        named = {name.replace("__", "."): value for name, value in settings.items()}
        return Starts(replace(self.setting, config=override(self.config, named), root=str(root or self.setting.root)))

    def chain(self, unions: Sequence[SyntheticSet] = UNIONS) -> list[Link]:
        return links(self.config, self.model, self.setting.transform, unions)

    def recipe(self, unions: Sequence[SyntheticSet] = UNIONS) -> dict[str, Any]:
        return starts_recipe(self.config, self.setting.dataset, self.chain(unions))

    def key(self, unions: Sequence[SyntheticSet] = UNIONS) -> str:
        return StartsPlace("unused", self.recipe(unions), 0).key

    def build(self, stages: int = 3, count: int = 2, **options: Any) -> StartsPlace:
        return build_starts(self.config, self.setting.dataset, self.chain(UNIONS[:stages]), count, self.setting.root, **options)


@pytest.fixture
def starts(setting: Setting) -> Starts:
    return Starts(setting).but(stages__count=4, stages__transition_epochs=2)


def untrained(starts: Starts, networks: tuple[int, ...]) -> Tensor:
    own = Streams(4, "expert", networks) if starts.config.method == "mtt" else Streams(starts.config.seed, "start", networks)
    return fresh_networks(starts.model, own, "cpu").thetas


def trained(starts: Starts, networks: tuple[int, ...], stages: int) -> Tensor:
    """The same training straight through, from `raydd.training` alone."""
    config, thetas = starts.config, untrained(starts, networks)
    seed = config.experts.seed if config.method == "mtt" else config.seed
    for place, link in enumerate(starts.chain(UNIONS[:stages])):
        data = TensorBatches(link.training.images, link.training.labels)
        recipe = replace(training_recipe(config), batch_size=256, momentum=0.9, weight_decay=5e-4, strategy=config.augment.strategy)
        phases = (Phase(link.training.lr, 3),)  # 2 epochs are 3 passes, of which the last would drop the rate only after the third
        own = Streams(seed, f"start-{place + 2}", networks)
        list(fit(starts.model, data, held := Networks(thetas), phases, recipe, own, vectorised=config.experts.together > 1))
        thetas = held.thetas
    return thetas


@pytest.mark.parametrize("settings", [{}, {"experts__together": 2}, {"method": "dm", "seed": 3}], ids=str)
def test_a_start_continues_the_start_before_it(starts: Starts, settings: dict[str, Any]) -> None:
    starts = starts.but(**settings)
    assert [link.passes for link in starts.chain()] == [3, 3, 3]
    for stages in (1, 2, 3):
        place = starts.build(stages)
        assert place.stage == stages + 1 and torch.equal(place.thetas((0, 1)), trained(starts, (0, 1), stages))


def test_a_later_stage_trains_its_own_link_alone(starts: Starts, tmp_path: Path) -> None:
    straight = starts.but(tmp_path / "straight").build()
    starts.build(2)
    seen: list[int] = []

    def count(make: Callable[[], Any], jobs: Sequence[Any], on_result: Callable[[Any], None]) -> None:
        worker = make()
        seen.extend(worker(job).images for job in jobs)

    assert torch.equal(starts.build(run_jobs=count).thetas((0, 1)), straight.thetas((0, 1)))
    assert seen == [3 * 30, 3 * 30]

    def refuse(*arguments: object) -> None:
        raise AssertionError("there is nothing to train")

    starts.build(run_jobs=refuse)
    starts.build(2, run_jobs=refuse)


def test_the_first_link_begins_as_the_experts_do(starts: Starts) -> None:
    store = starts.setting.train()
    assert np.array_equal(untrained(starts, (1,))[0].numpy(), store.theta(1, 0))


class Killed(Exception):
    """Stands for a process that dies."""


def test_a_build_that_died_anywhere_goes_on(starts: Starts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After one whole job, and inside the next with one of its links done."""
    expected = starts.but(tmp_path / "straight").build(count=3)
    write, seen = Store.write, []

    def dying(store: Store, network: int, *arguments: Any) -> None:
        if network == 1 and len(seen) == 4:
            raise Killed
        seen.append(network)
        write(store, network, *arguments)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Store, "write", dying)
        starts.build(count=3)
    assert seen == [0, 0, 0, 1]
    images: list[int] = []

    def counted(make: Callable[[], Any], jobs: Sequence[Any], on_result: Callable[[Any], None]) -> None:
        inline_jobs(make, jobs, lambda result: (images.append(result.images), on_result(result)))

    place = starts.build(count=3, run_jobs=counted)
    assert torch.equal(place.thetas((0, 1, 2)), expected.thetas((0, 1, 2)))
    assert images == [3 * (20 + 30), 3 * (10 + 20 + 30)]
    digests = [store.open().metadata(1)["sha256"] for store in (place, expected)]
    assert digests[0] == digests[1]


def test_more_networks_extend_the_same_store(starts: Starts, tmp_path: Path) -> None:
    few, many = starts.build(count=1), starts.but(tmp_path / "many").build(count=3)
    assert few.key == many.key and torch.equal(starts.build(count=3).thetas((0, 1, 2)), many.thetas((0, 1, 2)))
    together = starts.but(experts__together=2)
    assert together.build(1, count=1).open().experts() == [0, 1] and together.key() != starts.key()


def test_unions_rates_and_training_name_the_starts(starts: Starts) -> None:
    assert len({starts.key(UNIONS[:stages]) for stages in (1, 2, 3)}) == 3
    keys = {starts.key()}
    keys.add(starts.key((*UNIONS[:2], union(3, 0.01, changed=1e-6))))
    keys.add(starts.key((UNIONS[0], union(2, 0.04), UNIONS[2])))
    changes: list[dict[str, Any]] = [
        {"stages__transition_epochs": 4},
        {"evaluation__momentum": 0.5},
        {"evaluation__batch_size": 8},
        {"evaluation__augment": "none"},
        {"evaluation__lr": 0.02},
        {"experts__seed": 5},
        {"model__width": 9},
        {"tf32": True},
        {"data__zca": True},
        {"method": "dm"},
        {"method": "dm", "seed": 1},
        {"method": "idc", "idc__factor": 2},
    ]
    keys |= {starts.but(**change).key() for change in changes}
    assert len(keys) == 3 + len(changes)
    unchanged: list[dict[str, Any]] = [
        {"seed": 1},
        {"stages__networks": 3},
        {"stages__count": 9},
        {"experts__count": 9},
        {"experts__lr": 0.5},
        {"evaluation__nets": 9},
        {"evaluation__samples": 2},
        {"evaluation__epochs": 7},
        {"steps": 3},
    ]
    assert {starts.but(**change).key() for change in unchanged} == {starts.key()}


def test_the_rate_is_the_learned_one_where_the_protocol_has_none(starts: Starts) -> None:
    assert [link.training.lr for link in starts.chain()] == pytest.approx([0.02, 0.03, 0.01])
    assert {link.training.lr for link in starts.but(evaluation__protocol="dm").chain()} == {0.01}


def test_images_are_decoded_for_training(starts: Starts) -> None:
    """IDC's are kept in pixels, several in each."""
    (link,) = starts.but(method="idc", idc__factor=2).chain(UNIONS[:1])
    assert link.training.images.shape == (40, 1, 8, 8) and torch.bincount(link.training.labels).tolist() == [4] * 10
    crops = UNIONS[0].images[:, :, :4, :4]
    larger = torch.nn.functional.interpolate(crops, scale_factor=2, mode="bilinear")
    expected = (larger - starts.setting.transform.mean) / starts.setting.transform.std
    torch.testing.assert_close(link.training.images[:10], expected, rtol=1e-5, atol=1e-5)


class Default(NamedTuple):
    method: str
    epochs: int


@pytest.mark.parametrize("default", [Default("mtt", 1000), Default("idc", 200), Default("dreamplus", 200), Default("dm", 500)])
def test_default_epochs(default: Default) -> None:
    assert transition_epochs(Config(method=default.method)) == default.epochs
    assert transition_epochs(override(Config(method=default.method), {"stages.transition_epochs": 7})) == 7


def test_progress_counts_networks_and_images(starts: Starts) -> None:
    reports: list[Progress] = []
    starts.build(1)
    starts.build(2, progress=reports.append)
    assert [report.done for report in reports] == [0, 0, 0, 1, 1, 1, 1, 2]
    assert all(report.total == 2 and report.images_per_second > 0 for report in reports)
    assert reports[0].seconds_left > 0 and reports[-1].seconds_left == 0


def test_divergence_names_stage_network_and_setting(starts: Starts) -> None:
    diverging = (UNIONS[0], replace(UNIONS[1], step_size=torch.tensor(1e30)))
    with pytest.raises(DivergenceError, match=re.escape("Start network 0 of stage 3 diverged")) as caught:
        build_starts(starts.config, starts.setting.dataset, starts.chain(diverging), 1, starts.setting.root)
    assert "rate 1e+30. The run has trained those of stage 2 with these settings and keeps them" in str(caught.value)
    advice = "under another --run with a lower --evaluation.lr, lower --evaluation.momentum=0.9 or fewer --stages.transition_epochs than 2."
    assert advice in str(caught.value)
    diverging = (replace(UNIONS[0], step_size=torch.tensor(1e30)),)
    with pytest.raises(DivergenceError, match=re.escape("Give a lower one with --evaluation.lr, or lower --evaluation.momentum=0.9.")):
        build_starts(starts.config, starts.setting.dataset, starts.chain(diverging), 1, starts.setting.root)
    assert Store.open(starts.setting.root, starts.recipe(UNIONS[:1])).experts() == [0]


def test_a_disk_too_small_is_refused_before_training(starts: Starts, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = 2 * 3 * 4 * starts.model.size
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(needed, 1, needed - 1))
    with pytest.raises(ResourceError, match=f"6 start networks in .*need {needed:,} bytes, {needed - 1:,} are free.*or lower --experts"):
        starts.build()


def test_a_damaged_file_is_not_gone_on_from(starts: Starts) -> None:
    for stages in (1, 2):
        file = Path(starts.build(1).open().folder.place("expert_00000.arrow"))
        data = bytearray(file.read_bytes())
        data[file.stat().st_size // 2] ^= 1
        file.write_bytes(data)
        with pytest.raises(StoreError, match=r"expert_00000\.arrow is damaged"):
            starts.build(stages)
        file.unlink()


def test_a_worker_survives_pickling(starts: Starts, tmp_path: Path) -> None:
    def elsewhere(make: Callable[[], Any], jobs: Sequence[Any], on_result: Callable[[Any], None]) -> None:
        inline_jobs(pickle.loads(pickle.dumps(make)), jobs, on_result)

    reports: list[Progress] = []
    place = starts.build(run_jobs=elsewhere, progress=reports.append)
    assert torch.equal(place.thetas((0, 1)), starts.but(tmp_path / "here").build().thetas((0, 1)))
    assert [report.done for report in reports] == [1, 2]


# Experts of later stages


def experts(starts: Starts, place: StartsPlace, **options: Any) -> Store:
    """The stage's experts, trained."""
    setting = starts.setting
    store = open_store(setting.config, setting.root, setting.dataset, starts=place)
    train_missing(setting.config, setting.dataset, setting.transform, store, starts=place, **options)
    return store


def test_stage_experts_begin_as_the_start_networks_and_go_on_with_sgd(starts: Starts) -> None:
    """Without augmentation, against a plain loop in float64."""
    plain = starts.but(experts__augment=False, stages__real_lr=0.05, experts__weight_decay=0.01)
    place = plain.build(2)
    store, data = experts(plain, place), Resident.load(plain.setting.dataset.train, plain.setting.transform, "cpu")
    assert store.experts(3) == [0, 1]
    for expert in (0, 1):
        theta = place.thetas((expert,))[0]
        assert torch.equal(store.tensor(expert, 0), theta)
        theta = theta.double().requires_grad_()
        sgd = torch.optim.SGD([theta], 0.05, weight_decay=0.01)
        for epoch in range(3):
            order = torch.randperm(80, generator=stream(4, epoch, "expert-stage3-order", expert))
            for rows in order.split(32):
                images, labels = data.batch(rows)
                sgd.zero_grad()
                cross_entropy(plain.model(theta, images.double()), labels).backward()
                sgd.step()
            torch.testing.assert_close(store.tensor(expert, epoch + 1).double(), theta.detach(), rtol=1e-4, atol=1e-5)


def test_stage_experts_are_known_by_their_starts_and_rate(starts: Starts) -> None:
    one, two = starts.build(1), starts.build(2)
    setting = starts.setting
    keys = {open_store(setting.config, setting.root, setting.dataset, starts=place).key for place in (None, one, two)}
    for change in ({"stages__real_lr": 0.2}, {"experts__batch_size": 8}):
        other = starts.but(**change).setting
        keys.add(open_store(other.config, other.root, other.dataset, starts=two).key)
    elsewhere = starts.but(stages__transition_epochs=1).build(2)
    keys.add(open_store(setting.config, setting.root, setting.dataset, starts=elsewhere).key)
    assert len(keys) == 6
    other = starts.but(experts__lr=0.2, stages__count=2).setting
    assert open_store(other.config, other.root, other.dataset, starts=two).key in keys


@pytest.mark.parametrize("settings", [{}, {"experts__momentum": 0.9}, {"experts__together": 2}], ids=str)
def test_stage_experts_may_be_interrupted_and_extended(starts: Starts, tmp_path: Path, settings: dict[str, Any]) -> None:
    short = starts.but(**settings)
    longer, straight = short.but(experts__epochs=5), short.but(tmp_path / "straight", experts__epochs=5)
    experts(short, short.build(1))
    grown, whole = experts(longer, longer.build(1)), experts(straight, straight.build(1))
    assert [store.epochs(expert) for store in (grown, whole) for expert in (0, 1)] == [5] * 4
    assert [grown.metadata(expert)["sha256"] for expert in (0, 1)] == [whole.metadata(expert)["sha256"] for expert in (0, 1)]


def test_the_key_of_the_first_stage_is_what_it_was(starts: Starts) -> None:
    """Stores that were trained before there were stages stay good."""

    class Data:
        fingerprint, shape, classes, mean, std = "f" * 64, (1, 8, 8), tuple("0123456789"), (0.5,), (0.25,)

    config = override(Config(), {"model.width": 8, "model.depth": 2})
    assert open_store(config, "unused", Data(), verify=False).key == "17a50c25ff80d68b"


def test_diverging_stage_experts_name_the_rate_of_stages(starts: Starts) -> None:
    wild = starts.but(stages__real_lr=1e30)
    with pytest.raises(DivergenceError, match=r"Expert 0 of stage 2 diverged .* another --run with a lower --stages\.real_lr=1e\+30\."):
        experts(wild, wild.build(1))
