"""What is known of a network: derivatives written by hand, made ready for many batches of one theta, and whether images mix."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from raydd.matching.threads import threads_each
from raydd.models import FlatModel, convnet_derivatives

Network = FlatModel | Callable[[Tensor, Tensor], Tensor]


def bound(function: Callable[..., Any], network: Network, theta: Tensor) -> Callable[..., Any] | None:
    """A function of `convnet_derivatives` (spec, parameters, ...) for this network and theta; None for networks without."""
    if not isinstance(network, FlatModel) or not convnet_derivatives.supports(network.config):
        return None
    spec = convnet_derivatives.spec(network.config, network.shape, network.classes)
    with threads_each(1):
        return partial(function, spec, convnet_derivatives.prepare(spec, theta))


def mixes(network: Network) -> bool:
    """Whether images that go through together may change one another's features, as under a batch norm: no only where that is known.

    `network` may also be a method of a `FlatModel`, such as `embed`.
    """
    model = getattr(network, "__self__", network)
    return not isinstance(model, FlatModel) or model.config.norm == "batch"
