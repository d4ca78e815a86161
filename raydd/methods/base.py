"""What a matching objective must offer, and the registry of those that exist.

A method turns (synthetic set, candidate, draws) into a score or an exact gradient. It is pure: equal arguments give equal
bits on one kind of device, so that a lost answer can simply be asked for again on another worker.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch

from raydd.config import Config, Execution, problems
from raydd.data import RealData
from raydd.decode import Decoding
from raydd.errors import ConfigError
from raydd.matching.memory import Matched
from raydd.models import FlatModel
from raydd.types import Candidate, Network, Score, SyntheticSet, Update


class Trajectories(Protocol):
    """Expert snapshots by place: float32 (P,) on the method's device."""

    def theta(self, expert: int, epoch: int) -> torch.Tensor: ...


@dataclass(frozen=True)
class Resources:
    """What a worker holds for its method, on one device: the network, and expert snapshots or the real training images.

    starts, start_count  the start networks of a stage (PDD), as experts of which only epoch 0 is read, and how many there are; None in
                         the first stage and without transition
    """

    model: FlatModel
    experts: Trajectories | None
    device: torch.device
    real: RealData | None = None
    starts: Trajectories | None = None
    start_count: int = 0


class Method(Protocol):
    """One matching objective.

    `score` is first order and builds no graph over the inner steps; `update` is the exact gradient of the same loss and may
    reuse what `score` kept for the same candidate and draws.
    """

    def score(self, synthetic: SyntheticSet, candidate: Candidate, draws: Any) -> Score: ...

    def update(self, synthetic: SyntheticSet, candidate: Candidate, draws: Any) -> Update: ...


class NetworkMethod(Method, Protocol):
    """A method whose networks train between updates. All three are pure too, and return new networks."""

    def begin(self, born: int) -> Network:
        """Network number `born` of the run, warmed up as the settings say; depends on the seed, on `born` and on real data alone."""
        ...

    def prepare(self, network: Network, draws: Any) -> Network:
        """The same network with what its first update needs in its memory."""
        ...

    def advance(self, synthetic: SyntheticSet, network: Network, draws: Any) -> Network:
        """The network after its training that follows an update of the images."""
        ...


class IndependentMethod(NetworkMethod, Protocol):
    """A method whose networks train without a look at the synthetic set: what is to be matched can be found beforehand."""

    def target(self, candidate: Candidate, draws: Any) -> Network:
        """The candidate's network with what this step matches on the real side in its memory, for `update` to find there."""
        ...


@dataclass(frozen=True)
class Optimiser:
    """How the driver applies a gradient: SGD with momentum.

    lr_step_size, min_step_size  of the learned step size, and the floor that keeps it positive
    class_sum    the loss is a mean over the classes where the base method steps on their sum: the rate counts once for each class
    class_order  the images of every class are stepped in turn, with momentum moving those of the others (IDC); `raydd.optimise`
    clamp        images are brought back to [0, 1] when a network lifetime begins
    rates        float (N, 1, 1, 1), by which the rate of each image is multiplied; None for none
    """

    lr_images: float
    momentum: float
    lr_step_size: float = 0.0
    min_step_size: float = 0.0
    class_sum: bool = False
    class_order: bool = False
    clamp: bool = False
    rates: torch.Tensor | None = None


@dataclass(frozen=True)
class DataFacts:
    """What a method may refuse about the real data: class names, training images of each, and the shape (C, H, W)."""

    classes: tuple[str, ...]
    counts: tuple[int, ...]
    shape: tuple[int, int, int]


@dataclass(frozen=True)
class NetworkRules:
    """How the networks of a method live.

    length(config)      image updates of a lifetime (outer iteration), at most; a network whose memory has "finished" ends before
    slots               what becomes of the slots with several candidates, unless `selection.slots` says
    independent         whether `advance` never looks at the synthetic set, so that it may run beside the update; the method is then
                        an `IndependentMethod`, and its draws have a `key` and, as `next()`, those of the next step
    prepares            whether a network that is chosen needs `prepare` before its first update
    trains_last         whether a network that stays is trained after the last update of its lifetime too
    warms               whether `begin` heeds `selection.warm_up_images` and `warm_up_spread`
    ranks_classes       whether `score` heeds `selection.rank_classes`
    iterations(config)  lifetimes after which the run ends, or None when `steps` alone decides
    """

    length: Callable[[Config], int]
    slots: Literal["put_back", "redraw"] = "redraw"
    independent: bool = False
    prepares: bool = False
    trains_last: bool = False
    warms: bool = False
    ranks_classes: bool = False
    iterations: Callable[[Config], int | None] = lambda config: None


