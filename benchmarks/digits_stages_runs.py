"""The runs of `digits_stages.py`: what each changes in the recipe, and what is evaluated of it."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

MODES = ("progressive", "union", "sequential")
BASES = {"mtt": "MTT", "idc": "IDC"}
VARIANTS: dict[str, dict[str, Any]] = {
    "pdd": {},
    "no_transition": {"stages.transition": False},
    "no_conditioning": {"stages.conditioning": False},
    "short": {},
    "full": {},
    "scaled": {"stages.scale_lr": True},
    "moved": {"stages.scale_lr": True, "idc.lr_img": 0.03},
    "curriculum": {"curriculum.scores": "forgetting", "curriculum.quantiles": True},
    "bins": {"curriculum.scores": "forgetting"},
}
# MTT over the first two epochs of its experts alone: what comes later has to come from later stages.
NARROW: dict[str, dict[str, Any]] = {
    "narrow": {},
    "narrow_no_transition": {"stages.transition": False},
    "narrow_no_conditioning": {"stages.conditioning": False},
}
VARIANTS |= {name: {"mtt.max_start_epoch": 1, **settings} for name, settings in NARROW.items()}
SPLITS = {
    (1, "pdd"): "",
    (1, "short"): ", a third of the steps",
    (2, "pdd"): "",
    (3, "pdd"): "",
    (3, "scaled"): ", rate times stage",
    (3, "moved"): ", rate times stage, thrice",
    (6, "pdd"): "",
    (6, "full"): ", twice the steps",
}
REAL_IMAGES = {
    "pdd": "all images at every stage",
    "curriculum": "easy to hard, a third each",
    "bins": "easy to hard, forgotten less than 3, 6, 9 times",
}
REASONS = ("short", "full", "scaled", "moved")
# As far as its own images move in one stage of all steps. The mean over n images divides each one's gradient by n, and IDC multiplies its
# rate by ipc / 10 besides, so a later stage moves its images less, and less again in fewer steps.
MOVED = {"idc": "moved", "mtt": "scaled"}


@dataclass(frozen=True)
class Order:
    """One run: `stages` of `ipc` images per class each."""

    base: str
    stages: int
    ipc: int
    variant: str
    seed: int

    @property
    def name(self) -> str:
        """Its folder below --work."""
        return f"{self.base}-{self.stages}x{self.ipc}-{self.variant}-{self.seed}"


def orders(tables: Collection[str], base: str, seed: int, reasons: bool) -> list[Order]:
    """The runs of a seed: those that several tables share first."""
    kinds = [(3, "pdd")]
    kinds += [(3, variant) for variant in ("no_transition", "no_conditioning") if "ablation" in tables]
    kinds += [(3, variant) for variant in parts(base) if variant != "pdd" and "curriculum" in tables]
    kinds += [*product((3,), NARROW), (1, "narrow")] if "narrow" in tables and base == "mtt" else []
    kinds += [kind for kind in splits(base) if "split" in tables and kind not in kinds]
    return [Order(base, stages, 6 // stages, variant, seed) for stages, variant in kinds if (variant in REASONS) == reasons]


def parts(base: str) -> dict[str, str]:
    """Variants of Table 6 in words. IDC takes 32 real images of a class, of which the first bin has too few."""
    return {variant: words for variant, words in REAL_IMAGES.items() if (base, variant) != ("idc", "bins")}


def splits(base: str) -> list[tuple[int, str]]:
    """Stages and variants of Table 5; what moves as far with one base does not with the other."""
    return [kind for kind in SPLITS if kind[1] != "moved" or MOVED[base] == "moved"]


def wanted(order: Order) -> Iterator[dict[str, Any]]:
    """The evaluations of a run: after which stage, how, and of what."""
    last = order.stages
    if order.variant == "pdd" and last == 3:
        yield {"stage": 1, "mode": "progressive"}
        yield from ({"stage": stage, "mode": mode} for stage, mode in product((2, 3), MODES))
        yield {"stage": last, "mode": "progressive", "kind": "random"}
        return
    for stage in (2, 3) if order.variant in ("no_transition", "no_conditioning") else (last,):
        yield {"stage": stage, "mode": "progressive"}
