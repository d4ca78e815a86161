"""Gradient matching: per-class losses between the parameter gradients of real and synthetic batches, and their image gradient.

For class c with network theta, g_c is the gradient in theta of the mean cross-entropy of the class's batch and the loss is
D(g_c of the real batch, g_c of the synthetic batch). With v = dD/dg_c its gradient in the synthetic images is d<g_c, v>/d images:
one second derivative towards the images alone, never towards theta.

Classes do not mix: every batch statistic is that of one class, whatever `chunk` is. Sources: specs/idc_dream_pdd.md sections 1.6 and 7,
specs/dc_dsa_dm_cafe_selection_cl.md section 4.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from raydd.matching.distances import Distance
from raydd.matching.threads import side_by_side
from raydd.models import FlatModel, convnet_derivatives

Network = Callable[[Tensor, Tensor], Tensor]
Pullback = Callable[[Tensor], Tensor]


def class_gradients(network: Network, theta: Tensor, images: Tensor, labels: Tensor, chunk: int | None = None) -> Tensor:
    """The gradient (C, P) in theta of the mean cross-entropy of every class's batch, without any graph.

    network  (theta (P,), images (B, ch, H, W)) -> logits (B, classes)
    images   (C, n, ch, H, W), one batch for each class
    labels   int64 (C,), the label of each batch
    chunk    the most classes in memory at once: on a CPU so many go side by side, up to one for each of torch's threads (None: so many)
    """
    gradient = _gradient_of(network, theta)
    return torch.stack(side_by_side(lambda place: gradient(images[place], labels[place]), len(images), images.device, chunk))


def scores(
    network: Network, theta: Tensor, real: Tensor, images: Tensor, labels: Tensor, distance: Distance, chunk: int | None = None
) -> Tensor:
    """The matching losses (C,) alone, first order. Arguments as for `match`."""
    return distance(real, class_gradients(network, theta, images, labels, chunk))[0]


def match(
    network: Network, theta: Tensor, real: Tensor, images: Tensor, labels: Tensor, distance: Distance, chunk: int | None = None
) -> tuple[Tensor, Tensor]:
    """The matching losses (C,) and the gradient (C, m, ch, H, W) of each in its own class's images, exact.

    real    (C, P), the `class_gradients` of the real batches
    images  (C, m, ch, H, W), the synthetic batches as the network sees them: decoded and augmented
    labels  int64 (C,), the label of each batch
    chunk   as for `class_gradients`
    """
    both, towards = _gradient_and_pullback_of(network, theta), torch.empty_like(images)

    def one(place: int) -> Tensor:
        gradient, pullback = both(images[place], labels[place])
        loss, direction = distance(real[place], gradient)
        towards[place] = pullback(direction)
        return loss

    return torch.stack(side_by_side(one, len(images), images.device, chunk)), towards


def _gradient_of(network: Network, theta: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """(images (B, ch, H, W), label ()) -> gradient (P,), the fastest that is exact."""
    if _by_hand(network):
        spec = convnet_derivatives.spec(network.config, network.shape, network.classes)
        prepared = convnet_derivatives.prepare(spec, theta)
        return lambda x, y: convnet_derivatives.gradient_at(spec, prepared, x, y.expand(len(x)))[1]
    return lambda x, y: _gradient(network, theta, x, y, create_graph=False)


def _gradient_and_pullback_of(network: Network, theta: Tensor) -> Callable[[Tensor, Tensor], tuple[Tensor, Pullback]]:
    """(images, label) -> (gradient g (P,), function of a direction (P,) that gives d<g, direction>/d images)."""
    if _by_hand(network):
        spec = convnet_derivatives.spec(network.config, network.shape, network.classes)
        prepared = convnet_derivatives.prepare(spec, theta)
        return lambda x, y: convnet_derivatives.gradient_and_pullback(spec, prepared, x, y.expand(len(x)))[::2]

    def both(images: Tensor, label: Tensor) -> tuple[Tensor, Pullback]:
        images = images.detach().requires_grad_()
        gradient = _gradient(network, theta, images, label, create_graph=True)
        return gradient.detach(), lambda direction: torch.autograd.grad(gradient, images, direction)[0]

    return both


def _by_hand(network: Network) -> bool:
    """Whether the network's derivatives are written by hand."""
    return isinstance(network, FlatModel) and convnet_derivatives.supports(network.config)


def _gradient(network: Network, theta: Tensor, images: Tensor, label: Tensor, create_graph: bool) -> Tensor:
    """The gradient (P,) of one class. Not batched over classes: torch.func.vmap loses terms of second derivatives of a batch norm."""
    with torch.enable_grad():
        theta = theta.detach().requires_grad_()
        loss = cross_entropy(network(theta, images), label.expand(len(images)))
        return torch.autograd.grad(loss, theta, create_graph=create_graph)[0]
