"""CutMix against the recorded boxes and network updates, and against its definition."""

import pytest
import torch
import torch.nn.functional as F

from raydd.augment import cutmix
from raydd.rng import stream


@pytest.mark.golden
def test_boxes_equal_the_reference(golden) -> None:
    case = golden("idc_cutmix")
    for kept, side, row, column, expected in zip(
        *(case[f"in_box_{name}"] for name in ("lambda", "size", "centre_x", "centre_y")), case["out_box"], strict=True
    ):
        assert cutmix.box(float(kept), int(side), int(row), int(column)) == tuple(expected.tolist())


@pytest.mark.golden
def test_two_network_updates_equal_the_reference(golden) -> None:
    case = {name: torch.tensor(value) for name, value in golden("idc_cutmix").items()}
    shapes = [tuple(int(size) for size in row if size >= 0) for row in case["in_theta_shapes"]]
    theta = case["in_theta"].clone().requires_grad_()
    optimiser = torch.optim.SGD([theta], lr=0.01, momentum=0.9, weight_decay=5e-4)
    losses = []
    for update, rows in enumerate((torch.arange(10), torch.arange(9, -1, -1))):
        images, labels = case["in_images"][rows], case["in_labels"][rows]
        drawn = cutmix.mixing(case["in_permutation"][update], float(case["in_lambda"][update]), 32, *case["in_centre"][update].tolist())
        loss = cutmix.cross_entropy(_network(theta, shapes, cutmix.apply(images, drawn)), labels, drawn)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.detach())
    assert (theta - case["out_theta"]).abs().max() <= 1e-10 * case["out_theta"].abs().max()
    torch.testing.assert_close(torch.stack(losses).mean(), case["out_mean_loss"], rtol=1e-10, atol=0)


def _network(theta: torch.Tensor, shapes: list[tuple[int, ...]], images: torch.Tensor) -> torch.Tensor:
    """The recorded network, written out: all convolutions, then all norms, then the classifier."""
    parts = [part.view(shape) for part, shape in zip(theta.split([torch.Size(s).numel() for s in shapes]), shapes, strict=True)]
    for block in range(3):
        images = F.conv2d(images, parts[2 * block], parts[2 * block + 1], padding=1)
        images = F.group_norm(images, images.shape[1], parts[6 + 2 * block], parts[7 + 2 * block])
        images = F.avg_pool2d(F.relu(images), 2)
    return F.linear(images.flatten(1), parts[12], parts[13])


def test_pixels_in_the_box_are_the_partners_and_labels_count_by_area() -> None:
    images = torch.randn(6, 3, 8, 8, dtype=torch.float64, generator=stream(0, 0, "x")).requires_grad_()
    labels = torch.arange(6) % 4
    logits = torch.randn(6, 4, dtype=torch.float64, generator=stream(0, 0, "logits"))
    seen = set()
    for step in range(40):
        drawn = cutmix.draw(stream(0, step, "mix"), 6, 8, 1.0)
        inside = torch.zeros(8, 8, dtype=torch.bool)
        inside[drawn.box[0] : drawn.box[2], drawn.box[1] : drawn.box[3]] = True
        expected = torch.where(inside, images[drawn.partners], images)
        assert torch.equal(cutmix.apply(images, drawn), expected)
        assert drawn.ratio == pytest.approx(1 - inside.double().mean().item(), abs=1e-12)
        target = drawn.ratio * F.one_hot(labels, 4) + (1 - drawn.ratio) * F.one_hot(labels[drawn.partners], 4)
        expected_loss = -(target * logits.log_softmax(1)).sum(1).mean()
        torch.testing.assert_close(cutmix.cross_entropy(logits, labels, drawn), expected_loss, rtol=0, atol=1e-12)
        assert drawn.partners.sort().values.tolist() == list(range(6))
        seen.add(drawn.box)
    assert len(seen) > 20
    assert torch.autograd.gradcheck(lambda x: cutmix.apply(x, drawn), images)


def test_lambda_and_centre_are_uniform() -> None:
    draws = [cutmix.draw(stream(0, step, "mix"), 2, 64, 1.0) for step in range(400)]
    areas = torch.tensor([1 - drawn.ratio for drawn in draws])
    # A box that no edge clips has the area 1 - lambda: E = 1/2; clipped boxes are smaller: E[ratio] = 1 - E[(s(1 - s / 4))^2], s^2 uniform.
    sides = torch.linspace(0, 1, 10001, dtype=torch.float64).sqrt()
    assert areas.mean() == pytest.approx((sides * (1 - sides / 4)).square().mean().item(), abs=0.03)


def test_a_batch_is_mixed_with_the_probability_asked_for() -> None:
    mixed = [cutmix.draw(stream(0, step, "mix"), 4, 8, 0.5) is not None for step in range(400)]
    assert 150 < sum(mixed) < 250
    assert all(cutmix.draw(stream(0, step, "mix"), 4, 8, 0.0) is None for step in range(50))
    images, labels, logits = torch.randn(2, 1, 4, 4, generator=stream(0, 0, "x")), torch.tensor([0, 1]), torch.eye(2)
    assert cutmix.apply(images, None) is images
    assert torch.equal(cutmix.cross_entropy(logits, labels, None), F.cross_entropy(logits, labels))


def test_chances_have_the_cross_entropy_of_the_mix() -> None:
    """So that derivatives written by hand, which take chances, serve mixed batches."""
    labels, logits = torch.tensor([0, 2, 1, 2]), torch.randn(4, 3, generator=stream(0, 0, "logits"))
    drawn = cutmix.mixing(torch.tensor([2, 0, 3, 1]), 0.6, 8, 3, 5)
    mixed = torch.nn.functional.cross_entropy(logits, cutmix.chances(labels, 3, drawn))
    torch.testing.assert_close(mixed, cutmix.cross_entropy(logits, labels, drawn))
    assert cutmix.chances(labels, 3, None) is labels
