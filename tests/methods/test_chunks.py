"""The class chunk: what bounds it, that it fits, and that no bit depends on it where it follows the free memory."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from raydd.config import ModelConfig
from raydd.methods import chunks, method
from raydd.methods.chunks import Chunks
from raydd.models import build
from tests.methods.contract import case, same, settings

CPU, OTHER = torch.device("cpu"), torch.device("meta")


def made(matched: str, given: int | None = None, device: torch.device = CPU, classes: int = 10, **options) -> Chunks:
    model = build(ModelConfig(**{"width": 8, "depth": 2, **options.pop("model", {})}), (3, 8, 8), classes)
    return Chunks(model, device, matched, given, **options)


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Free bytes, to be changed."""
    found = [1 << 40]
    monkeypatch.setattr(chunks, "free_bytes", lambda device: found[0])
    yield found


@pytest.mark.parametrize("matched", ["gradients", "features"])
def test_by_hand_as_many_as_there_are_threads_and_as_fit(free: list[int], matched: str) -> None:
    assert [made(matched, threads=threads).of(real=256) for threads in (1, 4, 99)] == [1, 4, 10]
    assert made(matched, 3, threads=4).of(real=256) == 3 and made(matched, threads=8, device=OTHER).of(real=256) == 1
    for place in ({"real": 40}, {"synthetic": 40}, {"synthetic": 40, "frozen": 30}):
        each = made(matched).bytes(**place)
        for fit in (1, 2, 5):
            free[0] = int((fit + 0.5) * each / chunks.SHARE)
            assert made(matched, threads=8).of(**place) == fit
        free[0] = 0
        assert made(matched, threads=8).of(**place) == 1 and made(matched, 4, threads=8).of(**place) == 4
    assert made(matched).bytes(synthetic=40, frozen=30) < made(matched).bytes(synthetic=40)


@pytest.mark.parametrize("matched", ["features", "maps"])
def test_under_automatic_derivatives_the_free_memory_decides_nothing(
    free: list[int], monkeypatch: pytest.MonkeyPatch, matched: str
) -> None:
    smooth = {"activation": "swish"}
    free[0] = 0
    assert [made(matched, model=smooth).of(real=count) for count in (40, 100, 256, 10_000)] == [10, 5, 2, 1]
    assert made(matched, model=smooth, device=OTHER).of(real=256) == 10 and made(matched, 3, model=smooth).of(real=256) == 3
    monkeypatch.setattr(chunks, "CPU_BUDGET", 4 * made(matched, model=smooth).bytes(synthetic=40) + 1)
    assert made(matched, model=smooth).of(synthetic=40) == 4


def test_gradients_under_automatic_derivatives_go_class_by_class() -> None:
    for norm in ("batch", "layer"):
        assert made("gradients", 4, model={"norm": norm}, threads=8).of(real=2) == 1
        assert not made("gradients", model={"norm": norm}).cuttable


def test_batch_statistics_are_not_cut() -> None:
    norm = {"norm": "batch"}
    for matched in ("features", "maps"):
        assert made(matched, model=norm).of(real=10_000) == 10 and not made(matched, model=norm).cuttable
    assert made("features", model=norm, apart=True).of(real=2) == 1
    (problem,) = method("dm").problems(settings("dm", model__norm="batch", dm__class_chunk=2), None)
    assert "--dm.class_chunk=2 with --model.norm batch" in problem
    assert "--cafe.class_chunk" in method("cafe").problems(settings("cafe", model__norm="batch", cafe__class_chunk=2), None)[0]


def test_what_is_counted_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    found, asked = made("maps"), []
    monkeypatch.setattr(Chunks, "bytes", lambda self, *place: asked.append(place) or 1)
    assert found.of(real=5) == found.of(real=5) == 10 and asked == [(5, 0, 0)]


@pytest.mark.parametrize("name", ["dc", "dm", "idc", "dreamplus"])
def test_no_bit_depends_on_the_chunk_by_hand(name: str) -> None:
    section = {"dreamplus": "idc"}.get(name, name)
    torch.set_num_threads(4)
    try:
        answers = []
        for chunk in (None, 1, 2):
            found = case(name, **{f"{section}__class_chunk": chunk})
            asked = (found.synthetic, found.candidates[0], found.draws)
            answers.append((found.fresh().score(*asked), found.fresh().update(*asked)))
        assert same(answers[0], answers[1]) and same(answers[0], answers[2])
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("name", ["dm", "cafe"])
def test_a_chunk_of_features_changes_only_rounding(name: str) -> None:
    updates = []
    for chunk in (None, 1, 2):
        found = case(name, torch.float64, model__activation="swish", **{f"{name}__class_chunk": chunk})
        updates.append(found.fresh().update(found.synthetic, found.candidates[0], found.draws))
    for other in updates[1:]:
        torch.testing.assert_close(other.grad_images, updates[0].grad_images, rtol=1e-9, atol=1e-13)


def test_statistics_of_idc_are_those_of_a_class() -> None:
    """Features alone too: what another class has changes nothing."""
    found = case("idc", torch.float64, model__norm="batch", idc__match="feat", idc__match_strategy="none")
    images = found.synthetic.images.clone()
    images[2:] *= 0.5
    gradients = [
        found.fresh().update(replace(found.synthetic, images=each), found.candidates[0], found.draws).grad_images[:2]
        for each in (found.synthetic.images, images)
    ]
    assert torch.equal(*gradients)
