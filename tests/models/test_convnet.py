"""The ConvNet against recorded outputs and parameter counts of the reference networks."""

import pytest
import torch

from raydd.config import ModelConfig
from raydd.errors import ConfigError
from raydd.models import build
from raydd.rng import stream

SETS = {"cifar10": ((3, 32, 32), 10), "cifar100": ((3, 32, 32), 100), "tiny": ((3, 64, 64), 200)}
NETWORKS = {
    "ConvNet": {},
    **{f"ConvNetD{depth}": {"depth": depth} for depth in range(1, 6)},
    **{f"ConvNetW{width}": {"width": width} for width in (32, 64, 256)},
    "ConvNetNN": {"norm": "none"},
    "ConvNetBN": {"norm": "batch"},
    "ConvNetIN": {"norm": "instance"},
    "ConvNetGN": {"norm": "group"},
    "ConvNetLN": {"norm": "layer"},
    "ConvNetNP": {"pooling": "none"},
}


@pytest.mark.golden
@pytest.mark.parametrize("case_name, settings", [("d3", {"width": 32}), ("d4", {"width": 32, "depth": 4}), ("full_width", {})])
def test_forward_equals_the_reference(golden, case_name: str, settings: dict[str, int]) -> None:
    case = golden(f"convnet_forward_{case_name}")
    images = torch.tensor(case["in_images"])
    model = build(ModelConfig(**settings), tuple(images.shape[1:]), 10)
    theta, labels = torch.tensor(case["in_theta"]), torch.tensor(case["in_labels"])
    assert [list(size) for _, size in model.layout] == [[n for n in row if n >= 0] for row in case["in_theta_shapes"].tolist()]
    for dtype, tolerance in [(torch.float64, 1e-10)] + ([(torch.float32, 2e-5)] if images.dtype == torch.float32 else []):
        logits = model(theta.to(dtype), images.to(dtype))
        embedding = model.embed(theta.to(dtype), images.to(dtype))
        loss = torch.nn.functional.cross_entropy(logits, labels)
        for actual, name in ((logits, "out_logits"), (embedding, "out_embedding"), (loss, "out_loss")):
            expected = torch.tensor(case[name])
            assert ((actual - expected).abs().max() / expected.abs().max()).item() <= tolerance, (name, dtype)


@pytest.mark.golden
@pytest.mark.parametrize("program", ["mtt-distillation", "ProgressiveDD", "DatasetCondensation"])
def test_parameter_counts_equal_the_reference(golden, program: str) -> None:
    counts = golden("parameter_counts")[program]
    checked = 0
    for name in NETWORKS.keys() & counts.keys():
        for data, expected in counts[name].items():
            assert build(ModelConfig(**NETWORKS[name]), *SETS[data]).size == expected, (name, data)
            checked += 1
    assert checked >= 3
    layout = build(ModelConfig(), *SETS["cifar10"]).layout
    assert [[name, list(size)] for name, size in layout] == counts["tensors_ConvNet_cifar10"]


def test_counts_of_the_papers() -> None:
    assert build(ModelConfig(), (3, 32, 32), 10).size == 320_010
    assert build(ModelConfig(), (3, 32, 32), 100).size == 504_420
    assert build(ModelConfig(depth=4), (3, 64, 64), 200).size == 857_160
    assert build(ModelConfig(), (1, 28, 28), 10).size == 317_706


def test_init_follows_torch_defaults_and_its_generator() -> None:
    model = build(ModelConfig(width=16), (3, 32, 32), 10)
    theta = model.init(stream(0, 0, "init"))
    assert torch.equal(theta, model.init(stream(0, 0, "init")))
    assert not torch.equal(theta, model.init(stream(1, 0, "init")))
    views = model.views(theta)
    bound = (16 * 9) ** -0.5
    for name in ("features.4.weight", "features.4.bias"):
        assert views[name].abs().max() <= bound
    assert views["features.4.weight"].abs().max() > 0.98 * bound
    assert (views["features.1.weight"] == 1).all() and (views["features.1.bias"] == 0).all()


def test_too_deep_and_unknown_are_refused() -> None:
    with pytest.raises(ConfigError, match="--model.depth=4"):
        build(ModelConfig(depth=4), (3, 8, 8), 10)
    with pytest.raises(ConfigError, match="--model.name=vit.*known: .*convnet"):
        build(ModelConfig(name="vit"), (3, 8, 8), 10)
