"""The pool of network slots of a run: which networks there are, whose turn it is, and what becomes of them.

A lifetime (outer iteration) is what one network serves: 100 image updates for IDC, the loop table of DC, 1 for DM. Every rule is a
choice that DynaDistill's Algorithm 1 leaves open; specs/idc_dream_pdd.md section 5.2 lists them. With one candidate every lifetime
has a fresh network, which is the base method.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from raydd.config import Config
from raydd.methods.base import NetworkRules, slot_count, slot_rule
from raydd.rng import stream
from raydd.types import Candidate, Network

Begin = Callable[[list[int]], list[Network]]


@dataclass(frozen=True)
class Pool:
    """What the driver knows of its networks between two steps.

    networks  one for each slot; None where the next network has not begun
    current   the slot whose turn it is
    inner     image updates made in this lifetime
    outer     lifetimes that are over
    births    networks begun so far
    served    the slots chosen in this lifetime, with `selection.slots = keep` each with its network as it was before
    """

    networks: tuple[Network | None, ...]
    current: int = 0
    inner: int = 0
    outer: int = 0
    births: int = 0
    served: dict[int, Network | None] = field(default_factory=dict)

    @classmethod
    def start(cls, config: Config, rules: NetworkRules) -> "Pool":
        """Empty slots."""
        return cls((None,) * slot_count(config, rules))

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors by name, JSON-ready values) for a checkpoint; `from_state` is the way back."""
        tensors: dict[str, Tensor] = {}
        values = {name: getattr(self, name) for name in _COUNTS}
        values["slots"] = [_network_state(f"slot.{slot}", network, tensors) for slot, network in enumerate(self.networks)]
        values["served"] = {str(slot): _network_state(f"slot.{slot}.before", network, tensors) for slot, network in self.served.items()}
        return tensors, values

    @classmethod
    def from_state(cls, tensors: dict[str, Tensor], values: dict[str, Any]) -> "Pool":
        """The pool that `state` came from."""
        networks = tuple(_network_from(f"slot.{slot}", entry, tensors) for slot, entry in enumerate(values["slots"]))
        served = {int(slot): _network_from(f"slot.{slot}.before", entry, tensors) for slot, entry in values["served"].items()}
        return cls(networks, served=served, **{name: values[name] for name in _COUNTS})


_COUNTS = ("current", "inner", "outer", "births")


def _network_state(place: str, network: Network | None, tensors: dict[str, Tensor]) -> dict[str, Any] | None:
    if network is None:
        return None
    tensors |= {f"{place}.theta": network.theta, f"{place}.velocity": network.velocity}
    tensors |= {f"{place}.memory.{name}": value for name, value in network.memory.items()}
    return {"born": network.born, "age": network.age, "inner": network.inner, "memory": sorted(network.memory)}


def _network_from(place: str, entry: dict[str, Any] | None, tensors: dict[str, Tensor]) -> Network | None:
    if entry is None:
        return None
    memory = {name: tensors[f"{place}.memory.{name}"] for name in entry["memory"]}
    own = (tensors[f"{place}.{name}"] for name in ("theta", "velocity"))
    return Network(*own, entry["born"], entry["age"], entry["inner"], memory)


def filled(pool: Pool, begin: Begin) -> Pool:
    """The pool with a network in every slot, new ones begun in slot order."""
    empty = [slot for slot, network in enumerate(pool.networks) if network is None]
    if not empty:
        return pool
    networks = list(pool.networks)
    for slot, network in zip(empty, begin(list(range(pool.births, pool.births + len(empty)))), strict=True):
        networks[slot] = network
    return replace(pool, networks=tuple(networks), births=pool.births + len(empty))


def selects(config: Config, pool: Pool) -> bool:
    """Whether the next step chooses among slots: at the start of a lifetime, and every `selection.every` image updates of it."""
    every = config.selection.every
    return pool.inner == 0 or (every > 0 and pool.inner % every == 0)


def candidates(config: Config, pool: Pool, step: int, attempt: int) -> list[Candidate]:
    """M different slots where the step selects, else the one whose turn it is. Every slot must be filled."""
    slots = [pool.current]
    if selects(config, pool):
        order = torch.randperm(len(pool.networks), generator=stream(config.seed, step, "slots", attempt))
        slots = order[: config.selection.candidates].tolist()
    return [Candidate(index, slot, pool.networks[slot].age, pool.networks[slot]) for index, slot in enumerate(slots)]


def taken(config: Config, rules: NetworkRules, pool: Pool, candidate: Candidate) -> Pool:
    """The pool with a candidate chosen, its network as prepared."""
    slot = candidate.expert
    before = pool.networks[slot] if slot_rule(config, rules) == "keep" else None
    return replace(_placed(pool, slot, candidate.network), current=slot, served={slot: before} | pool.served)


def trained(config: Config, rules: NetworkRules, pool: Pool) -> list[int]:
    """Slots whose networks are trained after this image update: none after the last of a lifetime, unless they stay."""
    rule = slot_rule(config, rules)
    last = pool.inner + 1 >= rules.length(config)
    if last and not (rules.trains_last and rule in ("put_back", "train_all")):
        return []
    return list(range(len(pool.networks))) if rule == "train_all" else [pool.current]


def advanced(config: Config, rules: NetworkRules, pool: Pool, slots: Sequence[int], networks: Sequence[Network]) -> Pool:
    """The pool after an image update, with the networks that were trained; a lifetime that is over makes room for the next."""
    for slot, network in zip(slots, networks, strict=True):
        pool = _placed(pool, slot, network)
    pool = replace(pool, inner=pool.inner + 1)
    finished = "finished" in pool.networks[pool.current].memory
    return _ended(config, slot_rule(config, rules), pool) if finished or pool.inner >= rules.length(config) else pool


def dropped(config: Config, rules: NetworkRules, pool: Pool, slots: Sequence[int]) -> Pool:
    """The pool after a step in which the networks of `slots` gave nothing finite: they are given up, and the lifetime ends."""
    pool = _ended(config, slot_rule(config, rules), pool)
    for slot in slots:
        pool = _placed(pool, slot, None)
    return pool


def _ended(config: Config, rule: str, pool: Pool) -> Pool:
    networks = [network and replace(network, inner=0, memory={}) for network in pool.networks]
    for slot in range(len(networks)) if rule in ("redraw", "train_all") else pool.served:
        networks[slot] = _afterwards(config, rule, networks[slot], pool.served.get(slot))
    return replace(pool, networks=tuple(networks), inner=0, outer=pool.outer + 1, served={})


def _afterwards(config: Config, rule: str, network: Network, before: Network | None) -> Network | None:
    """What stays in a slot after a lifetime that it served."""
    if rule in ("redraw", "reinit"):
        return None
    if rule == "keep":
        return before
    age = network.age + 1
    return None if config.selection.max_age and age >= config.selection.max_age else replace(network, age=age)


def _placed(pool: Pool, slot: int, network: Network | None) -> Pool:
    return replace(pool, networks=(*pool.networks[:slot], network, *pool.networks[slot + 1 :]))
