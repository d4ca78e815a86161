"""What every method must hold, as checks that take the name of a registered one; small data and networks to check it with.

`tests/methods/test_contract.py` runs all of them on every method of the package. Elsewhere: `for check in CHECKS: check("mine")`.
"""

import copy
import json
import pickle
import random
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from raydd.config import (
    CAFEConfig,
    Config,
    DCConfig,
    DMConfig,
    DREAMConfig,
    ExpertConfig,
    IDCConfig,
    ModelConfig,
    MTTConfig,
    SelectionConfig,
    override,
)
from raydd.data import RealData, Resident, Transform
from raydd.distill import Record, State, distill
from raydd.executor import InlineExecutor
from raydd.methods import check as check_settings
from raydd.methods import method
from raydd.methods.base import DataFacts, MethodEntry, Resources
from raydd.models import FlatModel, build
from raydd.progressive import joined
from raydd.slots import Pool
from raydd.types import Candidate, Network, SyntheticSet
from tests.helpers import table
from tests.methods.plain_loop import base_method

SHAPE, CLASSES, IPC = (3, 8, 8), 3, 2
CONFIG = Config(
    steps=4,
    ipc=IPC,
    init="noise",
    model=ModelConfig(width=4, depth=2),
    experts=ExpertConfig(count=4),
    mtt=MTTConfig(syn_steps=2, expert_epochs=1, max_start_epoch=2, batch_syn=4, lr_img=10.0),
    dc=DCConfig(outer=3, inner=1, batch_real=5, batch_train=4),
    dm=DMConfig(batch_real=5),
    cafe=CAFEConfig(dsa=True, batch_real=5, batch_train=4, queries=4, window=2, max_outer=3, max_inner=3),
    idc=IDCConfig(inner_steps=3, batch_real=4, batch_net=6, net_images=10),
    dream=DREAMConfig(interval=2, iterations=5),
)
SEVERAL = SelectionConfig(policy="dynadistill", candidates=2, pool=3)


@dataclass(frozen=True)
class Case:
    """A method, and what its first step on a small set asks of it: two candidates, their networks prepared, and the draws."""

    config: Config
    entry: MethodEntry
    resources: Resources
    synthetic: SyntheticSet
    draws: Any
    candidates: list[Candidate]

    def fresh(self) -> Any:
        """The method anew, as another worker would have it."""
        return self.entry.build(self.config, self.resources)

    def executor(self) -> InlineExecutor:
        return InlineExecutor(self.fresh())

    def staged(self) -> "Case":
        """The case in a second stage, whose images stand behind the frozen ones of the first, as many of each class."""
        later = replace(self.synthetic, images=self.synthetic.images.flip(0, 3), stages=self.synthetic.stages + 1)
        return self.given(joined(self.synthetic, later))

    def given(self, synthetic: SyntheticSet) -> "Case":
        """The case with another set, and draws for it."""
        return replace(self, synthetic=synthetic, draws=self.entry.draw(self.config, synthetic, 0, 0))


@cache
def real_data(dtype: torch.dtype = torch.float32) -> RealData:
    """Twelve random images of each class, the classes a little apart."""
    generator = torch.Generator().manual_seed(11)
    labels = torch.arange(12 * CLASSES) % CLASSES
    pixels = torch.rand(len(labels), *SHAPE, generator=generator) * 0.7 + 0.1 * labels[:, None, None, None]
    transform = Transform.standard(SHAPE, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)).to("cpu", dtype)
    rows = tuple(torch.nonzero(labels == label).squeeze(1) for label in range(CLASSES))
    return RealData(Resident(transform.forward(pixels), labels, transform), rows)


def stored_images(dtype: torch.dtype = torch.float32) -> SyntheticSet:
    """Values that are possible pixels and possible training images."""
    images = torch.rand(CLASSES * IPC, *SHAPE, generator=torch.Generator().manual_seed(7)).to(dtype)
    labels = torch.arange(CLASSES).repeat_interleave(IPC)
    return SyntheticSet(images, labels, torch.tensor(0.02, dtype=dtype), torch.ones_like(labels))


def settings(name: str, **changes: Any) -> Config:
    """`CONFIG` for a method, with other settings; a dot is written as two underscores."""
    return override(replace(CONFIG, method=name), {key.replace("__", "."): value for key, value in changes.items()})


