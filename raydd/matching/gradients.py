"""Gradient matching: per-class losses between the parameter gradients of real and synthetic batches, and their image gradient.

For class c with network theta, g_c is the gradient in theta of the mean cross-entropy of the class's batch and the loss is
D(g_c of the real batch, g_c of the synthetic batch). With v = dD/dg_c its gradient in the synthetic images is d<g_c, v>/d images:
one second derivative towards the images alone, never towards theta. Images that are held fixed have their part in g_c and get none.

Classes do not mix: each goes through the network by itself, so batch statistics are those of one class. Sources:
specs/idc_dream_pdd.md sections 1.6 and 7, specs/dc_dsa_dm_cafe_selection_cl.md section 4.
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from raydd.matching.by_hand import Network, bound, mixes
from raydd.matching.distances import Distance
from raydd.matching.threads import side_by_side
from raydd.models import convnet_derivatives


def class_gradients(network: Network, theta: Tensor, images: Tensor, labels: Tensor, chunk: int | None = None) -> Tensor:
    """The gradient (C, P) in theta of the mean cross-entropy of every class's batch, without any graph.

    network  a `FlatModel`, or any (theta (P,), images (B, ch, H, W)) -> logits (B, classes)
    images   (C, n, ch, H, W), one batch for each class
    labels   int64 (C,), the label of each batch
    chunk    the most classes in memory at once. Networks with derivatives written by hand take so many side by side on a CPU, up to
             one for each of torch's threads (None: as many as these); others always take one
    """
    by_hand = bound(convnet_derivatives.gradient_at, network, theta)
    if by_hand is None:
        return torch.stack([_gradient(network, theta, x, y, create_graph=False) for x, y in zip(images, labels, strict=True)])

    def one(place: int) -> tuple[Tensor]:
        return (by_hand(images[place], labels[place].expand(images.shape[1]))[1],)

    return side_by_side(one, len(images), images.device, chunk)[0]


def scores(
    network: Network, theta: Tensor, real: Tensor, images: Tensor, labels: Tensor, distance: Distance, chunk: int | None = None
) -> Tensor:
    """The matching losses (C,) alone, first order. Arguments as for `match`."""
    return distance(real, class_gradients(network, theta, images, labels, chunk))[0]


def match(
    network: Network,
    theta: Tensor,
    real: Tensor,
    images: Tensor,
    labels: Tensor,
    distance: Distance,
    chunk: int | None = None,
    frozen: int = 0,
) -> tuple[Tensor, Tensor]:
    """The matching losses (C,) and the gradient (C, m - frozen, ch, H, W) of each in its own class's images, exact.

    real    (C, P), the `class_gradients` of the real batches
    images  (C, m, ch, H, W), the synthetic batches as the network sees them: decoded and augmented
    labels  int64 (C,), the label of each batch
    chunk   as for `class_gradients`
    frozen  how many images of each class, its first ones, are held fixed
    """
    by_hand = bound(convnet_derivatives.gradient_and_pullback, network, theta)
    if by_hand is None:
        found = [_match(network, theta, *place, distance, frozen) for place in zip(real, images, labels, strict=True)]
        return torch.stack([loss for loss, _ in found]), torch.stack([towards for _, towards in found])

    def one(place: int) -> tuple[Tensor, Tensor]:
        gradient, _, pullback = by_hand(images[place], labels[place].expand(images.shape[1]), frozen)
        loss, direction = distance(real[place], gradient)
        return loss, pullback(direction)

    return side_by_side(one, len(images), images.device, chunk)


def _match(
    network: Network, theta: Tensor, real: Tensor, images: Tensor, label: Tensor, distance: Distance, frozen: int
) -> tuple[Tensor, Tensor]:
    """Loss () and image gradient (m - frozen, ch, H, W) of one class, by automatic differentiation.

    Where images do not mix, the frozen ones go by themselves and leave no graph: the gradient of a mean is a mean of gradients.
    """
    free, fixed = images[frozen:].detach().requires_grad_(), images[:frozen]
    with torch.enable_grad():
        if not frozen or mixes(network):
            gradient = _gradient(network, theta, torch.cat([fixed, free]), label, create_graph=True)
            whole = gradient.detach()
        else:
            gradient = _gradient(network, theta, free, label, create_graph=True) * (len(free) / len(images))
            whole = gradient.detach() + _gradient(network, theta, fixed, label, create_graph=False) * (frozen / len(images))
    loss, direction = distance(real, whole)
    return loss, torch.autograd.grad(gradient, free, direction)[0]


def _gradient(network: Network, theta: Tensor, images: Tensor, label: Tensor, create_graph: bool) -> Tensor:
    """The gradient (P,) of one class. Not batched over classes: torch.func.vmap loses terms of second derivatives of a batch norm."""
    with torch.enable_grad():
        theta = theta.detach().requires_grad_()
        loss = cross_entropy(network(theta, images), label.expand(len(images)))
        return torch.autograd.grad(loss, theta, create_graph=create_graph)[0]