@dataclass(frozen=True)
class MethodEntry:
    """A registered method.

    build(config, resources) makes it on a worker.
    draw(config, synthetic, step, attempt) returns all randomness of one step, or the key from which the worker draws it, shared by
    the step's candidates; `attempt` counts redraws of the same step.
    optimiser(config, side, outer) is what the driver steps with in lifetime `outer`; step_size(config) the start value of the step size.
    networks is None for a method over expert trajectories; start_epochs(config) then bounds a candidate's start epoch, exclusive.
    decoding(config) tells how stored images become training images; matched(config) what is matched, by which memory is predicted.
    rates(config) are the settings to lower when a run diverges, by flag.
    problems(config, facts) lists what is wrong with the settings, one sentence each; facts is None before the data is read.
    """

    name: str
    build: Callable[[Config, Resources], Method]
    draw: Callable[[Config, SyntheticSet, int, int], Any]
    optimiser: Callable[[Config, int, int], Optimiser]
    step_size: Callable[[Config], float]
    rates: Callable[[Config], dict[str, float]]
    start_epochs: Callable[[Config], int] = lambda config: 1
    networks: NetworkRules | None = None
    decoding: Callable[[Config], Decoding] = lambda config: Decoding()
    matched: Callable[[Config], Matched] = lambda config: "gradients"
    problems: Callable[[Config, DataFacts | None], list[str]] = lambda config, facts: []


_METHODS: dict[str, MethodEntry] = {}


def register(entry: MethodEntry) -> MethodEntry:
    """Add a method to the registry; its name becomes a value of `--method`."""
    _METHODS[entry.name] = entry
    return entry


def method(name: str) -> MethodEntry:
    """The registered method of this name. Raises `ConfigError` with the names that exist."""
    if name not in _METHODS:
        raise ConfigError([f"--method={name} is not a method; known: {', '.join(sorted(_METHODS))}."])
    return _METHODS[name]


def method_names() -> list[str]:
    """Every registered method."""
    return sorted(_METHODS)


def check(config: Config, execution: Execution | None = None) -> None:
    """Raise `ConfigError` with every problem of the settings, those of the method included, that shows before the data is read."""
    entry = method(config.method)
    found = problems(config, execution) + _slot_problems(config, entry) + entry.problems(config, None)
    if found:
        raise ConfigError(found)


def slot_rule(config: Config, rules: NetworkRules) -> str:
    """What becomes of the slots after a lifetime: `selection.slots`, else the method's own rule, else redraw for one candidate."""
    return config.selection.slots or (rules.slots if config.selection.candidates > 1 else "redraw")


def slot_count(config: Config, rules: NetworkRules) -> int:
    """Network slots in the pool. Where all are redrawn, only as many as there are candidates."""
    count = config.selection.candidates
    if slot_rule(config, rules) == "redraw":
        return count
    return config.selection.pool or (10 if count > 1 else 1)


def _slot_problems(config: Config, entry: MethodEntry) -> list[str]:
    selection, rules = config.selection, entry.networks
    if rules is None:
        return _foreign(config, _SLOT_SETTINGS | _OWN_BATCH | _WARM_UP | _SOME_CLASSES)
    heeded = ((rules.independent, _OWN_BATCH), (rules.warms, _WARM_UP), (rules.ranks_classes, _SOME_CLASSES))
    found = [problem for heeds, settings in ((False, _EXPERT_SETTINGS), *heeded) if not heeds for problem in _foreign(config, settings)]
    if selection.pool is not None and slot_rule(config, rules) == "redraw":
        found.append(
            f"--selection.pool={selection.pool}: every slot starts anew after each network lifetime, so there are as many as candidates. "
            "Leave it out, or keep networks with --selection.slots put_back."
        )
    slots = slot_count(config, rules)
    if selection.candidates > slots:
        found.append(
            f"--selection.candidates={selection.candidates} is more than the {slots} network slots; lower it, or raise --selection.pool."
        )
    if selection.every and selection.every > rules.length(config):
        found.append(f"--selection.every={selection.every} is more than the {rules.length(config)} image updates of a network lifetime.")
    return found


# Settings of `selection` that only some methods read, with the value that says nothing.
_EXPERT_SETTINGS = {"replacement": True, "share_start": False}
_SLOT_SETTINGS = {"every": 0, "slots": None, "common_draws": True}
_OWN_BATCH = {"rank_batch": "shared"}
_WARM_UP = {"warm_up_images": None, "warm_up_spread": 0}
_SOME_CLASSES = {"rank_classes": None}


def _foreign(config: Config, settings: dict[str, Any]) -> list[str]:
    """One sentence for every setting that the method would not heed."""
    given = {name: getattr(config.selection, name) for name in settings}
    return [
        f"--selection.{name}={value} does not go with --method {config.method}." for name, value in given.items() if value != settings[name]
    ]