def case(name: str, dtype: torch.dtype = torch.float32, real: RealData | None = None, **changes: Any) -> Case:
    """A case of the method with `settings`, in float32 or float64."""
    config, entry = settings(name, **changes), method(name)
    model = build(config.model, SHAPE, CLASSES)
    resources = _resources(entry, model, real or real_data(dtype), dtype)
    synthetic = stored_images(dtype)
    draws = entry.draw(config, synthetic, 0, 0)
    found = Case(config, entry, resources, synthetic, draws, [Candidate(0, 1, 0), Candidate(1, 2, 0)])
    if entry.networks is None:
        return found
    made, usual = (entry.build(config, each) for each in (resources, _resources(entry, model, real_data(), torch.float32)))
    networks = [made.prepare(_in_precision(usual.begin(candidate.expert), dtype), draws) for candidate in found.candidates]
    return replace(found, candidates=[replace(c, network=network) for c, network in zip(found.candidates, networks, strict=True)])


def _resources(entry: MethodEntry, model: FlatModel, real: RealData, dtype: torch.dtype) -> Resources:
    if entry.networks is None:
        return Resources(model, table(model, 4, 3, dtype), torch.device("cpu"))
    return Resources(model, None, torch.device("cpu"), real)


def _in_precision(network: Network, dtype: torch.dtype) -> Network:
    return replace(network, theta=network.theta.to(dtype), velocity=network.velocity.to(dtype))


# Comparing


def same(one: Any, other: Any) -> bool:
    """Equal to the bit, whatever it is made of; seconds do not count."""
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if is_dataclass(one):
        names = [field.name for field in fields(one) if field.name != "seconds"]
        return type(one) is type(other) and all(same(getattr(one, name), getattr(other, name)) for name in names)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one if key != "seconds")
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def answers(found: Case, made: Any) -> list[Any]:
    """Everything that a method can be asked in a step."""
    asked = (found.synthetic, found.candidates[0], found.draws)
    given = [made.score(*asked), made.update(*asked), made.score(found.synthetic, found.candidates[1], found.draws)]
    if found.entry.networks is None:
        return given
    network = found.candidates[0].network
    prepared = made.prepare(replace(network, memory={}), found.draws)
    return [*given, made.begin(3), prepared, made.advance(found.synthetic, network, found.draws)]


def walk(config: Config, executor: InlineExecutor) -> tuple[State, list[Record]]:
    """A run without files: its last state and its records."""
    records: list[Record] = []
    return distill(config, State.start(stored_images()), executor, lambda state, record: records.append(record)), records


def through_a_checkpoint(state: State) -> State:
    """The state as a checkpoint gives it back."""
    if state.pool is None:
        return state
    tensors, values = state.pool.state()
    return replace(state, pool=Pool.from_state(tensors, json.loads(json.dumps(values))))


# Checks


def small_settings_are_accepted(name: str) -> None:
    config = settings(name)
    check_settings(config)
    assert method(name).problems(config, DataFacts(("a", "b", "c"), (12, 12, 12), SHAPE)) == []


def score_equals_the_loss_of_the_update(name: str) -> None:
    found = case(name, torch.float64)
    for candidate in found.candidates:
        asked = (found.synthetic, candidate, found.draws)
        assert found.fresh().score(*asked).loss == pytest.approx(found.fresh().update(*asked).loss, rel=1e-10)


def gradient_is_that_of_the_loss(name: str) -> None:
    """Central differences along two directions, through a smooth network; augmentation and decoding are part of it."""
    found = case(name, torch.float64, model__activation="swish")
    made, candidate = found.fresh(), found.candidates[0]
    gradient = made.update(found.synthetic, candidate, found.draws).grad_images
    for seed in range(2):
        direction = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        moved = [replace(found.synthetic, images=found.synthetic.images + way * direction) for way in (1e-5, -1e-5)]
        high, low = (made.score(synthetic, candidate, found.draws).loss for synthetic in moved)
        assert (high - low) / 2e-5 == pytest.approx((gradient * direction).sum().item(), rel=1e-5)


def frozen_images_count_in_the_loss_and_get_no_gradient(name: str) -> None:
    frozen_rows_are_left_out(case(name, torch.float64, **FROZEN))


FROZEN = {"mtt__batch_syn": None, "augment__parameters": "shared"}
"""Inner batches that hold every image, and whose images are augmented alike: frozen ones have another place in them."""


