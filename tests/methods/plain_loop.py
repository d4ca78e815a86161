"""A run of a base method written out: no slots, no scores, no executor, no stages."""

from dataclasses import replace
from typing import Any

import torch

from raydd import optimise
from raydd.config import Config
from raydd.methods.base import MethodEntry
from raydd.selection import draw_candidates
from raydd.types import Candidate, SyntheticSet


def base_method(config: Config, entry: MethodEntry, method: Any, synthetic: SyntheticSet) -> SyntheticSet:
    """The set after `config.steps` updates with one candidate: a network begins, the images move by its gradient, it trains.

    A method over trajectories has the one candidate that is drawn instead.
    """
    rules, classes, side = entry.networks, int(synthetic.labels.max()) + 1, synthetic.images.shape[-1]
    velocity, velocity_step_size, pending = torch.zeros_like(synthetic.images), torch.zeros(()), None
    network, outer, inner = None, 0, 0
    for step in range(config.steps):
        optimiser = entry.optimiser(config, side, outer)
        if rules and network is None:
            network, inner, synthetic = method.begin(outer), 0, optimise.begun(synthetic, optimiser)
        synthetic = optimise.seen(synthetic, pending)
        draws = entry.draw(config, synthetic, step, 0)
        if rules:
            network = method.prepare(network, draws) if rules.prepares and inner == 0 else network
            candidate = Candidate(0, 0, 0, network)
        else:
            (candidate,) = draw_candidates(config, entry.start_epochs(config), step, 0)
        update = method.update(synthetic, candidate, draws)
        images, velocity, pending = optimise.moved(synthetic.images, velocity, update.grad_images, synthetic.labels, classes, optimiser)
        step_size, velocity_step_size = optimise.step_size_moved(synthetic, velocity_step_size, update, optimiser)
        synthetic = replace(synthetic, images=images, step_size=step_size)
        if rules:
            inner += 1
            if inner < rules.length(config):
                network = method.advance(synthetic, network, draws)
            if inner == rules.length(config) or "finished" in network.memory:
                network, outer = None, outer + 1
    return synthetic
