"""The pool of networks: every rule for what becomes of a slot, selections within a lifetime, births, failures, checkpoints."""

from dataclasses import dataclass, replace

import pytest
import torch

from raydd import checkpoint, slots
from raydd.config import Config, SelectionConfig
from raydd.methods import method
from raydd.methods.base import NetworkRules, slot_count, slot_rule
from raydd.slots import Pool
from raydd.types import Candidate, Network

RULES = NetworkRules(length=lambda config: 3)
BORN = [0.0, 100.0, 200.0, 300.0]


def config(**selection) -> Config:
    return Config(method="dc", selection=SelectionConfig(**{"candidates": 2, "pool": 4, "max_age": 0, **selection}))


def begin(births: list[int]) -> list[Network]:
    """Networks whose one parameter is a hundred times their number."""
    return [Network(torch.tensor([100.0 * born]), torch.zeros(1), born) for born in births]


def trained(network: Network) -> Network:
    """One more, with momentum, a count and a memory."""
    return replace(network, theta=network.theta + 1, velocity=network.velocity + 0.5, inner=network.inner + 1, memory={"n": torch.ones(2)})


@dataclass
class Run:
    """Steps of a loop that has networks and nothing else. `choose` is which candidate wins a selection."""

    config: Config
    rules: NetworkRules = RULES
    choose: int = 1
    step: int = 0

    def __post_init__(self) -> None:
        self.pool = Pool.start(self.config, self.rules)
        self.chosen: list[int] = []
        self.trained: list[list[int]] = []
        self.births: list[list[int]] = []

    def steps(self, count: int) -> "Run":
        for _ in range(count):
            self.enter()
            self.take()
            places = slots.trained(self.config, self.rules, self.pool)
            self.trained.append(places)
            self.pool = slots.advanced(self.config, self.rules, self.pool, places, [trained(self.pool.networks[slot]) for slot in places])
            self.step += 1
        return self

    def enter(self) -> None:
        def noted(births: list[int]) -> list[Network]:
            self.births.append(births)
            return begin(births)

        self.pool = slots.filled(self.pool, noted)

    def take(self) -> None:
        candidates = slots.candidates(self.config, self.pool, self.step, 0)
        candidate = candidates[self.choose if len(candidates) > 1 else 0]
        self.chosen.append(candidate.expert)
        self.pool = slots.taken(self.config, self.rules, self.pool, candidate)

    @property
    def thetas(self) -> list[float | None]:
        return [None if network is None else network.theta.item() for network in self.pool.networks]


def with_slot(slot: int, value: float | None) -> list[float | None]:
    """The first thetas with another value in one slot."""
    return [value if place == slot else born for place, born in enumerate(BORN)]


# Lifetimes


@pytest.mark.parametrize(("rule", "after"), [("put_back", 2.0), ("reinit", None), ("keep", 0.0)])
def test_the_chosen_slot_after_a_lifetime(rule: str, after: float | None) -> None:
    run = Run(config(slots=rule)).steps(3)
    (slot,) = set(run.chosen)
    assert run.thetas == with_slot(slot, None if after is None else BORN[slot] + after)
    assert run.trained == [[slot], [slot], []], "the last update of a lifetime is followed by no training"
    assert (run.pool.outer, run.pool.inner, run.pool.births, run.pool.served) == (1, 0, 4, {})


def test_networks_that_stay_are_trained_to_the_last_where_the_method_says_so() -> None:
    for rule, after in (("put_back", 3.0), ("keep", 0.0)):
        run = Run(config(slots=rule), replace(RULES, trains_last=True)).steps(3)
        assert run.thetas == with_slot(run.chosen[0], BORN[run.chosen[0]] + after)
        assert len(run.trained[-1]) == (rule == "put_back")


def test_what_is_put_back_is_older_and_remembers_nothing() -> None:
    run = Run(config(slots="put_back")).steps(3)
    network = run.pool.networks[run.chosen[0]]
    assert (network.age, network.inner, network.memory, network.velocity.item()) == (1, 0, {}, 1.0)
    assert all(other.age == 0 for slot, other in enumerate(run.pool.networks) if slot != run.chosen[0])


def test_what_is_kept_is_as_it_was() -> None:
    run = Run(config(slots="keep"))
    run.enter()
    before = run.pool.networks
    run.steps(3)
    assert all(one is other or one == other for one, other in zip(run.pool.networks, before, strict=True))


def test_redrawn_slots_are_all_new_in_every_lifetime() -> None:
    run = Run(config(slots="redraw", pool=None)).steps(3)
    assert run.thetas == [None, None]
    run.steps(4)
    assert run.births == [[0, 1], [2, 3], [4, 5]] and run.pool.births == 6