def frozen_rows_are_left_out(found: Case) -> None:
    """The loss, and the gradient in the free images, are those of the same union with nothing frozen."""
    staged = found.staged()
    free = staged.given(replace(staged.synthetic, frozen=0))
    part, whole = (each.fresh().update(each.synthetic, each.candidates[0], each.draws) for each in (staged, free))
    expected = whole.grad_images.unflatten(0, (CLASSES, -1))[:, IPC:].flatten(0, 1)
    assert part.grad_images.shape == (CLASSES * IPC, *SHAPE) and part.grad_images.flatten(1).any(1).all()
    torch.testing.assert_close(part.grad_images, expected, rtol=0, atol=1e-12 * expected.abs().max().item())
    torch.testing.assert_close(part.grad_step_size, whole.grad_step_size, rtol=1e-12, atol=1e-12)
    assert part.loss == pytest.approx(whole.loss, rel=1e-12)
    assert staged.fresh().score(staged.synthetic, staged.candidates[0], staged.draws).loss == pytest.approx(part.loss, rel=1e-12)


def gradient_beside_frozen_images_is_that_of_the_loss(name: str) -> None:
    """A central difference along a direction that moves the free images alone."""
    found = case(name, torch.float64, model__activation="swish").staged()
    made, candidate, images = found.fresh(), found.candidates[0], found.synthetic.images.unflatten(0, (CLASSES, -1))
    gradient = made.update(found.synthetic, candidate, found.draws).grad_images
    direction = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    along = torch.cat([torch.zeros_like(images[:, :IPC]), direction.unflatten(0, (CLASSES, -1))], 1)
    moved = [replace(found.synthetic, images=(images + way * along).flatten(0, 1)) for way in (1e-5, -1e-5)]
    high, low = (made.score(synthetic, candidate, found.draws).loss for synthetic in moved)
    assert (high - low) / 2e-5 == pytest.approx((gradient * direction).sum().item(), rel=1e-5)


def update_has_the_shape_of_the_set(name: str) -> None:
    found = case(name)
    update = found.fresh().update(found.synthetic, found.candidates[0], found.draws)
    assert update.grad_images.shape == found.synthetic.images.shape and update.grad_images.device.type == "cpu"
    assert update.grad_step_size.shape == () and not update.grad_images.requires_grad
    assert update.grad_images.flatten(1).any(1).all(), "an image without gradient never moves"


def equal_draws_give_equal_bits(name: str) -> None:
    """On another worker too, and whatever the global generators are at; these are left alone."""
    found, given = case(name), []
    for seed in (0, 1):
        torch.manual_seed(seed), np.random.seed(seed), random.seed(seed)  # noqa: NPY002
        before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
        given.append(answers(found, found.fresh()))
        assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[2]
        assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002
    assert same(*given)
    redrawn = found.entry.draw(found.config, found.synthetic, 0, 0)
    assert same(answers(replace(found, draws=redrawn), found.fresh()), given[0])


def what_was_asked_before_changes_nothing(name: str) -> None:
    """A method may keep what it has computed, but never gives it for other images, candidates, networks or draws."""
    found, kept = case(name), case(name).fresh()
    first, second = found.candidates
    asked, frozen = (found.synthetic, first, found.draws), found.given(replace(found.synthetic, frozen=1))
    others = [
        (replace(found.synthetic, images=found.synthetic.images + 0.1), first, found.draws),
        (found.synthetic, first, found.entry.draw(found.config, found.synthetic, 1, 0)),
        (found.synthetic, first, found.entry.draw(found.config, found.synthetic, 0, 1)),
        (found.synthetic, replace(first, expert=second.expert, network=second.network), found.draws),
        (found.synthetic, second, found.draws),
        (frozen.synthetic, first, frozen.draws),
    ]
    answers = [(found.fresh().score(*question), found.fresh().update(*question)) for question in (asked, *others)]
    for question, answer in zip(others, answers[1:], strict=True):
        for each, (score, update) in ((asked, answers[0]), (question, answer), (asked, answers[0])):
            assert same(kept.score(*each), score) and same(kept.update(*each), update)


def arguments_are_left_alone(name: str) -> None:
    found = case(name)
    before = copy.deepcopy((found.synthetic, found.candidates, found.draws))
    answers(found, found.fresh())
    assert same((found.synthetic, found.candidates, found.draws), before)
    assert not found.synthetic.images.requires_grad


def draws_and_networks_can_travel(name: str) -> None:
    found = case(name)
    copied = pickle.loads(pickle.dumps((found.candidates, found.draws)))
    assert same(copied, (found.candidates, found.draws))
    sent = replace(found, candidates=copied[0], draws=copied[1])
    assert same(answers(sent, found.fresh()), answers(found, found.fresh()))


def networks_depend_on_seed_and_birth_alone(name: str) -> None:
    found = case(name)
    if found.entry.networks is None:
        return
    births = {born: found.fresh().begin(born).theta for born in (0, 1)}
    other = replace(found, config=replace(found.config, seed=1)).fresh().begin(0).theta
    assert not torch.equal(births[0], births[1]) and not torch.equal(births[0], other)
    assert torch.equal(found.fresh().begin(0).theta, births[0])


