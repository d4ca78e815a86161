"""Staged sets: which images networks are trained on in turn, and for how many epochs each.

Sources: PDD section 5.4 and appendix A1.1; specs/mtt_pdd.md section 3.2, specs/idc_dream_pdd.md section 4.2.
"""

from collections.abc import Sequence

from torch import Tensor


def stage_sequence(mode: str, stages: Tensor) -> list[tuple[int, Tensor]]:
    """The sets that a staged set gives, in the order of training: (last stage in it, which images are in it, bool (N,)).

    `stages` int64 (N,) is the stage of each image, from 1. progressive: U_1, U_2, .., U_P, the images of all stages so far.
    union: U_P alone. sequential: S_1, S_2, .., S_P, the images of each stage alone. A set of one stage gives one set.
    """
    last = int(stages.max())
    if mode == "union":
        return [(last, stages <= last)]
    return [(stage, stages == stage if mode == "sequential" else stages <= stage) for stage in range(1, last + 1)]


def stage_counts(mode: str, count: int, stages: int) -> list[int]:
    """Images in each set of `stage_sequence` when every one of the stages has `count`."""
    if mode == "union":
        return [count * stages]
    return [count if mode == "sequential" else count * stage for stage in range(1, stages + 1)]


def stage_epochs(mode: str, epochs: int, sets: int) -> int:
    """Epochs on each of the sets for which networks see as many images as in `epochs` epochs on all of them together.

    progressive: 2 epochs / (P + 1), because sum_i i = P (P + 1) / 2 (PDD, appendix A1.1). Others see every image once an epoch.
    """
    return max(min(1, epochs), round(2 * epochs / (sets + 1))) if mode == "progressive" else epochs


def batches(count: int, batch_size: int) -> int:
    """Optimiser updates of one pass over `count` images; the last, smaller batch is one too."""
    return -(-count // batch_size)


def passes_for(updates: int, counts: Sequence[int], batch_size: int) -> int:
    """Passes over each of the sets of `counts` images that make at least `updates` optimiser updates in all: the fewest."""
    return -(-updates // sum(batches(count, batch_size) for count in counts))