def test_all_slots_train_along() -> None:
    run = Run(config(slots="train_all"), replace(RULES, trains_last=True)).steps(3)
    assert run.trained == [[0, 1, 2, 3]] * 3 and run.thetas == [born + 3 for born in BORN]
    assert [network.age for network in run.pool.networks] == [1] * 4
    assert Run(config(slots="train_all")).steps(3).trained == [[0, 1, 2, 3], [0, 1, 2, 3], []]


@pytest.mark.parametrize(("rule", "born"), [("put_back", [3]), ("train_all", [3, 4, 5])])
def test_slots_of_the_highest_age_start_anew(rule: str, born: list[int]) -> None:
    run = Run(config(slots=rule, pool=3, candidates=1, max_age=2), replace(RULES, length=lambda config: 1))
    run.enter()
    while None not in run.thetas:
        assert max(network.age for network in run.pool.networks) < 2
        run.steps(1)
    lost = [slot for slot, theta in enumerate(run.thetas) if theta is None]
    assert len(lost) == len(born) and (rule == "train_all" or run.chosen.count(lost[0]) == 2)
    run.enter()
    assert run.births[-1] == born and [run.pool.networks[slot].born for slot in lost] == born
    assert all(run.pool.networks[slot].age == 0 for slot in lost)


def test_without_a_highest_age_nothing_starts_anew() -> None:
    run = Run(config(slots="put_back", pool=1, candidates=1, max_age=0)).steps(60)
    assert run.pool.networks[0].age == 20 and run.births == [[0]]


def test_a_finished_network_ends_its_lifetime() -> None:
    run = Run(config(slots="put_back"), replace(RULES, length=lambda config: 50)).steps(2)
    assert run.pool.inner == 2
    slot = run.pool.current
    done = replace(run.pool.networks[slot], memory={"finished": torch.ones(())})
    ended = slots.advanced(run.config, run.rules, run.pool, [slot], [done])
    assert (ended.inner, ended.outer, ended.networks[slot].memory) == (0, 1, {})
    other = (slot + 1) % 4
    going = slots.advanced(run.config, run.rules, run.pool, [other], [replace(run.pool.networks[other], memory=done.memory)])
    assert (going.inner, going.outer) == (3, 0), "only the network whose turn it is ends its own"


# Selections


def test_slots_are_chosen_when_a_lifetime_begins() -> None:
    run = Run(config(slots="put_back")).steps(60)
    assert all(len(set(run.chosen[first : first + 3])) == 1 for first in range(0, 60, 3))
    assert set(run.chosen) == {0, 1, 2, 3}


def test_slots_are_chosen_again_every_few_updates() -> None:
    long = replace(RULES, length=lambda config: 5)
    run = Run(config(slots="put_back", every=2), long).steps(40)
    selected = [place for place in range(40) if place % 5 in (0, 2, 4)]
    assert all(run.chosen[place] == run.chosen[place - 1] for place in range(40) if place not in selected)
    assert any(run.chosen[place] != run.chosen[place - 1] for place in selected if place % 5)
    assert [place for place in range(10) if slots.selects(run.config, replace(run.pool, inner=place % 5))] == selected[:6]


@pytest.mark.parametrize("rule", ["put_back", "reinit", "keep"])
def test_every_slot_that_served_in_a_lifetime_is_treated_alike(rule: str) -> None:
    run = Run(config(slots=rule, every=1))
    run.steps(3)
    served = set(run.chosen)
    assert len(served) > 1 and run.pool.outer == 1
    for slot, network in enumerate(run.pool.networks):
        if slot not in served:
            assert network.theta.item() == BORN[slot] and network.age == 0
        elif rule == "put_back":
            assert network.age == 1 and network.theta.item() == BORN[slot] + run.chosen[:2].count(slot)
        else:
            assert network is None if rule == "reinit" else network.theta.item() == BORN[slot]


def test_candidates_are_different_slots_with_their_ages_and_networks() -> None:
    run = Run(config(slots="put_back", candidates=3))
    run.enter()
    run.pool = replace(run.pool, networks=tuple(replace(network, age=network.born + 5) for network in run.pool.networks))
    drawn = [slots.candidates(run.config, run.pool, step, 0) for step in range(50)]
    for found in drawn:
        assert [candidate.index for candidate in found] == [0, 1, 2] and len({candidate.expert for candidate in found}) == 3
        assert all(candidate.network is run.pool.networks[candidate.expert] for candidate in found)
        assert all(candidate.epoch == candidate.expert + 5 for candidate in found)
    assert {found[0].expert for found in drawn} == {0, 1, 2, 3}
    assert slots.candidates(run.config, run.pool, 7, 0) == drawn[7]
    assert any(slots.candidates(run.config, run.pool, step, 1) != drawn[step] for step in range(5))
    assert any(slots.candidates(replace(run.config, seed=1), run.pool, step, 0) != drawn[step] for step in range(5))


