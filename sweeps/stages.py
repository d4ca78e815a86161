"""What does each further stage of progressive distillation (PDD) add, at a fixed number of images per stage?

PDD, Table 3 and Figure 3: P stages of k images per class each, beside one stage of the P x k images with as many steps in all. Networks
of later stages are shared through the store: the first stages of P = 3 are those of P = 2, bit for bit. `--without` adds PDD's ablations,
stages without transition or without conditioning.
"""

import argparse
import sys

from sweeping import Arm, Options, Question, main

ABLATIONS = {"transition": {"stages.transition": False}, "conditioning": {"stages.conditioning": False}}


def flags(parser: argparse.ArgumentParser) -> None:
    """What varies."""
    parser.add_argument("--stages", type=int, nargs="+", default=[1, 2, 3, 4, 5], help="values of P")
    parser.add_argument("--ipc", type=int, default=2, help="images per class of each stage")
    parser.add_argument("--without", nargs="*", choices=ABLATIONS, default=[], help="also without these parts of PDD")
    parser.add_argument("--one-stage", action=argparse.BooleanOptionalAction, default=True, help="also all images in one stage")


def arms(options: Options) -> list[Arm]:
    """P stages; P x k images in one stage; ablations. One stage of k images is P = 1 of all of them.

    P stages are compared with as many images in one stage, ablations with the whole of PDD.
    """
    own, found = options.own, []
    for count in own.stages:
        staged, single = {"ipc": own.ipc, "stages.count": count}, f"one stage of {count * own.ipc}"
        found.append(Arm(f"P={count}", staged, {"P": count, "form": "stages"}, against=single if own.one_stage and count > 1 else ""))
        if count == 1:
            continue
        for part in own.without:
            factors = {"P": count, "form": f"without {part}"}
            found.append(Arm(f"P={count} without {part}", {**staged, **ABLATIONS[part]}, factors, against=f"P={count}"))
        if own.one_stage:
            whole = {"ipc": count * own.ipc, "stages.count": 1, "steps": count * options.steps(options.recipe)}
            found.append(Arm(single, whole, {"P": count, "form": "one stage"}))
    return found


QUESTION = Question(
    name="stages",
    asks="What does each further stage add, at a fixed number of images per stage?",
    recipe="digits-pdd-mtt-ipc6",
    arms=arms,
    flags=flags,
    smoke={"evaluation.updates": 4, "evaluation.epochs": None},
    smoke_options={"stages": [2], "ipc": 1, "without": [], "one_stage": True},
)

if __name__ == "__main__":
    sys.exit(main(QUESTION))
