"""Which temperature, sign and normalisation choose candidates best?

The DynaDistill paper's text and figure want low losses likelier (sign -1), its printed formula high ones (+1); neither says how large
losses are, so the temperature is asked beside a normalisation. The base method, one candidate by lot, is the baseline.
"""

import argparse
import sys

from sweeping import Arm, Options, Question, grid, main


def flags(parser: argparse.ArgumentParser) -> None:
    """What varies."""
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.05, 0.5, 5.0], help="values of selection.temperature")
    parser.add_argument("--signs", type=float, nargs="+", default=[-1.0, 1.0], help="-1: low loss likelier, +1: high loss likelier")
    parser.add_argument("--normalise", nargs="+", default=["none", "zscore"], help="none, mean, zscore or relative")
    parser.add_argument("--candidates", type=int, default=3, help="M, candidates in every step")
    parser.add_argument("--control", action=argparse.BooleanOptionalAction, default=True, help="also M candidates, chosen by lot")


def arms(options: Options) -> list[Arm]:
    """Every combination under DynaDistill, the base method, and as a control M candidates of which one is chosen by lot."""
    own = options.own
    factors = {
        "temperature": ("selection.temperature", own.temperatures),
        "sign": ("selection.sign", own.signs),
        "normalise": ("selection.normalise", own.normalise),
    }
    common = {"selection.policy": "dynadistill", "selection.candidates": own.candidates}
    scored = [Arm(arm.name, {**common, **arm.settings}, arm.factors) for arm in grid(factors)]
    base = Arm("base method", {"selection.policy": "uniform", "selection.candidates": 1}, baseline=True)
    control = [Arm(f"{own.candidates} by lot", {"selection.policy": "uniform", "selection.candidates": own.candidates})]
    return [base, *(control if own.control else []), *scored]


QUESTION = Question(
    name="temperature",
    asks="Which temperature, sign and normalisation choose candidates best?",
    recipe="digits-mtt-ipc1",
    arms=arms,
    flags=flags,
    smoke_options={"temperatures": [0.5], "signs": [-1.0, 1.0], "normalise": ["none"], "candidates": 2, "control": False},
)

if __name__ == "__main__":
    sys.exit(main(QUESTION))
