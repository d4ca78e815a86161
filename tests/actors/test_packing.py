from dataclasses import dataclass, fields
from typing import Any

import pytest
import torch

from raydd.actors.packing import pack, unpack
from raydd.methods.base import method
from raydd.recipes import load_recipe
from raydd.types import SyntheticSet

TENSORS = {
    "float": torch.randn(3, 4),
    "scalar": torch.tensor(2.5, dtype=torch.float64),
    "indices": torch.arange(7),
    "flags": torch.tensor([True, False]),
    "empty": torch.zeros(0, 3),
    "transposed": torch.randn(3, 4).T,
    "half": torch.randn(5).to(torch.bfloat16),
    "learned": torch.randn(2, requires_grad=True),
    "conjugate": torch.randn(2, dtype=torch.complex64).conj(),
    "parameter": torch.nn.Parameter(torch.ones(2)),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_arrive_as_they_were(name: str) -> None:
    tensor = TENSORS[name]
    arrived = unpack(pack({"deep": [tensor]}))["deep"][0]
    assert type(arrived) is type(tensor) and arrived.dtype == tensor.dtype and arrived.requires_grad == tensor.requires_grad
    assert torch.equal(arrived, tensor)
    with torch.no_grad():
        arrived.zero_()  # Ours to write to, without a warning.


@dataclass(frozen=True)
class Local:
    name: str
    part: Any


def test_structure_arrives_as_it_was() -> None:
    shared = torch.ones(2)
    arrived = unpack(pack(Local("draws", (shared, [shared, None, 3]))))
    assert arrived.name == "draws" and arrived.part[0] is arrived.part[1][0] and arrived.part[1][1:] == [None, 3]
    assert unpack(pack(None)) is None


def test_draws_of_a_step_hold_the_same_numbers() -> None:
    config = load_recipe("digits-mtt-ipc1").config
    images = SyntheticSet(torch.zeros(10, 1, 8, 8), torch.arange(10), torch.tensor(0.1), torch.ones(10))
    draws = method("mtt").draw(config, images, 3, 0)
    assert _flat(unpack(pack(draws))) == _flat(draws)


def _flat(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return (value.dtype, value.tolist())
    if hasattr(value, "__dataclass_fields__"):
        return (type(value), [_flat(getattr(value, field.name)) for field in fields(value)])
    if isinstance(value, (list, tuple)):
        return [_flat(part) for part in value]
    return {key: _flat(part) for key, part in value.items()} if isinstance(value, dict) else value
