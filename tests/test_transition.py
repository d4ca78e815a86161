"""What a stage computes with: start networks and experts are made when they are missing, told of, and handed to the method."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from raydd.config import Config, Execution, override
from raydd.errors import StoreError
from raydd.experts.build import open_store
from raydd.rng import stream
from raydd.services import InlineServices
from raydd.setup import MethodFactory, Setup, initial_set, prepare
from raydd.transition import StageResources, Stopped, build_experts, stage_resources
from raydd.types import SyntheticSet

SETTINGS = {
    "model.width": 8,
    "model.depth": 2,
    "experts.count": 3,
    "selection.pool": 2,
    "experts.batch_size": 1024,
    "mtt.max_start_epoch": 1,
    "mtt.expert_epochs": 1,
    "stages.count": 3,
    "stages.transition_epochs": 2,
    "evaluation.at_end": False,
}


@pytest.fixture(scope="module")
def base() -> Setup:
    return prepare(override(Config(), SETTINGS), Execution())


def of(base: Setup, root: Path, **settings: Any) -> Setup:
    named = {name.replace("__", "."): value for name, value in settings.items()}
    return replace(base, config=override(base.config, named), execution=Execution(store=str(root)))


def finished(stages: int) -> list[SyntheticSet]:
    """The images after each of the stages, with another step size for each."""
    labels = torch.arange(10)
    blocks = [torch.randn(10, 1, 8, 8, generator=stream(0, stage, "blocks")) for stage in range(stages)]
    return [
        SyntheticSet(
            torch.stack(blocks[:stage], 1).flatten(0, 1),
            labels.repeat_interleave(stage),
            torch.tensor(0.01 * stage),
            torch.arange(1, stage + 1).repeat(10),
        )
        for stage in range(1, stages + 1)
    ]


def resources(setup: Setup, stage: int, reports: list[dict[str, Any]] | None = None) -> StageResources:
    told = [] if reports is None else reports
    return stage_resources(setup, stage, finished(stage - 1), InlineServices(setup.device), told.append)


def test_a_later_stage_of_mtt_matches_experts_of_its_own(base: Setup, tmp_path: Path) -> None:
    setup, reports = of(base, tmp_path), []
    found = resources(setup, 3, reports)
    assert found.starts.stage == 3 and found.starts.count == 2 and found.experts.experts(1) == [0, 1]
    starts = found.starts.thetas([0, 1])
    for expert in (0, 1):
        assert torch.equal(found.experts.tensor(expert, 0), starts[expert])
    assert not torch.equal(starts[0], starts[1])
    phases = [(report["phase"], report["stage"]) for report in reports]
    assert list(dict.fromkeys(phases)) == [("transition", 3), ("experts", 3)]
    assert [report["done"] for report in reports if report["phase"] == "transition"][-1] == reports[0]["total"] == 2
    mtt = found.factory()()
    assert torch.equal(mtt._resources.experts.theta(1, 0), starts[1])
    assert resources(setup, 3, reports[:0]).experts.key == found.experts.key


def test_experts_of_later_stages_have_a_constant_rate(base: Setup, tmp_path: Path) -> None:
    """However long those of the first stage are, and wherever their rate drops."""
    plain = resources(of(base, tmp_path), 2).experts
    longer = resources(of(base, tmp_path, experts__epochs=4, experts__decay=True), 2).experts
    assert longer.key == plain.key and longer.epochs(0) == plain.epochs(0) == 1


def test_the_first_stage_and_no_transition_keep_the_experts(base: Setup, tmp_path: Path) -> None:
    setup = of(base, tmp_path)
    own = build_experts(setup, InlineServices(setup.device), lambda report: None)
    first, plain = resources(setup, 1), resources(of(setup, tmp_path, stages__transition=False, stages__count=1), 3)
    assert first.experts.key == plain.experts.key == own.key and first.starts is None and plain.starts is None


def test_later_stages_are_trained_whatever_the_first_may_be(base: Setup, tmp_path: Path) -> None:
    setup = replace(of(base, tmp_path), execution=Execution(store=str(tmp_path), train_experts=False))
    assert resources(setup, 2).experts.experts(1) == [0, 1]
    with pytest.raises(StoreError, match="the store lacks 2 of them"):
        resources(setup, 1)


def test_networks_of_other_methods_are_copies_of_the_start(base: Setup, tmp_path: Path) -> None:
    setup = of(base, tmp_path, method="dm", stages__networks=3)
    found = resources(setup, 2)
    starts, made = found.starts.thetas([0, 1, 2]), found.factory()()
    drawn = [made.begin(born).theta for born in range(20)]
    assert {next(place for place in range(3) if torch.equal(theta, starts[place])) for theta in drawn} == {0, 1, 2}
    for other in (resources(setup, 1), resources(of(setup, tmp_path, stages__transition=False), 2)):
        assert other.starts is None and other.experts is None
        assert torch.equal(other.factory()().begin(1).theta, MethodFactory.of(setup, None)().begin(1).theta)


def test_a_stop_is_heeded_inside_the_transition(base: Setup, tmp_path: Path) -> None:
    setup, reports = of(base, tmp_path), []
    services, given = InlineServices(setup.device), finished(2)
    with pytest.raises(Stopped):
        stage_resources(setup, 3, given, services, reports.append, lambda: len(reports) > 8)
    assert {report["phase"] for report in reports} == {"transition"} and reports[-1]["done"] == 1
    straight = resources(of(base, tmp_path / "straight"), 3)
    carried_on = resources(setup, 3)
    for expert in (0, 1):
        assert carried_on.experts.epochs(expert) == straight.experts.epochs(expert) == 1
        assert carried_on.experts.metadata(expert)["sha256"] == straight.experts.metadata(expert)["sha256"]


def test_stage_experts_do_not_touch_the_store_of_the_first(base: Setup, tmp_path: Path) -> None:
    setup = of(base, tmp_path)
    resources(setup, 2)
    assert open_store(setup.config, str(tmp_path), setup.dataset).experts() == []


def test_clusters_are_of_the_features_of_the_stages_networks(base: Setup, tmp_path: Path) -> None:
    setup = of(base, tmp_path, method="idc", init="kmeans", idc__early=0, stages__networks=1)
    starts = resources(setup, 2).starts
    fresh, trained = (initial_set(setup, 2, networks) for networks in (None, starts))
    assert not torch.equal(fresh.images, trained.images) and trained.stages.unique().tolist() == [2]
