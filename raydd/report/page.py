"""`write_report`: read the run folder, draw, fill the template, write `report.html` and `figures/`."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from raydd import pictures
from raydd.files import atomic_write_bytes, write_bytes
from raydd.methods import method
from raydd.methods.base import slot_count
from raydd.progressive import first_step
from raydd.report import figures, stages, tables
from raydd.report.gallery import by_class, gallery
from raydd.report.rendering import Draw, Picture, render
from raydd.report.rundata import RunData, Steps, read_run
from raydd.report.theme import Theme
from raydd.runfolder import RunFolder

_ALT = {
    "accuracy": "Test accuracy over steps, against random real images",
    "loss": "Matching loss and learned step size over steps",
    "choices": "How often experts and start epochs were candidates and were chosen",
    "choice_map": "Choices by expert and start epoch",
    "scores": "Scores of the candidates and entropy of the choice over steps",
    "seconds": "Where the time of the run went",
    "stages": "Test accuracy after each stage, over the images per class so far",
}


def write_report(run_path: Path | str) -> Path:
    """Write `report.html` and `figures/*.png` into a run folder, finished or not, and return the path of the page.

    Of a run at a URI the page is put there too.

    Raises `ConfigError` when it is no run folder, `CheckpointError` when its records are damaged, `ResourceError` when the page
    cannot be written.
    """
    run = read_run(run_path)
    folder = RunFolder(run_path)
    drawn = {}
    for name, draw in drawings(run).items():
        drawn[name] = Picture.of(draw, _ALT[name])
        write_bytes(folder.figures / f"{name}.png", drawn[name].light_png)
    if run.artifact is not None:
        scale = max(1, round(96 / run.artifact.synthetic.images.shape[-1]))
        for name, images in (("images_start", run.artifact.initial_images), ("images_end", run.artifact.synthetic.images)):
            write_bytes(folder.figures / f"{name}.png", pictures.png(pictures.grid(by_class(run.artifact, images), scale, gap=4)))
        if len(run.artifact.stage_step_sizes) > 1:
            write_bytes(folder.figures / "images_stages.png", stages.picture(run.artifact, scale))
    atomic_write_bytes(folder.report, _page(run, drawn).encode())
    folder.show(folder.report.name)
    return folder.report


def drawings(run: RunData) -> dict[str, Draw]:
    """How to draw, in a theme, each figure that this run has data for."""
    steps = run.steps
    found: dict[str, Draw] = {}
    if run.evaluations:
        found["accuracy"] = lambda theme: _accuracy(run, theme)
    if np.isfinite(steps.loss).any():
        found["loss"] = lambda theme: figures.loss(steps.step, steps.loss, steps.step_size, theme, _borders(run))
    if run.evaluations and (accuracies := stages.points(run.evaluations[-1])) is not None:
        full = (run.full.mean, stages.experts_label(run.full)) if run.full else None
        found["stages"] = lambda theme: figures.stages(accuracies, stages.points(run.random), full, theme)
    if (steps.chosen >= 0).any():
        pairs, sizes = _pairs(steps), _sizes(run)
        found["choices"] = lambda theme: figures.choices(*pairs, *sizes, compared(steps), theme)
        if figures.map_columns(len(pairs[0]), *sizes) > 1:
            found["choice_map"] = lambda theme: figures.choice_map(*pairs, *sizes, compared(steps), theme)
    if compared(steps) and np.isfinite(steps.score).any():
        won = np.where(steps.chosen >= 0, steps.score[np.arange(len(steps)), steps.chosen], np.nan)
        found["scores"] = lambda theme: figures.scores(steps.step, steps.score, won, steps.entropy, theme)
    names, totals, _ = tables.time_rows(run)
    if totals.sum() > 0:
        found["seconds"] = lambda theme: figures.seconds(names, totals, theme)
    return found


def compared(steps: Steps) -> bool:
    """Whether any step had more than one candidate."""
    return steps.expert.shape[1] > 1


def _accuracy(run: RunData, theme: Theme) -> Figure:
    step, mean, std = (np.array([record[name] for record in run.evaluations]) for name in ("step", "accuracy_mean", "accuracy_std"))
    networks = [np.array(record.get("accuracies", []), dtype=float) for record in run.evaluations]
    random = (run.random["accuracy_mean"], run.random["accuracy_std"]) if run.random else None
    return figures.accuracy(step, mean, std, networks, random, theme, _borders(run))


def _borders(run: RunData) -> list[int]:
    """The first steps of the stages after the first."""
    return [first_step(run.config, stage) for stage in range(2, run.config.stages.count + 1)]


def _pairs(steps: Steps) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Expert, start epoch and whether it won, one entry for each candidate of each step."""
    real = steps.expert >= 0
    won = np.arange(steps.expert.shape[1])[None] == steps.chosen[:, None]
    return steps.expert[real], steps.epoch[real], won[real]


def _sizes(run: RunData) -> tuple[int, int]:
    """How many experts and start epochs (or network slots and ages) the candidates were drawn from."""
    config, steps, entry = run.config, run.steps, method(run.config.method)
    if entry.networks is None:
        experts, epochs = config.selection.pool or config.experts.count, entry.start_epochs(config)
    else:
        experts, epochs = slot_count(config, entry.networks), 1
    return max(experts, int(steps.expert.max()) + 1), max(epochs, int(steps.epoch.max()) + 1)


def _page(run: RunData, drawn: dict[str, Picture]) -> str:
    counts, log = tables.faults(run)
    return render(
        "report.html",
        run=run,
        name=run.path.resolve().name,
        status=tables.status(run),
        cards=tables.headline(run),
        caution=tables.caution(run),
        gallery=gallery(run.artifact) if run.artifact is not None else None,
        pictures=drawn,
        stage_rows=stages.table(run) if run.config.stages.count > 1 else [],
        stage_settings=stages.settings(run),
        stages_caption=stages.caption(run),
        stage_blocks=stages.blocks(run.artifact) if run.artifact is not None and run.config.stages.count > 1 else [],
        compared=compared(run.steps),
        time_rows=tables.time_rows(run)[2] if "seconds" in drawn else [],
        settings=tables.settings(run),
        environment=tables.environment(run),
        fault_counts=counts,
        fault_log=log,
    )
