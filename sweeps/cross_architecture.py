"""Do the images serve networks other than the one they were distilled with?

Table 2 of both papers: every form of a method is distilled once for each seed, and its result trains each of --models from scratch,
beside random real images. PDD tests MTT's images on networks with instance norm and IDC's with batch norm (`raydd evaluate --model`).
"""

import argparse
import sys

from sweeping import Arm, Options, Question, main

FORMS = {
    "base": {"selection.candidates": 1},
    "uniform": {"selection.policy": "uniform", "selection.candidates": 3},
    "dynadistill": {"selection.policy": "dynadistill", "selection.candidates": 3},
}


def flags(parser: argparse.ArgumentParser) -> None:
    """What varies."""
    parser.add_argument("--models", nargs="+", default=["alexnet", "vgg11-bn", "resnet18-bn"], help="networks beside the run's own")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=["base", "dynadistill"], help="how candidates are chosen")


def arms(options: Options) -> list[Arm]:
    """The forms."""
    return [Arm(form, FORMS[form], {"form": form}, baseline=form == "base") for form in options.own.forms]


QUESTION = Question(
    name="cross_architecture",
    asks="Do the images serve networks other than the one they were distilled with?",
    recipe="digits-mtt-ipc10",
    arms=arms,
    flags=flags,
    smoke={"ipc": 1},
    smoke_options={"models": ["mlp"], "forms": ["base"]},
    models=lambda options: tuple(options.own.models),
)

if __name__ == "__main__":
    sys.exit(main(QUESTION))
