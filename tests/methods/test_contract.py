"""Every registered method holds the contract, and those of the package equal their formula, differentiated by torch without any trick."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from raydd.data import RealData
from raydd.matching import both, features, gradients
from raydd.matching.by_hand import bound
from raydd.methods import method_names
from raydd.models import FlatModel
from tests.methods.contract import CHECKS, CLASSES, FROZEN, Case, case, frozen_rows_are_left_out, real_data


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", method_names())
def test_holds(name: str, check: Callable[[str], None]) -> None:
    check(name)


# The formulas, as the papers print them: float64, one class after another, no chunk, no augmentation.


@dataclass(frozen=True)
class Seen(RealData):
    """Real data that notes which images were asked for."""

    asked: list[Tensor] = field(default_factory=list)

    def images(self, rows: Tensor) -> Tensor:
        self.asked.append(super().images(rows))
        return self.asked[-1]


def parameter_gradients(model: FlatModel, theta: Tensor, images: Tensor, label: int) -> list[Tensor]:
    """Of the mean cross-entropy of one class, tensor by tensor, with a graph."""
    loss = F.cross_entropy(model(theta, images), torch.full((len(images),), label))
    (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
    return list(model.views(gradient).values())


def rows_of_cosines(real: list[Tensor], synthetic: list[Tensor]) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for x, y in zip(real, synthetic, strict=True):
        for one, other in zip(x, y, strict=True) if x.dim() > 1 else ():
            total = total + 1 - (one * other).sum() / (one.norm() * other.norm() + 1e-6)
    return total


def squares_of_convolutions(real: list[Tensor], synthetic: list[Tensor]) -> Tensor:
    return sum(((x - y) ** 2).sum() for x, y in zip(real, synthetic, strict=True) if x.dim() == 4)


def gradient_matching(found: Case, theta: Tensor, real: Tensor, images: Tensor, distance: Callable) -> Tensor:
    model, losses = found.resources.model, []
    for label in range(CLASSES):
        target = [part.detach() for part in parameter_gradients(model, theta, real[label], label)]
        losses.append(distance(target, parameter_gradients(model, theta, images[label], label)))
    return sum(losses) / CLASSES


def feature_matching(found: Case, theta: Tensor, real: Tensor, images: Tensor) -> Tensor:
    embed = found.resources.model.embed
    means = [(embed(theta, real[label]).mean(0), embed(theta, images[label]).mean(0)) for label in range(CLASSES)]
    return sum(((x - y) ** 2).sum() for x, y in means) / CLASSES


def decoded(found: Case, images: Tensor) -> Tensor:
    """(C, 4 ipc, ch, H, W), normalised: the four quarters of each stored image at full size."""
    half = images.shape[-1] // 2
    crops = [images[..., y : y + half, x : x + half] for y in (0, half) for x in (0, half)]
    large = [F.interpolate(crop, scale_factor=2, mode="bilinear", align_corners=False).unflatten(0, (CLASSES, -1)) for crop in crops]
    transform = found.resources.real.resident.transform
    return (torch.cat(large, 1) - transform.mean[:, None, None]) / transform.std[:, None, None]


def plain_dc(found: Case, theta: Tensor, real: Tensor, images: Tensor) -> Tensor:
    return gradient_matching(found, theta, real, images.unflatten(0, (CLASSES, -1)), rows_of_cosines)


def plain_dm(found: Case, theta: Tensor, real: Tensor, images: Tensor) -> Tensor:
    return feature_matching(found, theta, real, images.unflatten(0, (CLASSES, -1)))


def plain_idc(found: Case, theta: Tensor, real: Tensor, images: Tensor) -> Tensor:
    return gradient_matching(found, theta, real, decoded(found, images), squares_of_convolutions)


def plain_dreamplus(found: Case, theta: Tensor, real: Tensor, images: Tensor) -> Tensor:
    return plain_idc(found, theta, real, images) + found.config.dream.alpha * feature_matching(found, theta, real, decoded(found, images))


def plain_cafe(found: Case, theta: Tensor, real: Tensor, images: Tensor) -> Tensor:
    model = found.resources.model
    ours, theirs = (
        [maps.unflatten(0, (CLASSES, -1)) for maps in model.maps(theta, batch)] for batch in (images, real.flatten(0, 1).detach())
    )
    layers = [((x.mean(1) - y.mean(1)) ** 2).sum() for x, y in zip(ours, theirs, strict=True)]
    # Two blocks: a map each before pooling, and the last one behind it.
    aligned = 0.1 * layers[0] + 1.0 * layers[1] + 1.0 * layers[2]
    centres, features = ours[-1].mean(1).flatten(1), theirs[-1].flatten(2)
    told = sum(F.cross_entropy(features[label] @ centres.T, torch.full((len(features[0]),), label), reduction="sum") for label in range(3))
    return (aligned + layers[-1] + 0.01 * told) / CLASSES


PLAIN = {"dc": plain_dc, "dsa": plain_dc, "dm": plain_dm, "cafe": plain_cafe, "idc": plain_idc, "dream": plain_idc}
PLAIN["dreamplus"] = plain_dreamplus


@pytest.mark.parametrize("name", PLAIN)
def test_update_is_the_gradient_of_the_formula(name: str) -> None:
    seen = Seen(*vars(real_data(torch.float64)).values())
    without = {"augment__strategy": "none", "idc__match_strategy": "none", "dream__alpha": 0.7}
    found = case(name, torch.float64, seen, **without)
    seen.asked.clear()
    update = found.fresh().update(found.synthetic, found.candidates[0], found.draws)
    (real,) = seen.asked
    assert len(real) == CLASSES
    images, theta = found.synthetic.images.clone().requires_grad_(), found.candidates[0].network.theta.requires_grad_()
    loss = PLAIN[name](found, theta, real, images)
    (gradient,) = torch.autograd.grad(loss, images)
    assert update.loss == pytest.approx(loss.item(), rel=1e-9)
    torch.testing.assert_close(update.grad_images, gradient, rtol=1e-7, atol=1e-10 * gradient.abs().max().item())


def test_mtt_is_the_gradient_of_its_formula() -> None:
    found = case("mtt", torch.float64, augment__strategy="none")
    update = found.fresh().update(found.synthetic, found.candidates[0], found.draws)
    images, step_size = (part.clone().requires_grad_() for part in (found.synthetic.images, found.synthetic.step_size))
    start, target = (found.resources.experts.theta(1, epoch) for epoch in (0, 1))
    theta = start.clone().requires_grad_()
    for batch in found.draws.batches:
        loss = F.cross_entropy(found.resources.model(theta, images[batch.indices]), found.synthetic.labels[batch.indices])
        theta = theta - step_size * torch.autograd.grad(loss, theta, create_graph=True)[0]
    loss = ((theta - target) ** 2).sum() / ((start - target) ** 2).sum()
    gradients = torch.autograd.grad(loss, (images, step_size))
    assert update.loss == pytest.approx(loss.item(), rel=1e-10)
    for ours, theirs in zip((update.grad_images, update.grad_step_size), gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-12)


def test_the_package_has_these_methods() -> None:
    assert {*PLAIN, "mtt"} <= set(method_names())


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        *[(name, {"model__norm": norm}) for name in ("mtt", "dsa", "dm", "cafe", "dreamplus") for norm in ("batch", "group")],
        ("mtt", {"mtt__grad_mode": "unroll"}),
        ("dc", {"dc__class_chunk": 1}),
        ("idc", {"idc__batch_syn_max": 11}),
        ("idc", {"idc__decode": "multi"}),
        ("idc", {"idc__decode": "bound", "idc__batch_syn_max": 9}),
        ("idc", {"idc__match": "feat", "idc__batch_syn_max": 11}),
    ],
)
def test_frozen_images_are_left_out_however_the_rest_is_set(name: str, changes: dict) -> None:
    frozen_rows_are_left_out(case(name, torch.float64, **FROZEN, **changes))


@pytest.mark.parametrize("name", ["dm", "cafe"])
def test_frozen_images_leave_no_graph(name: str) -> None:
    """Automatic differentiation keeps as many maps for an update beside frozen images as for one of the free images alone."""
    found, kept = case(name), []
    staged = found.staged()
    for each in (staged, found, staged.given(replace(staged.synthetic, frozen=0))):
        sizes: list[int] = []

        def keep(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(tensor.numel() if tensor.dim() == 4 else 0)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            each.fresh().update(each.synthetic, each.candidates[0], each.draws)
        kept.append(sum(sizes))
    assert kept[0] == kept[1] < kept[2]


@pytest.mark.parametrize("name", ["dsa", "dm", "cafe", "idc"])
def test_real_and_synthetic_images_of_a_class_are_augmented_alike(name: str) -> None:
    """Synthetic images that are the real ones match them perfectly, whatever the draw, and classes draw apart."""
    base = real_data(torch.float64)
    pixels = base.resident.stored
    few = RealData(replace(base.resident, stored=pixels), tuple(rows[:2] for rows in base.rows))
    changes = {"dc__batch_real": 2, "dm__batch_real": 2, "cafe__batch_real": 2, "idc__batch_real": 2, "idc__factor": 1, "init": "real"}
    found = case(name, torch.float64, few, **changes)
    images = few.images(torch.stack(few.rows).flatten())
    if name == "idc":
        images = base.resident.transform.inverse(images)
    synthetic = replace(found.synthetic, images=images)
    for step in range(4):
        draws = found.entry.draw(found.config, synthetic, step, 0)
        loss = found.fresh().score(synthetic, found.candidates[0], draws).loss
        other = found.fresh().score(replace(synthetic, images=images.flip(0)), found.candidates[0], draws).loss
        # CAFE's cross-entropy is not zero for equal sets.
        assert loss < (1e-3 if name == "dsa" else 1e-12) or name == "cafe"
        assert loss < other


@pytest.mark.parametrize("name", ["dc", "dsa", "dm", "idc", "dream", "dreamplus"])
def test_derivatives_written_by_hand_are_taken(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the ConvNet has them no pass over the network is left to automatic differentiation."""
    taken = []

    def spy(function: Any, *place: Any) -> Any:
        taken.append(bound(function, *place))
        return taken[-1]

    for module in (gradients, features, both):
        monkeypatch.setattr(module, "bound", spy)
    found = case(name)
    found.fresh().score(found.synthetic, found.candidates[0], found.draws)
    found.fresh().update(found.synthetic, found.candidates[0], found.draws)
    assert len(taken) >= 4 and None not in taken
