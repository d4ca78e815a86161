"""What do DynaDistill and stages (PDD) add to each base method?

Table 1 of both papers: every method as it is, with scored candidates, in stages, and with both. A method starts from the recipe
DATA-METHOD-ipcN; in stages it distils N / P images per class at a time, with as many steps in all. Accuracies are those of each
method's own protocol, so compare within a method.
"""

import argparse
import sys

from raydd.errors import ConfigError
from sweeping import Arm, Options, Question, main

METHODS = ("mtt", "dc", "dsa", "idc", "dream", "dreamplus", "dm", "cafe")
FORMS = ("base", "dynadistill", "pdd", "both")


def flags(parser: argparse.ArgumentParser) -> None:
    """What varies."""
    parser.add_argument("--data", default="digits", help="the recipes' data set: digits, cifar10, ...; --set data.source=... says where")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="base methods")
    parser.add_argument("--ipc", type=int, nargs="+", default=[10], help="images per class, one recipe for each")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS), help="what is added to a method")
    parser.add_argument("--candidates", type=int, default=3, help="M of DynaDistill")
    parser.add_argument("--stages", type=int, default=5, help="P of PDD, which divides every --ipc")


def arms(options: Options) -> list[Arm]:
    """Every method in every form; one image per class cannot be divided, and is left out in stages."""
    own, found = options.own, []
    for ipc in own.ipc:
        if ipc > 1 and ipc % own.stages and {"pdd", "both"} & set(own.forms):
            raise ConfigError([f"--stages {own.stages} does not divide --ipc {ipc}."])
        for method in own.methods:
            recipe = f"{own.data}-{method}-ipc{ipc}"
            for form in own.forms:
                if form in ("pdd", "both") and ipc == 1:
                    continue
                factors = {"method": method, "form": form, **({"ipc": ipc} if len(own.ipc) > 1 else {})}
                settings = _settings(options, recipe, ipc, form)
                base = f"{method} base ipc={ipc}" if form != "base" and "base" in own.forms else ""
                found.append(Arm(f"{method} {form} ipc={ipc}", settings, factors, recipe, against=base))
    return found


def _settings(options: Options, recipe: str, ipc: int, form: str) -> dict[str, object]:
    own, settings = options.own, {}
    if form in ("dynadistill", "both"):
        settings |= {"selection.policy": "dynadistill", "selection.candidates": own.candidates}
    if form in ("pdd", "both"):
        steps = max(1, options.steps(recipe) // own.stages)
        settings |= {"stages.count": own.stages, "ipc": ipc // own.stages, "steps": steps}
    return settings


QUESTION = Question(
    name="table1",
    asks="What do DynaDistill and stages (PDD) add to each base method?",
    recipe="digits-mtt-ipc10",
    arms=arms,
    flags=flags,
    smoke={"dm.batch_real": 8},
    smoke_options={"methods": ["dm"], "ipc": [10], "forms": ["base", "both"], "candidates": 2, "stages": 2},
)

if __name__ == "__main__":
    sys.exit(main(QUESTION))
