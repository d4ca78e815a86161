"""The command line: parses, builds, prints the resolved settings. Every command is one function of `raydd.launch` or its neighbours."""

import json
import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import tyro
from rich.console import Console
from rich.table import Table

from raydd.config import Config, Execution, flatten, to_dict
from raydd.errors import ConfigError, RayddError, ResourceError
from raydd.options import (
    CompareOptions,
    ContinualSettings,
    EvaluateOptions,
    ExportOptions,
    RecipesOptions,
    ReportOptions,
    SelectSettings,
    Settings,
)
from raydd.places import is_uri, join, redacted
from raydd.select_config import METHODS

USAGE = """raydd: dataset distillation in parallel on Ray

  raydd recipes [WORDS] [--method M]       the published settings that raydd ships
  raydd plan RECIPE [settings]             predicted memory and seconds per step
  raydd experts RECIPE [settings]          train the expert trajectories
  raydd distill RECIPE [settings]          distil; trains missing experts first
  raydd distill --resume RUN [settings]    carry on with an interrupted run
  raydd distill --extend RUN --stages.add N  add stages to a finished run
  raydd select METHOD RECIPE [settings]    choose real images: random, herding, k_center, forgetting, grand, el2n
  raydd continual RECIPE [settings]        learn classes phase by phase from distilled sets
  raydd evaluate RUN_OR_FILE [options]     train fresh networks on the result, beside random real images
  raydd report RUN_OR_SWEEP                write report.html and the figures
  raydd compare RUN RUN ...                a table of finished runs by the settings in which they differ
  raydd export RUN --to FORMAT OUT         png, parquet, mtt or dc

`raydd COMMAND RECIPE --help` lists every setting with the recipe's values. Errors exit with code 2.
"""


