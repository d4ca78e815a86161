"""Which settings of a recipe are best? A free search over any of them.

    python sweeps/search.py --recipe digits-mtt-ipc1 --space "mtt.lr_img=loguniform(1,100)" --space "selection.candidates=choice(1,3,5)"

Settings are drawn by lot or by Optuna (--searcher). ASHA, the default, ends what falls behind at 20, 40 and 80 percent of a run. With
--scheduler pbt a population is trained: trials that fall behind take up the checkpoint of a better one and perturb its settings. Such a
run is a fork (`fork.json` in its folder), and its settings alone would not give its images.
"""

import argparse
import sys

from raydd.errors import ConfigError
from sweeping import Arm, Options, Question, main
from sweeping.question import SEARCH

DEFAULT = ["selection.temperature=loguniform(0.02,5)", "selection.candidates=choice(1,3)", "mtt.lr_img=loguniform(3,100)"]


def flags(parser: argparse.ArgumentParser) -> None:
    """What is searched, and by whom."""
    parser.add_argument("--space", metavar="SETTING=SPACE", action="append", help=f"may be repeated; left out: {' '.join(DEFAULT)}")
    parser.add_argument("--searcher", choices=("random", "optuna"), default="random", help="who draws settings")


def arms(options: Options) -> list[Arm]:
    """What every trial starts from. Notes the spaces, each as (setting, text)."""
    from sweeping.spaces import domain

    options.own.spaces = [(name, text) for name, _, text in (entry.partition("=") for entry in options.own.space or DEFAULT)]
    for name, text in options.own.spaces:
        domain(name, text)
    if len(options.seeds) > 1:
        raise ConfigError([f"--seeds: a search has one seed, not {len(options.seeds)}. Run the best settings, best.toml, with several."])
    return [Arm(SEARCH, {"selection.policy": "dynadistill"})]


QUESTION = Question(
    name="search",
    asks="Which settings are best?",
    recipe="digits-mtt-ipc1",
    arms=arms,
    flags=flags,
    smoke_options={"num_samples": 2, "space": ["mtt.lr_img=loguniform(3,100)"]},
    space=True,
)

if __name__ == "__main__":
    sys.exit(main(QUESTION))
