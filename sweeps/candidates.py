"""How many candidates (M) are worth their scores: accuracy against steps, against compute and against wall-clock time?

More candidates cost M scores in every step, on M workers at once or one after another. The table has both: seconds of all workers until
the base method's best accuracy is reached, and the matching losses computed until then.
"""

import argparse
import sys

from sweeping import Arm, Options, Question, grid, main


def flags(parser: argparse.ArgumentParser) -> None:
    """What varies."""
    parser.add_argument("--candidates", type=int, nargs="+", default=[1, 3, 5, 8], help="values of M; 1 is the base method")
    parser.add_argument("--policies", nargs="+", default=["dynadistill"], help="dynadistill, greedy, annealed or uniform")
    parser.add_argument("--temperature", type=float, default=0.5, help="selection.temperature")


def arms(options: Options) -> list[Arm]:
    """Every M under every policy; one candidate needs no policy."""
    own = options.own
    base = [Arm("M=1", {"selection.candidates": 1}, {"M": 1}, baseline=True)] if 1 in own.candidates else []
    several = [count for count in own.candidates if count != 1]
    factors = {"M": ("selection.candidates", several)}
    if len(own.policies) > 1:
        factors["policy"] = ("selection.policy", own.policies)
    common = {"selection.policy": own.policies[0], "selection.temperature": own.temperature}
    return [*base, *(Arm(arm.name, {**common, **arm.settings}, arm.factors) for arm in grid(factors))]


QUESTION = Question(
    name="candidates",
    asks="How many candidates are worth their scores, in steps, in compute and in time?",
    recipe="digits-mtt-ipc1",
    arms=arms,
    flags=flags,
    smoke_options={"candidates": [1, 2], "policies": ["dynadistill"], "workers": 1},
)

if __name__ == "__main__":
    sys.exit(main(QUESTION))