Kind = TypeVar("Kind", bound=Settings)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 2 refused or failed with a reason, 130 stopped by Ctrl-C.

    Whatever else is raised is a bug, and keeps its traceback.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0
    command, rest = arguments[0], arguments[1:]
    if command not in _COMMANDS:
        return _refuse(ConfigError([f"{command!r} is not a command; known: {', '.join(_COMMANDS)}. See raydd --help."]))
    try:
        return _COMMANDS[command](rest)
    except SystemExit as stop:  # how tyro ends after --help and after a wrong setting
        return stop.code if isinstance(stop.code, int) else 2
    except RayddError as error:
        return _refuse(error)
    except KeyboardInterrupt as stop:
        print(f"raydd: {str(stop) or 'stopped; what was finished is kept'}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, such as head, has gone; nothing may be written at exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (OSError, MemoryError, RuntimeError) as error:
        return _refuse(_of_the_machine(error))


def _refuse(error: RayddError) -> int:
    for line in str(error).splitlines():
        print(f"raydd: {redacted(line)}", file=sys.stderr)
    return 2


def _of_the_machine(error: OSError | MemoryError | RuntimeError) -> ResourceError:
    """What the machine could not do, in words; an error that is of another kind is raised again."""
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        return ResourceError(f"{place}{error.strerror or error}. What was written before is intact; mend this and run the command again.")
    first = (str(error).splitlines() or [""])[0]
    # torch reports a lack of memory as a RuntimeError with one of these texts.
    if isinstance(error, MemoryError) or "out of memory" in first or "can't allocate memory" in first:
        return ResourceError(f"Not enough memory ({first or 'no detail'}). `raydd plan` with the same settings tells what is needed.")
    raise error


def _recipes(arguments: list[str]) -> int:
    from raydd.recipes import load_recipe, recipe_names

    options = tyro.cli(RecipesOptions, prog="raydd recipes", args=arguments, use_underscores=True)
    found = [load_recipe(name) for name in recipe_names() if all(word in name for word in options.words)]
    found = [recipe for recipe in found if options.method in ("", recipe.config.method)]
    if not found:
        wanted = " ".join([*options.words, *([f"--method {options.method}"] if options.method else [])])
        raise ConfigError([f"raydd recipes {wanted}: there is no such recipe. raydd recipes lists all of them."])
    table = Table(box=None, show_header=False)
    for recipe in found:
        lines = [f"[bold]{recipe.title}[/bold]", recipe.expected]
        if options.verbose:
            lines += [f"source: {recipe.source}", f"memory: {recipe.hardware}"]
        table.add_row(recipe.name, "\n".join(lines))
    Console().print(table)
    return 0


def _settings(command: str, arguments: list[str], run: str | None = None, kind: type[Kind] = Settings) -> Kind:
    """Defaults from the recipe (or the run to resume), overridden by flags."""
    from raydd.recipes import load_recipe
    from raydd.runfolder import RunFolder

    if run is not None:
        default, prog = kind(*RunFolder.view(run).settings()), f"raydd {command} --resume {run}"
        if any(argument == "--run" or argument.startswith("--run=") for argument in arguments):
            raise ConfigError([f"--run and --resume exclude each other: --resume {run} carries on in that folder."])
    elif not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help")):
        raise ConfigError([f"raydd {command} needs a recipe first, for example: raydd {command} digits-mtt-ipc1. See raydd recipes."])
    elif arguments[0] in ("-h", "--help"):
        default, prog = kind(), f"raydd {command} RECIPE"
    else:
        default, prog = kind(load_recipe(arguments[0]).config), f"raydd {command} {arguments[0]}"
        arguments = arguments[1:]
    about = (
        "Start a run from a recipe, with any setting changed. `raydd distill --resume RUN` carries on with one; "
        "`raydd distill --extend RUN --stages.add N` adds N stages to a finished one."
    )
    about = about if command == "distill" else None
    return tyro.cli(kind, prog=prog, args=arguments, default=default, use_underscores=True, description=about)


def _plan(arguments: list[str]) -> int:
    from raydd.launch import predict
    from raydd.planning import plan_table, refuse

    settings = _settings("plan", arguments)
    plan = predict(settings.config, settings.execution)
    Console().print(plan_table(settings.config, plan))
    refuse(plan)
    return 0


def _experts(arguments: list[str]) -> int:
    from raydd.launch import train_experts
    from raydd.progress import Progress

    settings = _settings("experts", arguments)
    with Progress() as progress:
        folder = train_experts(settings.config, settings.execution, progress)
    print(f"experts: {folder}")
    return 0


def _distill(arguments: list[str]) -> int:
    from raydd.launch import distill, extend, resume
    from raydd.progress import Progress

    run, arguments = _take(arguments, "--resume", "the run folder: raydd distill --resume RUN")
    extended, arguments = _take(arguments, "--extend", "the run folder: raydd distill --extend RUN --stages.add N")
    added, arguments = _take(arguments, "--stages.add", "the number of stages to add, with --extend RUN")
    if (extended is None) != (added is None) or (run is not None and extended is not None):
        raise ConfigError(["--extend and --stages.add go together, without --resume: raydd distill --extend RUN --stages.add N."])
    settings = _settings("distill", arguments, run if extended is None else extended)
    _show(settings, run if extended is None else extended)
    with Progress() as progress:
        if extended is not None:
            result = extend(extended, _whole("--stages.add", added), settings.config, settings.execution, progress)
        elif run is None:
            result = distill(settings.config, settings.execution, progress)
        else:
            result = resume(run, settings.config, settings.execution, progress)
    if not result["complete"]:
        print(f"stopped after step {result['steps']}; carry on with: raydd distill --resume {result['run']}", file=sys.stderr)
    _print_evaluation(result["evaluation"])
    if result["images_sha256"]:  # a run that was stopped before it had images has no report either
        print(f"report: {join(result['run'], 'report.html')}")
        print(f"images sha256: {result['images_sha256']}")
    return 0 if result["complete"] else 130


def _select(arguments: list[str]) -> int:
    from raydd.progress import Progress
    from raydd.select import plain, select

    if arguments and arguments[0] in ("-h", "--help"):
        arguments = ["METHOD", "--help"]
    method, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if method not in (*METHODS, "METHOD"):
        known = ", ".join(METHODS)
        raise ConfigError([f"raydd select needs a method first, then a recipe; known methods: {known}. {method!r} is none of them."])
    settings = _settings(f"select {method}", rest, kind=SelectSettings)
    _show(Settings(plain(settings.config, method)), None)
    with Progress() as progress:
        result = select(method, settings.config, settings.execution, settings.select, progress)
    if not result["complete"]:
        print(f"stopped in the evaluation; carry on with: raydd distill --resume {result['run']}", file=sys.stderr)
    _print_evaluation(result["evaluation"], f"real images by {method}")
    print(f"chosen rows: {join(result['run'], 'selected.json')}")
    print(f"report: {join(result['run'], 'report.html')}")
    print(f"images sha256: {result['images_sha256']}")
    return 0 if result["complete"] else 130


def _continual(arguments: list[str]) -> int:
    from raydd.continual import continual_learning, show
    from raydd.progress import Progress

    settings = _settings("continual", arguments, kind=ContinualSettings)
    _show(settings, None)
    with Progress() as progress:
        result = continual_learning(settings.config, settings.execution, settings.continual, settings.select, progress)
    if settings.json:
        print(json.dumps(result))
    else:
        show(result)
    return 0


def _take(arguments: list[str], flag: str, what: str) -> tuple[str | None, list[str]]:
    """The value of a flag that is no setting, None without it, and the arguments that are left."""
    for index, argument in enumerate(arguments):
        if argument.startswith(f"{flag}="):
            return argument.removeprefix(f"{flag}="), arguments[:index] + arguments[index + 1 :]
        if argument == flag:
            if index + 1 == len(arguments) or arguments[index + 1].startswith("-"):
                raise ConfigError([f"{flag} needs {what}."])
            return arguments[index + 1], arguments[:index] + arguments[index + 2 :]
    return None, arguments


def _whole(flag: str, value: str) -> int:
    try:
        return int(value)
    except ValueError as error:
        raise ConfigError([f"{flag}={value} must be a whole number."]) from error


def _show(settings: Settings, run: str | None) -> None:
    """The resolved settings that differ from raydd's defaults, on stderr."""
    own, default = (flatten(to_dict(c)) for c in (settings.config, Config()))
    changed = {name: value for name, value in own.items() if value != default[name] and name != "recipe"}
    start = f"resuming {run}" if run else settings.config.recipe
    text = " ".join(f"{name}={value}" for name, value in changed.items())
    print(f"raydd: {start}: {text}", file=sys.stderr)


_EVALUATION = (
    "protocol", "nets", "epochs", "updates", "stages", "carry_momentum", "lr", "momentum", "weight_decay", "batch_size", "augment",
    "strategy", "cutmix", "samples",
)  # fmt: skip


def _evaluate(arguments: list[str]) -> int:
    from raydd.launch import evaluate_on
    from raydd.progress import Progress

    options = tyro.cli(EvaluateOptions, prog="raydd evaluate", args=arguments, use_underscores=True)
    given = {name: getattr(options, name) for name in _EVALUATION if getattr(options, name) is not None}
    given |= {"same_compute": True} if options.same_compute else {}
    names = list(dict.fromkeys(name.strip() for name in options.model.split(","))) if options.model else []
    execution = Execution(device=options.device, threads=options.threads)
    try:
        with Progress() as progress:
            found = evaluate_on(options.path, names, execution, options.data, options.data_root, progress, **given)
    except ConfigError as error:  # here the settings of an evaluation have no group before their name
        raise ConfigError([problem.replace("--evaluation.", "--") for problem in error.problems]) from error
    summaries = {name: comparison.summary() for name, comparison in found.items()}
    (first, *more) = summaries.values()
    if options.json:
        print(json.dumps({"models": summaries} if more else first))
    elif more:
        _print_models(summaries)
    else:
        _print_evaluation(first)
        print(f"best test accuracy during training (chosen on the test split): {first['best_accuracy_mean']:.2%}")
    return 0


def _print_models(summaries: dict[str, dict[str, Any]]) -> None:
    first = next(iter(summaries.values()))
    table = Table("network", "synthetic images", "best", "random real images", "passes", box=None, header_style="bold")
    for name, one in summaries.items():
        real = f"{one['random_accuracy_mean']:.2%} ± {one['random_accuracy_std']:.2%}"
        ours = f"{one['accuracy_mean']:.2%} ± {one['accuracy_std']:.2%}"
        table.add_row(name, ours, f"{one['best_accuracy_mean']:.2%}", real, str(one["epochs"]))
    Console().print(table)
    print(f"test accuracy, mean and std over {first['nets']} networks from scratch, protocol {first['settings']['protocol']}")
    print(f"at rate {first['lr']:.4g}; best: highest during training, chosen on the test split")


def _print_evaluation(summary: dict[str, Any] | None, what: str = "synthetic images") -> None:
    if summary is None:
        return
    table = Table("trained on", "test accuracy", f"std over {summary['nets']} nets", box=None, header_style="bold")
    for name, prefix in ((what, ""), ("random real images, same number", "random_")):
        table.add_row(name, f"{summary[prefix + 'accuracy_mean']:.2%}", f"{summary[prefix + 'accuracy_std']:.2%}")
    Console().print(table)
    if "by_stage" in summary:
        _print_stages(summary, what)
    how = f"{summary['epochs']} passes at rate {summary['lr']:.4g}"
    how = f"{summary['epochs']} passes, {summary['stages']}" if "by_stage" in summary else how
    print(f"both: {how}, networks ({summary['model']}) from scratch, protocol {summary['settings']['protocol']}")


def _print_stages(summary: dict[str, Any], what: str) -> None:
    """What the networks came to after each stage that they were trained on."""
    table = Table("up to stage", "images per class", "rate", what, "random real images", box=None, header_style="bold")
    for ours, random in zip(summary["by_stage"], summary["random_by_stage"], strict=True):
        accuracies = [f"{row['accuracy_mean']:.2%} ± {row['accuracy_std']:.2%}" for row in (ours, random)]
        table.add_row(str(ours["stage"]), str(ours["ipc"]), f"{ours['lr']:.4g}", *accuracies)
    Console().print(table)


def _report(arguments: list[str]) -> int:
    from raydd.report import write_report
    from raydd.report.sweepdata import is_sweep

    run = tyro.cli(ReportOptions, prog="raydd report", args=arguments).run
    if not is_uri(run) and is_sweep(run):
        from raydd.report.sweep import write_sweep_report

        print(write_sweep_report(run))
        return 0
    print(write_report(run))
    if is_uri(run):
        print(join(run, "report.html"))
    return 0


def _compare(arguments: list[str]) -> int:
    from raydd.report import comparison

    options = tyro.cli(CompareOptions, prog="raydd compare", args=arguments, use_underscores=True)
    arms = comparison.write_comparison(options.runs, options.out)
    if options.json:
        print(json.dumps(comparison.plain(arms)))
        return 0
    columns, rows = comparison.rows(arms)
    # A terminal is narrow: what came before the last stage is on the page.
    shown = [columns.index(name) for name in ("seeds", "ipc in all", "accuracy, %", "random real, %", "above the first row")]
    table = Table("", *(columns[place] for place in shown), box=None)
    for arm, row in zip(arms, rows, strict=True):
        table.add_row(comparison.label(arm), *(row[place].replace(" ± ", "±") for place in shown))
    Console().print(table)
    print(options.out)
    return 0


def _export(arguments: list[str]) -> int:
    from raydd.export import export

    options = tyro.cli(ExportOptions, prog="raydd export", args=arguments)
    print(export(options.run, options.to, options.out))
    return 0


_COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "recipes": _recipes,
    "plan": _plan,
    "experts": _experts,
    "distill": _distill,
    "select": _select,
    "continual": _continual,
    "evaluate": _evaluate,
    "report": _report,
    "compare": _compare,
    "export": _export,
}

if __name__ == "__main__":
    sys.exit(main())
