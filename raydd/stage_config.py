"""The settings of progressive distillation (PDD), and what is wrong with them.

Sources: specs/mtt_pdd.md section 3.5, specs/dc_dsa_dm_cafe_selection_cl.md section 11.
"""

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class StagesConfig:
    """Progressive distillation (PDD): each stage distils its own images beside the finished, frozen ones of the stages before."""

    count: int = 1
    """P, stages; 1 is the base method. `ipc` and `steps` are those of each stage."""
    transition: bool = True
    """Later stages start from networks trained on the images so far. False: from fresh networks, mtt from later epochs of its experts."""
    conditioning: bool = True
    """The images of earlier stages take part in the matching. False: each stage is matched alone."""
    transition_epochs: int | None = None
    """Epochs of a start network on the images so far, at each stage. Default: mtt 1000; idc, dream, dreamplus 200; others 500."""
    networks: int = 20
    """Not mtt: start networks in the pool from which later stages draw theirs."""
    real_lr: float = 0.01
    """mtt: learning rate of later stages' experts on real data."""
    frozen_lr_scale: float = 0.0
    """Rate of earlier stages' images as a share of the stage's own; 0 freezes them. Above 0 they move; the paper found that worse."""
    scale_lr: bool = False
    """Multiply the image rate by the stage's number: the mean over i times as many images shrinks each one's gradient to 1/i."""
    batch_mode: Literal["union_chunks", "new_first"] = "union_chunks"
    """mtt: inner batches are chunks of all images so far, or always hold the stage's own and fill up with earlier ones."""


STAGE_AT_LEAST = {"stages.count": 1, "stages.transition_epochs": 1, "stages.networks": 1, "stages.frozen_lr_scale": 0}
STAGE_ABOVE = {"stages.real_lr": 0}


def stage_problems(config: Any) -> list[str]:
    """One sentence for every setting of `stages` that does not go with the others."""
    stages, found = config.stages, []
    if stages.count > 1 and not config.steps:
        found.append("--steps=0 with --stages.count above 1: a stage needs steps. Give --steps, or one stage.")
    if stages.frozen_lr_scale and not stages.conditioning:
        found.append(
            f"--stages.frozen_lr_scale={stages.frozen_lr_scale:g} moves the images of earlier stages, which --no-stages.conditioning "
            "leaves out. Use one of the two."
        )
    if stages.frozen_lr_scale and stages.batch_mode == "new_first":
        found.append("--stages.batch_mode=new_first puts earlier images behind the stage's own, but --stages.frozen_lr_scale moves both.")
    if config.method != "mtt" and stages.batch_mode != "union_chunks":
        found.append(f"--stages.batch_mode={stages.batch_mode} does not go with --method {config.method}; it is for mtt.")
    return found
