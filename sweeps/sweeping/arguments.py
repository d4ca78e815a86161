"""The command line of every sweep script: the same flags, the same refusals, the same exit codes as raydd's own.

Exit codes: 0 every trial finished or was stopped early, 2 refused or some trial failed, 130 stopped by Ctrl-C.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from raydd.config import Config, Execution, from_dict, override, to_dict
from raydd.errors import ConfigError, RayddError
from raydd.launch import absolute
from raydd.places import absolute as absolute_place
from raydd.places import is_uri, join, redacted
from raydd.recipes import load_recipe
from sweeping.checks import refuse
from sweeping.question import SMALL, Arm, Question, refuse_equal_names
from sweeping.storage import holds

DEFAULT_STORAGE = "runs/sweeps"
_SCHEDULERS = ("none", "asha", "pbt")


@dataclass(frozen=True)
class Options:
    """The command line. `own` holds the flags of the script itself; `settings` and `execution` what --set and its kin say."""

    recipe: str
    storage: str
    name: str
    resume: bool
    smoke: bool
    temporary: bool
    address: str
    seeds: tuple[int, ...]
    num_samples: int | None
    max_concurrent: int | None
    scheduler: str
    time_budget: float | None
    settings: dict[str, Any]
    execution: Execution
    gpus: float | None
    every: int | None
    points: int
    own: argparse.Namespace

    @property
    def folder(self) -> str:
        """Where everything of the sweep lies."""
        return join(self.storage, self.name)

    def base(self, recipe: str) -> Config:
        """The settings of a recipe with what --steps and --set change. Raises `ConfigError`."""
        return absolute(override(load_recipe(recipe).config, self.settings))

    def steps(self, recipe: str) -> int:
        """Steps (of each stage) that --steps or the recipe asks for."""
        return self.base(recipe).steps

    def complete(self, arm: Arm) -> Arm:
        """The arm with its recipe, and with as many evaluations along its runs as asked for. Raises `ConfigError`."""
        recipe = arm.recipe or self.recipe
        config = override(self.base(recipe), arm.settings)
        if config.evaluation.every or "evaluation.every" in self.settings:
            return replace(arm, recipe=recipe)
        every = max(1, config.steps * config.stages.count // self.points)
        return replace(arm, recipe=recipe, settings={**arm.settings, "evaluation.every": every})


def main(question: Question, arguments: list[str] | None = None) -> int:
    """Run the script; prints what went wrong and returns the exit code."""
    try:
        options = parse(question, arguments)
        arms = question.arms(options)
        refuse_equal_names(arms)
        arms = completed(options, arms, question.models(options))
        if not options.temporary:
            return _run(question, options, arms)
        with tempfile.TemporaryDirectory(prefix="raydd-smoke-") as place:
            execution = replace(options.execution, store=f"{place}/store")
            return _run(question, replace(options, storage=place, execution=execution), arms)
    except RayddError as error:
        for line in str(error).splitlines():
            print(f"{question.name}: {redacted(line)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{question.name}: stopped; the same command with --resume carries on", file=sys.stderr)
        return 130


def _run(question: Question, options: Options, arms: list[Arm]) -> int:
    place = options.folder
    if not options.resume and holds(place, "runs"):
        raise ConfigError([f"{place} already holds a sweep. Carry on with it by --resume, or choose another --name or --storage."])
    from sweeping.tuning import sweep  # Ray starts slowly; refusals and --help need none

    return sweep(question, options, arms)


def parse(question: Question, arguments: list[str] | None = None) -> Options:
    """The options of a command line. Raises `ConfigError`; --help and unknown flags end the process as argparse does."""
    parser = _parser(question)
    given = parser.parse_args(arguments)
    for name, value in question.smoke_options.items() if given.smoke_test else ():
        setattr(given, name, value)
    settings, execution = _assigned(given)
    smoke = {**SMALL, **question.smoke} if given.smoke_test else {}
    if given.smoke_test:
        execution = replace(execution, checkpoint_every=2, workers=execution.workers or 0)
    known = {f.name for f in fields(Options)}
    steps = {"steps": given.steps} if given.steps is not None else {}
    scheduler = given.scheduler if given.scheduler is not None else ("asha" if question.space else "none")
    options = Options(
        recipe=given.recipe or question.recipe,
        storage=_storage(given),
        name=given.name or question.name,
        smoke=given.smoke_test,
        temporary=given.smoke_test and given.storage == DEFAULT_STORAGE,
        seeds=_seeds(given.seeds if not given.smoke_test else "1"),
        scheduler=scheduler,
        settings={**smoke, **settings, **steps},
        execution=execution,
        every=given.report_every,
        own=given,
        **{name: value for name, value in vars(given).items() if name in known & {"resume", "address", "num_samples", "max_concurrent",
                                                                                "time_budget", "points", "gpus"}},
    )  # fmt: skip
    _refuse(options, question)
    return options


def _parser(question: Question) -> argparse.ArgumentParser:
    formatter = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(prog=f"sweeps/{question.name}.py", description=question.asks, formatter_class=formatter)
    parser.add_argument("--recipe", help=f"recipe or .toml file that all arms start from; {question.recipe} when left out")
    parser.add_argument("--steps", type=int, help="distillation steps, with stages of each stage; the recipe's when left out")
    parser.add_argument("--seeds", default="1", help="how many seeds (3 is 0,1,2), or a list such as 0,7")
    parser.add_argument("--set", dest="set", metavar="NAME=VALUE", action="append", default=[], help="any raydd setting; may be repeated")
    parser.add_argument(
        "--storage", default=DEFAULT_STORAGE, help="folder of sweeps, which all nodes reach, or a URI such as s3://BUCKET/SWEEPS"
    )
    parser.add_argument("--name", help=f"the sweep's own folder there; {question.name} when left out")
    parser.add_argument("--resume", action="store_true", help="carry on with the sweep of that name: finished trials are not run again")
    parser.add_argument("--smoke-test", action="store_true", help="a small form of the sweep on digits, in about a minute")
    parser.add_argument("--address", default="local", help="Ray cluster to join: auto, host:port; local starts one for the sweep")
    parser.add_argument("--num-samples", type=int, help="how many settings are drawn; of given arms so many by lot, all when left out")
    parser.add_argument("--max-concurrent", type=int, help="trials at once; as many as there is room for when left out")
    parser.add_argument("--scheduler", choices=_SCHEDULERS, help="asha ends trials that fall behind; pbt perturbs (search.py only)")
    parser.add_argument("--time-budget", type=float, help="seconds after which no trial goes on; the sweep can be resumed")
    parser.add_argument("--store", help="folder of expert stores, shared by all sweeps; STORAGE/store when left out")
    parser.add_argument("--workers", type=int, help="workers of each trial; 0 runs inside the trial; min(candidates, devices) if left out")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each worker")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where workers compute")
    parser.add_argument("--gpus", type=float, help="GPUs of each worker, also a share; 1 on CUDA when left out")
    parser.add_argument("--points", type=int, default=10, help="evaluations along a run, unless --set evaluation.every=N")
    parser.add_argument("--report-every", type=int, help="steps between reports to Tune; a fiftieth of the run when left out")
    question.flags(parser)
    return parser


def _storage(given: argparse.Namespace) -> str:
    return absolute_place(given.storage)


def _assigned(given: argparse.Namespace) -> tuple[dict[str, Any], Execution]:
    """What --set, --store, --workers, --threads and --device say: settings of the run, and of its execution."""
    names = {f.name for f in fields(Execution)} - {"run", "address"}
    settings: dict[str, Any] = {}
    execution: dict[str, Any] = {}
    for assignment in given.set:
        name, equals, text = assignment.partition("=")
        if not equals or not name:
            raise ConfigError([f"--set {assignment} is no assignment; write --set NAME=VALUE, for example --set mtt.lr_img=50."])
        (execution if name in names else settings)[name] = value_of(text)
    storage = _storage(given)
    execution |= {"threads": given.threads, "device": given.device, "address": given.address}
    execution |= {"workers": given.workers} if given.workers is not None else {}
    execution["store"] = absolute_place(given.store or execution.get("store") or join(storage, "store"))
    return settings, from_dict(Execution, execution, "--set ")


def value_of(text: str) -> Any:
    """The value of a setting as written: a JSON number, true, false, null or string; any other text stands for itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _seeds(text: str) -> tuple[int, ...]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError([f"--seeds {text} must be a number of seeds, or seeds joined by commas."]) from error
    seeds = tuple(numbers) if "," in text else tuple(range(numbers[0]))
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise ConfigError([f"--seeds {text} must be at least one seed, each from 0 on and given once."])
    return seeds


