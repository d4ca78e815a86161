"""What only a CUDA device can show: agreement with the CPU, equal bits between runs, and the batched evaluation."""

from dataclasses import replace

import pytest
import torch

from raydd import devices
from raydd.config import Config, EvaluationConfig, ExpertConfig, MTTConfig, SelectionConfig
from raydd.data import RealData, Resident
from raydd.distill import State, distill
from raydd.evaluate import TrainingSet, evaluate
from raydd.executor import InlineExecutor
from raydd.methods import method as registered
from raydd.methods import method_names
from raydd.methods.base import Resources
from raydd.methods.mtt import MTT, draw
from raydd.training import TensorBatches
from raydd.types import Candidate
from tests.helpers import Table, model, synthetic, table
from tests.methods.contract import Case, case, walk

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

CONFIG = Config(
    steps=4,
    experts=ExpertConfig(count=4),
    mtt=MTTConfig(syn_steps=6, expert_epochs=1, max_start_epoch=2, batch_syn=3, lr_img=10.0),
    selection=SelectionConfig(policy="dynadistill", candidates=3),
)


def method(device: str, dtype: torch.dtype = torch.float32) -> MTT:
    network = model()
    snapshots = Table(table(network, 4, 3, dtype).thetas.to(device))
    return MTT(CONFIG, Resources(network, snapshots, torch.device(device)))


def test_gradient_agrees_with_the_cpu_in_float64() -> None:
    data, draws = synthetic(model(), dtype=torch.float64), draw(CONFIG, 8, 8, 0, 0)
    here = method("cpu", torch.float64).update(data, Candidate(0, 1, 1), draws)
    there = method("cuda", torch.float64).update(data.to("cuda"), Candidate(0, 1, 1), draws)
    assert there.loss == pytest.approx(here.loss, rel=1e-10)
    torch.testing.assert_close(there.grad_images, here.grad_images, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(there.grad_step_size, here.grad_step_size, rtol=1e-8, atol=1e-12)


def test_deterministic_runs_have_equal_bits() -> None:
    devices.prepare(threads=1, deterministic=True, tf32=False)
    try:
        ends = [distill(CONFIG, State.start(synthetic(model())), InlineExecutor(method("cuda"), "cuda")) for _ in range(2)]
    finally:
        devices.prepare(threads=1, deterministic=False, tf32=False)
    assert torch.equal(ends[0].synthetic.images, ends[1].synthetic.images)


@pytest.mark.parametrize("together", [False, True])
def test_evaluation_trains_on_the_device(together: bool) -> None:
    network = model()
    data, config = synthetic(network), replace(CONFIG, evaluation=EvaluationConfig(nets=2, epochs=3, batch_size=4))
    test, sets = TensorBatches(data.images.to("cuda"), data.labels.to("cuda")), [TrainingSet(data.images, data.labels, 0.01)]
    there = evaluate(config, network, sets, test, "cuda", together=together)
    here = evaluate(config, network, sets, TensorBatches(data.images, data.labels), "cpu")
    assert there.train_loss == pytest.approx(here.train_loss, rel=1e-3)


def test_answers_come_back_to_the_cpu() -> None:
    update = method("cuda").update(replace(synthetic(model())).to("cuda"), Candidate(0, 0, 0), draw(CONFIG, 8, 8, 0, 0))
    assert update.grad_images.device.type == update.grad_step_size.device.type == "cpu"


# Methods whose networks train

NETWORK_METHODS = [name for name in method_names() if registered(name).networks]


def on_device(found: Case, device: str) -> InlineExecutor:
    """The method of a case on another device."""
    resident, where = found.resources.real.resident, torch.device(device)
    moved = Resident(resident.stored.to(where), resident.labels.to(where), resident.transform.to(where))
    real = RealData(moved, found.resources.real.rows)
    return InlineExecutor(found.entry.build(found.config, Resources(found.resources.model, None, where, real)), where)


@pytest.mark.parametrize("name", NETWORK_METHODS)
def test_methods_with_networks_agree_with_the_cpu_in_float64(name: str) -> None:
    found = case(name, torch.float64)
    asked = (found.synthetic, found.candidates[0], found.draws)
    here, there = found.executor().update(*asked), on_device(found, "cuda").update(*asked)
    assert there.loss == pytest.approx(here.loss, rel=1e-9) and there.grad_images.device.type == "cpu"
    torch.testing.assert_close(there.grad_images, here.grad_images, rtol=1e-7, atol=1e-10 * here.grad_images.abs().max().item())
    scores = [executor.score(found.synthetic, found.candidates, found.draws) for executor in (found.executor(), on_device(found, "cuda"))]
    assert [score.loss for score in scores[0]] == pytest.approx([score.loss for score in scores[1]], rel=1e-9)


@pytest.mark.parametrize("name", NETWORK_METHODS)
def test_networks_come_back_to_the_cpu_with_all_that_they_remember(name: str) -> None:
    found = case(name)
    executor = on_device(found, "cuda")
    (network,) = executor.begin([5])
    networks = [network, *(each.network for each in executor.prepare(found.candidates, found.draws))]
    networks += executor.advance(found.synthetic, found.candidates, found.draws)
    if found.entry.networks.independent:
        networks.append(executor._method.target(found.candidates[0].to("cuda"), found.draws).to("cpu"))
    for each in networks:
        assert {tensor.device.type for tensor in (each.theta, each.velocity, *each.memory.values())} == {"cpu"}
    assert torch.allclose(network.theta, found.executor().begin([5])[0].theta, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("name", NETWORK_METHODS)
def test_runs_with_networks_go_through(name: str) -> None:
    found = case(name, selection__candidates=2, selection__pool=3, selection__policy="dynadistill")
    state, records = walk(found.config, on_device(found, "cuda"))
    assert state.step == found.config.steps and not any(record["skipped"] for record in records)
