"""Search spaces as text, and who searches them: by lot or Optuna, with ASHA or population based training."""

import re
from collections.abc import Callable
from typing import Any

from ray import tune
from ray.tune.schedulers import PopulationBasedTraining, TrialScheduler
from ray.tune.search import BasicVariantGenerator, Searcher

from raydd.actors.fork import FORKABLE
from raydd.errors import ConfigError
from sweeping.arguments import Options, value_of
from sweeping.feedback import Halving

_KINDS: dict[str, tuple[Callable[..., Any], int | None]] = {
    "uniform": (tune.uniform, 2),
    "loguniform": (tune.loguniform, 2),
    "randint": (tune.randint, 2),
    "lograndint": (tune.lograndint, 2),
    "choice": (lambda *values: tune.choice(list(values)), None),
}
_FORM = re.compile(r"(\w+)\((.*)\)")
GRACE = 20
"""Percent of a run before ASHA may end it, and between two perturbations of a population."""


def domain(name: str, text: str) -> Any:
    """Tune's domain for `loguniform(0.05,5)`, `uniform(0,1)`, `randint(1,9)` (without 9), `lograndint(1,99)` or `choice(none,mean)`.

    Raises `ConfigError` for any other text.
    """
    match = _FORM.fullmatch(text.strip())
    kind, count = _KINDS.get(match[1], (None, None)) if match else (None, None)
    values = [value_of(part.strip()) for part in match[2].split(",")] if match else []
    numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
    rising = count is None or (len(values) == count and numbers and values[0] < values[1])
    positive = not match or not match[1].startswith("log") or (numbers and values[0] > 0)
    if kind is None or not rising or not positive:
        raise ConfigError(
            [
                f"--space {name}={text} is no space. Write uniform(LOW,HIGH), loguniform(LOW,HIGH), randint(LOW,HIGH), "
                "lograndint(LOW,HIGH) with LOW below HIGH (above 0 for log), or choice(A,B,...)."
            ]
        )
    return kind(*values)


def spaces_of(options: Options) -> list[tuple[str, str]]:
    """(setting, text) of every --space, which search.py has split."""
    return options.own.spaces


def searcher(options: Options) -> BasicVariantGenerator | Searcher:
    """Who draws the settings; the first seed seeds it too. Raises `ConfigError` when Optuna is asked for and absent."""
    seed = options.seeds[0]
    if options.own.searcher == "random":
        return BasicVariantGenerator(random_state=seed, max_concurrent=options.max_concurrent or 0)
    try:
        from ray.tune.search.optuna import OptunaSearch

        return OptunaSearch(metric="accuracy", mode="max", seed=seed)
    except (ImportError, AssertionError) as error:
        raise ConfigError(["--searcher optuna needs Optuna: pip install 'raydd[search]'. --searcher random needs nothing."]) from error


def scheduler(options: Options) -> TrialScheduler | None:
    """Who ends or perturbs trials, by how far they are in percent of their own steps. Raises `ConfigError`."""
    if options.scheduler == "asha":
        return Halving(time_attr="progress", max_t=100, grace_period=GRACE, reduction_factor=2, stop_last_trials=False)
    if options.scheduler == "none":
        return None
    spaces = {name: domain(name, text) for name, text in spaces_of(options)}
    refused = sorted(spaces.keys() - set(FORKABLE))
    if refused:
        raise ConfigError(
            [f"--scheduler pbt cannot perturb {', '.join(refused)}: a checkpoint depends on it. It can: {', '.join(FORKABLE)}."]
        )
    return PopulationBasedTraining(
        time_attr="progress",
        perturbation_interval=GRACE,
        hyperparam_mutations={"order": {"settings": spaces}},
        quantile_fraction=0.5 if (options.num_samples or 10) < 4 else 0.25,
    )
