"""Into how many stages should a fixed number of images be divided?

PDD, Table 5: P stages of k images per class with P x k fixed. All arms take as many steps in all: --steps, or the recipe's, divided
among their stages.
"""

import argparse
import sys

from raydd.errors import ConfigError
from sweeping import Arm, Options, Question, main


def flags(parser: argparse.ArgumentParser) -> None:
    """What varies."""
    parser.add_argument("--total", type=int, default=6, help="images per class of all stages")
    parser.add_argument("--stages", type=int, nargs="*", help="values of P, which divide the total; all of them when left out")


def arms(options: Options) -> list[Arm]:
    """Every P that divides the total; one stage is the baseline."""
    own = options.own
    counts = own.stages or [count for count in range(1, own.total + 1) if own.total % count == 0]
    wrong = [count for count in counts if count < 1 or own.total % count]
    if wrong:
        raise ConfigError([f"--stages {count} does not divide --total {own.total}." for count in wrong])
    steps, found = options.steps(options.recipe), []
    for count in counts:
        settings = {"stages.count": count, "ipc": own.total // count, "steps": max(1, steps // count)}
        found.append(Arm(f"{count} x {own.total // count}", settings, {"P": count, "k": own.total // count}, baseline=count == 1))
    return found


QUESTION = Question(
    name="stage_ipc",
    asks="Into how many stages should a fixed number of images be divided?",
    recipe="digits-pdd-mtt-ipc6",
    arms=arms,
    flags=flags,
    smoke={"evaluation.updates": 4, "evaluation.epochs": None},
    smoke_options={"total": 2, "stages": [1, 2]},
)

if __name__ == "__main__":
    sys.exit(main(QUESTION))