def _refuse(options: Options, question: Question) -> None:
    """Raise `ConfigError` with all that is wrong with the options themselves."""
    least = {"num_samples": 1, "max_concurrent": 1, "points": 1, "every": 1}
    problems = [
        f"--{name.replace('_', '-') if name != 'every' else 'report-every'} {value} must be at least {bound}."
        for name, bound in least.items()
        if (value := getattr(options, name)) is not None and value < bound
    ]
    for name in ("time_budget", "gpus"):
        value = getattr(options, name)
        if value is not None and value <= 0:
            problems.append(f"--{name.replace('_', '-')} {value:g} must be above 0.")
    if options.scheduler == "pbt" and not question.space:
        problems.append("--scheduler pbt changes the settings of an arm, so that arms could not be compared. It is for search.py.")
    if is_uri(options.storage) and options.scheduler == "pbt":
        problems.append(f"--storage {options.storage} with --scheduler pbt: trials copy one another's folders, which all nodes must reach.")
    if "seed" in options.settings:
        problems.append("--set seed: use --seeds.")
    if "/" in options.name or options.name.startswith("."):
        problems.append(f"--name {options.name} must be the name of one folder; --storage says where it is.")
    if problems:
        raise ConfigError(problems)


def completed(options: Options, arms: list[Arm], models: tuple[str, ...] = ()) -> list[Arm]:
    """`Options.complete` of every arm. Raises `ConfigError` with every problem of every arm, before anything is started."""
    problems: dict[str, str] = {}
    complete = []
    for arm in arms:
        try:
            complete.append(options.complete(arm))
            refuse(override(options.base(complete[-1].recipe), complete[-1].settings), options.execution, models)
        except ConfigError as error:
            for problem in error.problems:
                problems.setdefault(problem, arm.name)
    if problems:
        raise ConfigError([f"{name}: {problem}" for problem, name in problems.items()])
    return complete


def shown(options: Options) -> dict[str, Any]:
    """The command line for sweep.json."""
    values = {name: value for name, value in asdict(replace(options, own=argparse.Namespace())).items() if name != "own"}
    return {**values, "execution": to_dict(options.execution), "seeds": list(options.seeds)}