def networks_are_prepared_where_the_method_says_so(name: str) -> None:
    found = case(name)
    if found.entry.networks is not None and not found.entry.networks.prepares:
        network = replace(found.candidates[0].network, memory={})
        assert found.fresh().prepare(network, found.draws) is network


def targets_found_beforehand_change_nothing(name: str) -> None:
    """Nor do those of another step or candidate, which are not to be used."""
    found = case(name, selection__common_draws=False)
    if found.entry.networks is None or not found.entry.networks.independent:
        return
    candidate, other = found.candidates
    assert found.draws.next() == found.entry.draw(found.config, found.synthetic, 1, 0)
    expected = found.fresh().update(found.synthetic, candidate, found.draws)
    for aimed, draws in ((candidate, found.draws), (candidate, found.draws.next()), (replace(candidate, index=other.index), found.draws)):
        network = found.fresh().target(aimed, draws)
        assert same(found.fresh().update(found.synthetic, replace(candidate, network=network), found.draws), expected)


def inline_executor_equals_plain_calls(name: str) -> None:
    found, made = case(name), case(name).fresh()
    executor, first = found.executor(), found.candidates[0]
    expected = [made.score(found.synthetic, candidate, found.draws) for candidate in found.candidates]
    assert same(executor.score(found.synthetic, found.candidates, found.draws), expected)
    assert same(executor.update(found.synthetic, first, found.draws), made.update(found.synthetic, first, found.draws))
    if found.entry.networks is None:
        return
    assert same(executor.begin([4, 2]), [made.begin(4), made.begin(2)])
    networks = [candidate.network for candidate in found.candidates]
    prepared = executor.prepare(found.candidates, found.draws)
    assert same([candidate.network for candidate in prepared], [made.prepare(network, found.draws) for network in networks])
    advanced = [made.advance(found.synthetic, network, found.draws) for network in networks]
    assert same(executor.advance(found.synthetic, found.candidates, found.draws), advanced)


def one_candidate_is_the_base_method(name: str) -> None:
    """Whatever the policy, to the bit."""
    base = case(name)
    expected = base_method(base.config, base.entry, base.fresh(), base.synthetic)
    assert not torch.equal(expected.images, stored_images().images)
    for policy in ("uniform", "dynadistill", "greedy"):
        found = case(name, selection__policy=policy)
        assert same(walk(found.config, found.executor())[0].synthetic, expected)


def several_candidates_make_a_choice(name: str) -> None:
    """The best and the worst of them lead to other images."""
    ends = []
    for sign in (-1.0, 1.0):
        config = replace(settings(name), steps=1, selection=replace(SEVERAL, policy="greedy", sign=sign))
        end, (record,) = walk(config, InlineExecutor(_made(config)))
        scores = [candidate["score"] for candidate in record["candidates"]]
        assert len(scores) == 2 and sign * scores[record["chosen"]] == max(sign * score for score in scores)
        ends.append(end.synthetic.images)
    assert not torch.equal(*ends)


def stopped_anywhere_and_continued_is_uninterrupted(name: str) -> None:
    """A new method and a state from a checkpoint before every step."""
    config = replace(settings(name), selection=SEVERAL)
    whole, expected = walk(config, InlineExecutor(_made(config)))
    state, records = State.start(stored_images()), []
    for _ in range(config.steps):
        executor, once = InlineExecutor(_made(config)), iter([False, True]).__next__
        state = distill(config, through_a_checkpoint(state), executor, lambda state, record: records.append(record), once)
    assert same(state, whole) and same(records, expected)


def _made(config: Config) -> Any:
    found = case(config.method)
    return found.entry.build(config, found.resources)


CHECKS: list[Callable[[str], None]] = [
    small_settings_are_accepted,
    score_equals_the_loss_of_the_update,
    gradient_is_that_of_the_loss,
    frozen_images_count_in_the_loss_and_get_no_gradient,
    gradient_beside_frozen_images_is_that_of_the_loss,
    update_has_the_shape_of_the_set,
    equal_draws_give_equal_bits,
    what_was_asked_before_changes_nothing,
    arguments_are_left_alone,
    draws_and_networks_can_travel,
    networks_depend_on_seed_and_birth_alone,
    networks_are_prepared_where_the_method_says_so,
    targets_found_beforehand_change_nothing,
    inline_executor_equals_plain_calls,
    one_candidate_is_the_base_method,
    several_candidates_make_a_choice,
    stopped_anywhere_and_continued_is_uninterrupted,
]
