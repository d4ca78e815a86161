"""The exact gradient of the trajectory-matching loss with respect to the synthetic images and the step size.

The student walks theta_{k+1} = theta_k - a g_k, where g_k is the gradient of the mean cross-entropy on the k-th batch, and
L = |theta_N - theta*|^2 / |theta_0 - theta*|^2. Keeping only theta_0..theta_N, the reverse walk needs one step's graph at a time:

    lambda_N = 2 (theta_N - theta*) / |theta_0 - theta*|^2        lambda_k = lambda_{k+1} - a H_k lambda_{k+1}
    dL/dX  = - a sum_k d<g_k, lambda_{k+1}>/dX                     dL/da    = - sum_k <g_k, lambda_{k+1}>

Source: specs/mtt_pdd.md sections 6.4 and 6.5 (derivation and measured agreement with full automatic differentiation).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from raydd.augment import dsa
from raydd.models import FlatModel, convnet_derivatives

Network = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class InnerBatch:
    """What one inner step sees: rows of the synthetic set, int64 (b,), and the augmentation drawn for them.

    The first `frozen` of the rows are held fixed: the student trains on them, and they get no gradient.
    """

    indices: Tensor
    augmentation: dsa.DsaDraw | None
    frozen: int = 0

    def to(self, device: torch.device) -> "InnerBatch":
        """The same batch with its tensors on a device."""
        return InnerBatch(self.indices.to(device), self.augmentation and self.augmentation.to(device), self.frozen)


@dataclass(frozen=True)
class Derivatives:
    """First and second derivatives of the mean cross-entropy of one network.

    gradient(theta (P,), images (b, C, H, W), labels (b,)) -> d loss / d theta (P,)
    pullback(theta, images, labels, direction (P,), frozen=0) -> with g the gradient above:
        <g, direction> (), d<g, direction>/d theta (P,), d<g, direction>/d images (b - frozen, C, H, W), without the first `frozen`
    """

    gradient: Callable[[Tensor, Tensor, Tensor], Tensor]
    pullback: Callable[..., tuple[Tensor, Tensor, Tensor]]


def autograd_derivatives(network: Network) -> Derivatives:
    """Derivatives of any network `(theta, images) -> logits` by automatic differentiation."""

    def gradient(theta: Tensor, images: Tensor, labels: Tensor, create_graph: bool = False) -> Tensor:
        with torch.enable_grad():
            theta = theta if create_graph else theta.detach().requires_grad_()
            (grad,) = torch.autograd.grad(cross_entropy(network(theta, images), labels), theta, create_graph=create_graph)
        return grad

    def pullback(theta: Tensor, images: Tensor, labels: Tensor, direction: Tensor, frozen: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        theta, free = theta.detach().requires_grad_(), images[frozen:].detach().requires_grad_()
        with torch.enable_grad():
            grad = gradient(theta, torch.cat([images[:frozen], free]), labels, create_graph=True)
        towards_theta, towards_images = torch.autograd.grad(grad, (theta, free), direction)
        return torch.dot(grad.detach(), direction), towards_theta, towards_images

    return Derivatives(gradient, pullback)


def derivatives_of(model: FlatModel) -> Derivatives:
    """The fastest exact derivatives of a network: written by hand where there are such, else by automatic differentiation."""
    if not convnet_derivatives.supports(model.config):
        return autograd_derivatives(model)
    spec = convnet_derivatives.spec(model.config, model.shape, model.classes)
    return Derivatives(
        gradient=lambda theta, images, labels: convnet_derivatives.gradient(spec, theta, images, labels)[1],
        pullback=lambda *place: convnet_derivatives.adjoint_step(spec, *place),
    )


def walk(
    derivatives: Derivatives, start: Tensor, images: Tensor, labels: Tensor, step_size: Tensor, batches: Sequence[InnerBatch]
) -> list[Tensor]:
    """The student's parameters theta_0..theta_N, each (P,), without any graph."""
    thetas = [start]
    with torch.no_grad():
        for batch in batches:
            seen = dsa.apply(images[batch.indices], batch.augmentation)
            thetas.append(thetas[-1] - step_size * derivatives.gradient(thetas[-1], seen, labels[batch.indices]))
    return thetas


def matching_loss(end: Tensor, start: Tensor, target: Tensor) -> Tensor:
    """|end - target|^2 / |start - target|^2, (); 1 means that the student got no nearer."""
    return (end - target).square().sum() / (start - target).square().sum()


@torch.no_grad()
def adjoint(
    derivatives: Derivatives,
    thetas: Sequence[Tensor],
    target: Tensor,
    images: Tensor,
    labels: Tensor,
    step_size: Tensor,
    batches: Sequence[InnerBatch],
    chain: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss (), gradient of the images (N, C, H, W) and of the step size (), from the thetas that `walk` kept.

    Images that are held fixed in every batch have zeros. Exact; memory is one inner step's graph plus the thetas. With `chain=False`
    the curvature terms are left out, which is TESLA's approximation (specs/mtt_pdd.md section 6.4): right for one inner step only.
    """
    adjoint_vector = 2 * (thetas[-1] - target) / (thetas[0] - target).square().sum()
    grad_images, grad_step_size = torch.zeros_like(images), torch.zeros_like(step_size)
    for theta, batch in zip(reversed(thetas[:-1]), reversed(batches), strict=True):
        fixed, free = batch.indices.tensor_split([batch.frozen])
        rows = images[free].requires_grad_()
        with torch.enable_grad():
            seen = _augmented(rows, batch.augmentation, slice(batch.frozen, None))
        others = _augmented(images[fixed], batch.augmentation, slice(batch.frozen))
        place = (theta, torch.cat([others, seen.detach()]), labels[batch.indices], adjoint_vector, batch.frozen)
        inner, towards_theta, towards_seen = derivatives.pullback(*place)
        (towards_rows,) = torch.autograd.grad(seen, rows, towards_seen) if seen is not rows else (towards_seen,)
        grad_images.index_add_(0, free, towards_rows, alpha=-1)
        grad_step_size -= inner
        if chain:
            adjoint_vector = adjoint_vector - step_size * towards_theta
    return matching_loss(thetas[-1], thetas[0], target), grad_images * step_size, grad_step_size


def _augmented(images: Tensor, drawn: dsa.DsaDraw | None, rows: slice) -> Tensor:
    """Those rows of a batch, images (b', C, H, W), after their own share of what was drawn for it."""
    if drawn is None or not len(images):
        return images
    return dsa.apply(images, dsa.DsaDraw(drawn.operation, {name: value[rows] for name, value in drawn.values.items()}))


def unroll(
    network: Network, start: Tensor, target: Tensor, images: Tensor, labels: Tensor, step_size: Tensor, batches: Sequence[InnerBatch]
) -> tuple[Tensor, Tensor, Tensor]:
    """The same three numbers by automatic differentiation through the whole walk; memory grows with N, frozen rows are not spared."""
    images, step_size, theta = (tensor.detach().requires_grad_() for tensor in (images, step_size, start))
    with torch.enable_grad():
        for batch in batches:
            seen = dsa.apply(images[batch.indices], batch.augmentation)
            loss = cross_entropy(network(theta, seen), labels[batch.indices])
            (grad,) = torch.autograd.grad(loss, theta, create_graph=True)
            theta = theta - step_size * grad
        loss = matching_loss(theta, start, target)
        grad_images, grad_step_size = torch.autograd.grad(loss, (images, step_size))
    return loss.detach(), grad_images, grad_step_size
