"""The prediction for the beginnings of later stages (PDD): how many networks train on what, and for how long.

Seconds are measured on two training steps, of few and of more images, with a straight line through them.
"""

import math
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from raydd.config import Config, Execution, needed_epochs
from raydd.decode import count
from raydd.devices import resolve
from raydd.evaluate.scratch import training_recipe as link_recipe
from raydd.experts.starts import link_settings
from raydd.experts.train import training_recipe as expert_recipe
from raydd.methods import method
from raydd.models import FlatModel
from raydd.plan import Transition, duration, gigabytes, worker_count
from raydd.rng import stream
from raydd.training import Networks, Recipe, Streams, TensorBatches, train_epoch

PROBE_IMAGES = 32
PassSeconds = Callable[[int], float]
"""Seconds in which one network goes over so many images."""


def transitions(config: Config, execution: Execution, model: FlatModel, train_images: int, timed: bool = True) -> tuple[Transition, ...]:
    """What every stage after the first begins with; none without transition. `timed` measures training steps.

    Raises `ConfigError` for settings with which start networks cannot be trained.
    """
    if not config.stages.transition:
        return ()
    found = tuple(_counted(config, model, stage) for stage in range(2, config.stages.count + 1))
    if not timed or not found:
        return found
    device, rounds = resolve(execution.device), math.ceil(_groups(config) / max(1, worker_count(config, execution)))
    link = measured(model, link_recipe(link_settings(config, model, found[0].images)), device)
    real = measured(model, expert_recipe(config), device)(train_images) if found[0].real_epochs else 0.0
    side_by_side = rounds * config.experts.together
    return tuple(replace(one, seconds=side_by_side * (one.passes * link(one.images) + one.real_epochs * real)) for one in found)


def transition_rows(found: tuple[Transition, ...]) -> list[tuple[str, str]]:
    """The prediction for people, a row for each stage and their sum."""
    rows = []
    for one in found:
        real = f", {one.real_epochs} real epochs" if one.real_epochs else ""
        taken = "" if one.seconds is None else f"; {duration(one.seconds)}"
        rows.append((f"start of stage {one.stage}", f"{one.networks} networks, {one.passes} passes over {one.images} images{real}{taken}"))
    if found:
        seconds = [one.seconds for one in found if one.seconds is not None]
        taken = f"; {duration(sum(seconds))}" if seconds else ""
        rows.append(("starts of stages in all", f"{gigabytes(sum(one.disk for one in found))} in the store{taken}"))
    return rows


def _counted(config: Config, model: FlatModel, stage: int) -> Transition:
    """The beginning of a stage, without seconds."""
    entry, networks = method(config.method), _groups(config) * config.experts.together
    decoding = entry.decoding(config)
    whole = replace(decoding, kind="single") if decoding.kind == "bound" else decoding  # as training takes them
    images = model.classes * count(whole, config.ipc * (stage - 1 if config.stages.conditioning else 1))
    epochs = needed_epochs(config) if entry.networks is None else 0
    kept = 1 + (epochs + 1 if epochs else 0)
    return Transition(stage, networks, link_settings(config, model, images).passes(), images, epochs, networks * kept * model.size * 4)


def _groups(config: Config) -> int:
    """Groups of networks that train side by side."""
    over_experts = method(config.method).networks is None
    wanted = (config.selection.pool or config.experts.count) if over_experts else config.stages.networks
    return math.ceil(wanted / config.experts.together)


def measured(model: FlatModel, recipe: Recipe, device: torch.device) -> PassSeconds:
    """How long passes take in batches of this recipe, from one step on up to PROBE_IMAGES random images and one on a quarter of them."""
    more = min(PROBE_IMAGES, recipe.batch_size)
    few = min(more, max(2, more // 4))  # batch normalisation wants two
    first = _seconds(model, recipe, few, device)
    each = max(0.0, (_seconds(model, recipe, more, device) - first) / (more - few)) if more > few else first / few
    fixed = max(0.0, first - few * each)
    return lambda images: math.ceil(images / recipe.batch_size) * fixed + images * each


def _seconds(model: FlatModel, recipe: Recipe, images: int, device: torch.device) -> float:
    """The fastest of three steps on so many images, after one that does not count."""
    pixels = torch.randn(images, *model.shape, generator=stream(0, 0, "plan-images")).to(device)
    data = TensorBatches(pixels, (torch.arange(images) % model.classes).to(device))
    networks = Networks(model.init(stream(0, 0, "plan")).to(device)[None])

    def once(number: int) -> float:
        started = time.perf_counter()
        train_epoch(model, data, networks, 0.0, recipe, Streams(0, "plan", (0,)), number).loss.tolist()  # waits for the device
        return time.perf_counter() - started

    return min([once(number) for number in range(4)][1:])