def test_a_prepared_network_takes_its_slot() -> None:
    run = Run(config(slots="put_back"))
    run.enter()
    prepared = replace(run.pool.networks[2], memory={"representatives": torch.ones(3)})
    pool = slots.taken(run.config, run.rules, run.pool, Candidate(0, 2, 0, prepared))
    assert pool.networks[2] is prepared and pool.current == 2 and pool.networks[0] is run.pool.networks[0]


@pytest.mark.parametrize(
    ("name", "selection", "expected"),
    [
        ("dm", {"candidates": 1}, ("redraw", 1)),
        ("idc", {"candidates": 1}, ("redraw", 1)),
        ("idc", {"candidates": 1, "slots": "put_back"}, ("put_back", 1)),
        ("idc", {"candidates": 1, "slots": "put_back", "pool": 5}, ("put_back", 5)),
        ("dm", {"candidates": 3}, ("redraw", 3)),
        ("dc", {"candidates": 3, "slots": "keep"}, ("keep", 10)),
        ("idc", {"candidates": 3}, ("put_back", 10)),
        ("dream", {"candidates": 3, "pool": 4}, ("put_back", 4)),
        ("dreamplus", {"candidates": 3, "slots": "redraw"}, ("redraw", 3)),
    ],
)
def test_rules_and_numbers_of_slots(name: str, selection: dict, expected: tuple[str, int]) -> None:
    given, rules = Config(method=name, selection=SelectionConfig(**selection)), method(name).networks
    assert (slot_rule(given, rules), slot_count(given, rules)) == expected


# Failures


def test_a_failed_network_is_given_up_and_its_lifetime_ends() -> None:
    run = Run(config(slots="put_back")).steps(2)
    slot = run.pool.current
    pool = slots.dropped(run.config, run.rules, run.pool, [slot])
    assert (pool.inner, pool.outer, pool.served) == (0, 1, {})
    assert [network is None for network in pool.networks] == [place == slot for place in range(4)]


def test_failed_candidates_are_given_up_and_no_other() -> None:
    """At the start of a lifetime no candidate has been chosen: the network of the last lifetime is not at fault."""
    run = Run(config(slots="put_back")).steps(3)
    good = run.pool.current
    bad = [slot for slot in range(4) if slot != good][:2]
    pool = slots.dropped(run.config, run.rules, run.pool, bad)
    assert [slot for slot, network in enumerate(pool.networks) if network is None] == bad
    assert pool.networks[good] == run.pool.networks[good]


def test_where_slots_are_redrawn_a_failure_redraws_all() -> None:
    run = Run(config(slots="redraw", pool=None)).steps(1)
    assert slots.dropped(run.config, run.rules, run.pool, [run.pool.current]).networks == (None, None)


def test_what_was_kept_before_a_failure_does_not_come_back() -> None:
    run = Run(config(slots="keep")).steps(2)
    slot = run.pool.current
    pool = slots.dropped(run.config, run.rules, run.pool, [slot])
    assert pool.networks[slot] is None and pool.births == 4


# Checkpoints


def equal(one: Pool, other: Pool) -> bool:
    def parts(network: Network | None) -> list | None:
        if network is None:
            return None
        memory = {name: value.tolist() for name, value in network.memory.items()}
        return [network.theta.tolist(), network.velocity.tolist(), network.born, network.age, network.inner, memory]

    def all_parts(pool: Pool) -> list:
        served = {slot: parts(network) for slot, network in pool.served.items()}
        return [[parts(network) for network in pool.networks], served, pool.current, pool.inner, pool.outer, pool.births]

    return all_parts(one) == all_parts(other)


@pytest.mark.parametrize("rule", ["put_back", "train_all", "reinit", "keep", "redraw"])
def test_a_pool_comes_back_from_a_checkpoint_and_goes_on_alike(rule: str, tmp_path) -> None:
    """Before every step of several lifetimes, with a selection in the middle of each."""
    pool = None if rule == "redraw" else 4
    given = config(slots=rule, every=2, max_age=2, pool=pool)
    whole, parts = Run(given), Run(given)
    for step in range(10):
        tensors, values = parts.pool.state()
        checkpoint.save(tmp_path, step, tensors, {"pool": values}, {"run": rule})
        found = checkpoint.load_latest(tmp_path, {"run": rule})
        assert equal(Pool.from_state(found.tensors, found.state["pool"]), parts.pool)
        parts.pool = Pool.from_state(found.tensors, found.state["pool"])
        assert equal(parts.steps(1).pool, whole.steps(1).pool)
    assert parts.chosen == whole.chosen and whole.pool.outer == 3


def test_names_of_tensors_differ() -> None:
    run = Run(config(slots="keep", every=1)).steps(2)
    tensors, _ = run.pool.state()
    expected = {f"slot.{slot}.{part}" for slot in range(4) for part in ("theta", "velocity")}
    expected |= {f"slot.{slot}.before.{part}" for slot in run.chosen for part in ("theta", "velocity")}
    assert set(tensors) == expected | {f"slot.{slot}.memory.n" for slot in run.chosen}
