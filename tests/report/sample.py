"""Run folders with made-up measurements, for the tests of reports and exports."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from raydd import artifact
from raydd.artifact import Artifact
from raydd.config import Config, DataConfig, Execution, ExpertConfig, MTTConfig, SelectionConfig, StagesConfig, override, to_dict
from raydd.data.transform import Transform
from raydd.runfolder import RunFolder, images_sha256
from raydd.types import SyntheticSet

CLASSES = ("cat", "<b>dog</b>", "猫 & co")


def result(classes: tuple[str, ...] = CLASSES, ipc: int = 2, shape: tuple[int, int, int] = (3, 8, 8), step: int = 60) -> Artifact:
    """A result whose pixel values partly lie outside 0..1."""
    generator = torch.Generator().manual_seed(0)
    count = len(classes) * ipc
    images = torch.randn(count, *shape, generator=generator)
    initial = torch.randn(count, *shape, generator=generator)
    labels = torch.arange(len(classes)).repeat_interleave(ipc)
    synthetic = SyntheticSet(images, labels, torch.tensor(0.0123), torch.ones(count, dtype=torch.int64))
    transform = Transform.standard(shape, (0.4, 0.5, 0.6)[: shape[0]], (0.2, 0.25, 0.3)[: shape[0]])
    return Artifact(synthetic, initial, transform.state(), transform.rule, classes, "digits", "f" * 64, to_dict(Config(ipc=ipc)), step)


def record(step: int, candidates: int = 3, skipped: bool = False) -> dict:
    """One line of metrics.jsonl: expert `step % 5` wins at start epoch 1 with loss 1 / (step + 1)."""
    entries = [
        {"expert": (step + i) % 5, "epoch": 1 + i, "score": 1 / (step + 1) + i if candidates > 1 else None, "probability": 1 / candidates}
        for i in range(candidates)
    ]
    return {
        "step": step, "attempt": 3 if skipped else 0, "skipped": skipped, "step_size": 0.01 + step / 1000,
        "loss": None if skipped else 1 / (step + 1), "grad_norm": None if skipped else 0.1, "chosen": None if skipped else 0,
        "candidates": entries, "entropy": 0.9 if candidates > 1 else None,
        "seconds": {"score": 0.2, "update": 0.5, "transfer": 0.1, "total": 1.0},
    }  # fmt: skip


def evaluation(step: int, mean: float, std: float = 0.01, kind: str = "synthetic", nets: int = 2) -> dict:
    """One line of evaluations.jsonl."""
    return {
        "step": step, "accuracy_mean": mean, "accuracy_std": std, "best_mean": mean, "accuracies": [mean - std, mean + std][:nets],
        "nets": nets, "epochs": 10, "lr": 0.01, "seconds": 4.0, "kind": kind,
    }  # fmt: skip


def settings(candidates: int = 3) -> Config:
    """Settings that fit `record`."""
    return Config(
        recipe="mtt/<i>small</i>",
        ipc=2,
        steps=60,
        data=DataConfig(source="digits"),
        experts=ExpertConfig(count=5),
        mtt=MTTConfig(max_start_epoch=4),
        selection=SelectionConfig(policy="dynadistill" if candidates > 1 else "uniform", candidates=candidates),
    )


def finished(path: Path, candidates: int = 3, found: Artifact | None = None) -> Path:
    """A complete run of 60 steps, step 30 skipped, with evaluations, faults and one resumption."""
    found = found or result()
    with RunFolder.create(path, settings(candidates), Execution(workers=2)) as run:
        for step in range(60):
            run.append(record(step, candidates, skipped=step == 30))
        for step, mean in ((20, 0.5), (20, 0.41), (40, 0.66), (60, 0.6)):
            run.append_evaluation(evaluation(step, mean))
        run.append_evaluation(evaluation(60, 0.35, 0.02, kind="random"))
        run.append_fault(12, "worker", "worker 1 died <script>alert(1)</script>")
        run.note_resumption(20, Execution(workers=0))
        artifact.write(run.synthetic, found)
        run.write_result({"images_sha256": images_sha256(found.synthetic.images), "steps": 60, "seconds": 3725.0, "evaluation": None})
    return path


def staged(path: Path, stages: int = 3, mode: str = "progressive", better: float = 0.0, **settings_: Any) -> Path:
    """A complete run of so many stages of 20 steps and 2 images per class each; its accuracies are higher by `better`."""
    one = result(step=20 * stages)
    count = len(one.synthetic.labels)
    labels = torch.arange(len(CLASSES)).repeat_interleave(2 * stages)
    numbers = torch.arange(1, stages + 1).repeat_interleave(2).repeat(len(CLASSES))
    generator = torch.Generator().manual_seed(1)
    images, initial = (torch.randn(count * stages, 3, 8, 8, generator=generator) for _ in range(2))
    synthetic = SyntheticSet(images, labels, torch.tensor(0.01 * stages), numbers)
    sizes = tuple(0.01 * stage for stage in range(1, stages))
    config = replace(settings(1), steps=20, stages=StagesConfig(count=stages))
    config = override(config, {name.replace("__", "."): value for name, value in settings_.items()})
    rows = [{"stage": s, "ipc": 2 * s, "lr": 0.01 * s, "accuracy_mean": 0.3 + 0.1 * s, "accuracy_std": 0.01} for s in range(1, stages + 1)]
    with RunFolder.create(path, config, Execution(workers=0, store=str(path / "store"))) as run:
        for step in range(20 * stages):
            run.append(record(step, 1))
        for kind, shift in (("synthetic", better), ("random", -0.2)):
            own = [{**row, "accuracy_mean": row["accuracy_mean"] + shift} for row in rows]
            run.append_evaluation({**evaluation(20 * stages, own[-1]["accuracy_mean"], kind=kind), "stages": mode, "by_stage": own})
        artifact.write(run.synthetic, replace(one, synthetic=synthetic, initial_images=initial, step_sizes=sizes, config=to_dict(config)))
        run.write_result({"images_sha256": images_sha256(images), "steps": 20 * stages, "seconds": 60.0, "evaluation": None})
    return path
