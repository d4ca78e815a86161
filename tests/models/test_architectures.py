"""Networks of the cross-architecture tables: counts of the reference, definitions against torchvision, sizes that they take."""

import math

import pytest
import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

from raydd.config import ModelConfig
from raydd.errors import ConfigError
from raydd.models import build, model_names, named, registry
from raydd.rng import stream

SETS = {"cifar10": ((3, 32, 32), 10), "cifar100": ((3, 32, 32), 100), "tiny": ((3, 64, 64), 200)}
PLAIN = {"MLP": "mlp", "LeNet": "lenet", "AlexNet": "alexnet", "AlexNetBN": "alexnet-bn", "VGG11": "vgg11", "VGG11BN": "vgg11-bn"}
FULL = {f"ResNet{depth}{norm}": f"resnet{depth}{suffix}" for depth in (10, 18) for norm, suffix in (("", ""), ("BN", "-bn"))}
POOLING = {"ResNet18_AP": "resnet18-ap", "ResNet18BN_AP": "resnet18-ap-bn"}
SWISH = {"ConvNetASwishBN": "convnet-bn"}
IDC = {
    "convnet": {"cifar10": "convnet", "cifar100": "convnet", "tiny": "convnet-d4"},
    **{f"resnet_ap{depth}_instance": dict.fromkeys(SETS, f"resnetap{depth}") for depth in (10, 18)},
    **{f"test.resnet{depth}_bn": dict.fromkeys(("cifar10", "cifar100"), f"resnet{depth}-thin") for depth in (10, 18)},
    "densenet_cifar": dict.fromkeys(("cifar10", "cifar100"), "densenet-thin"),
    "DenseNet121": dict.fromkeys(("cifar10", "cifar100"), "densenet121"),
}
for depth in (10, 18):
    for norm, suffix in (("instance", "in"), ("batch", "bn")):
        thin, full = f"resnet{depth}-thin-{suffix}", f"resnet{depth}-{suffix}"
        IDC[f"resnet{depth}_{norm}"] = {"cifar10": thin, "cifar100": thin, "tiny": full}


def network(name: str, data: str = "cifar10", **settings: object):
    return build(named(name, ModelConfig(**settings)), *SETS[data])


@pytest.mark.golden
@pytest.mark.parametrize("program", ["mtt-distillation", "ProgressiveDD", "DatasetCondensation"])
def test_counts_of_the_reference(golden, program: str) -> None:
    names = PLAIN | FULL | POOLING | SWISH
    counts = {name: sizes for name, sizes in golden("parameter_counts")[program].items() if name in names}
    assert len(counts) >= 4
    for name, sizes in counts.items():
        assert {data: network(names[name], data).size for data in sizes} == sizes, name


@pytest.mark.golden
def test_counts_of_idc(golden) -> None:
    counts = {name: sizes for name, sizes in golden("parameter_counts")["Efficient-Dataset-Condensation"].items() if name in IDC}
    assert counts.keys() == IDC.keys()
    for name, sizes in counts.items():
        assert {data: network(IDC[name][data], data).size for data in sizes} == sizes, name


def test_counts_that_a_specification_names() -> None:
    sizes = {
        "resnet10": 4_903_242, "resnet18": 11_173_962, "resnet18-ap": 11_250_762, "resnet10-thin": 1_228_970, "resnet18-thin": 2_797_610,
        "resnetap10": 1_228_970, "resnetap18": 2_797_610, "densenet-thin": 1_000_618, "densenet121": 6_956_298, "vgg11": 9_231_114,
        "alexnet": 1_872_202, "lenet": 62_006, "mlp": 411_146, "convnet": 320_010,
    }  # fmt: skip
    assert {name: network(name).size for name in model_names()} == sizes
    assert build(named("resnetap10", ModelConfig()), (3, 224, 224), 10).size == 4_910_922


@pytest.mark.parametrize(("suffix", "norm"), [("-in", lambda width: nn.GroupNorm(width, width)), ("-bn", nn.BatchNorm2d)])
def test_resnet18_is_torchvisions_behind_a_small_stem(suffix: str, norm: object) -> None:
    plain = ResNet(BasicBlock, [2, 2, 2, 2], num_classes=10, norm_layer=norm)
    plain.conv1, plain.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    model = network(f"resnet18{suffix}")
    assert [size for _, size in model.layout] == [tuple(parameter.shape) for parameter in plain.parameters()]
    theta = torch.cat([parameter.detach().flatten() for parameter in plain.parameters()])
    images = torch.randn(2, 3, 16, 16, generator=stream(0, 0, "images"))
    torch.testing.assert_close(model(theta, images), plain(images), rtol=1e-4, atol=1e-5)
    features = nn.Sequential(*list(plain.children())[:-1])(images).flatten(1)
    torch.testing.assert_close(model.embed(theta, images), features, rtol=1e-4, atol=1e-5)


def test_averaging_replaces_the_strides() -> None:
    # With a constant image every window is alike inside the border, so only the sides may tell the two networks apart.
    strided, averaged = network("resnet10-thin-nn"), network("resnetap10-nn")
    assert strided.size == averaged.size
    theta = averaged.init(stream(0, 0, "init"))
    images = torch.randn(2, 3, 32, 32, generator=stream(0, 0, "images"))
    assert strided.embed(theta, images).shape == averaged.embed(theta, images).shape == (2, 256)
    assert not torch.allclose(strided(theta, images), averaged(theta, images))

    def block(x: torch.Tensor, part: str, pool: bool) -> torch.Tensor:
        weights = {name.removeprefix(f"features.{part}."): view for name, view in averaged.views(theta).items()}
        halve = nn.functional.avg_pool2d if pool else lambda images, _: images
        first = halve(nn.functional.conv2d(x, weights["first.0.weight"], weights["first.0.bias"], padding=1).relu(), 2)
        second = nn.functional.conv2d(first, weights["second.0.weight"], weights["second.0.bias"], padding=1)
        beside = halve(nn.functional.conv2d(x, weights["shortcut.0.weight"], weights["shortcut.0.bias"]), 2) if pool else x
        return (second + beside).relu()

    stem = averaged.views(theta)
    x = nn.functional.conv2d(images, stem["features.0.weight"], stem["features.0.bias"], padding=1).relu()
    for part, pool in (("2", False), ("3", True), ("4", True), ("5", True)):
        x = block(x, part, pool)
    torch.testing.assert_close(averaged.embed(theta, images), x.mean((2, 3)), rtol=1e-4, atol=1e-5)


def test_strides_or_pooling() -> None:
    for name, strided in {"resnet18": True, "resnet18-ap": False, "resnetap10": False, "resnet10-thin": True}.items():
        with torch.device("meta"):
            modules = list(registry._ARCHITECTURES[name].build(ModelConfig(), (3, 32, 32), 10).modules())
        strides = {part.stride for part in modules if isinstance(part, nn.Conv2d)}
        assert strides == ({(1, 1), (2, 2)} if strided else {(1, 1)}) and any(isinstance(part, nn.AvgPool2d) for part in modules) != strided


@pytest.mark.parametrize("name", ["resnet10-thin", "resnetap10"])
def test_idcs_convolutions_start_he_normal(name: str) -> None:
    model = network(name)
    views = model.views(model.init(stream(0, 0, "init")))
    for part, weights in views.items():
        if weights.dim() == 4 and weights.numel() > 9000:
            fan_out = weights.shape[0] * weights.shape[2] * weights.shape[3]
            assert weights.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.05), part
            assert weights.abs().max() > 3 * weights.std()  # a uniform one would end at 1.73
    assert views["classifier.weight"].abs().max() <= 256**-0.5
    plain = network("resnet10").views(network("resnet10").init(stream(0, 0, "init")))["features.3.second.0.weight"]
    assert plain.abs().max() <= plain[0].numel() ** -0.5


@pytest.mark.parametrize("name", sorted({*model_names()} - {"densenet121", "densenet-thin", "resnet18", "resnet18-ap", "vgg11"}))
@pytest.mark.parametrize("shape", [(3, 32, 32), (3, 64, 64), (1, 28, 28)], ids=lambda shape: str(shape[1]))
def test_every_network_takes_these_sizes(name: str, shape: tuple[int, int, int]) -> None:
    model = build(named(name, ModelConfig(width=16)), shape, 7)
    theta = torch.zeros(model.size, device="meta")
    images = torch.zeros(2, *shape, device="meta")
    assert model(theta, images).shape == (2, 7) and model.embed(theta, images).dim() == 2


@pytest.mark.parametrize("name", ["alexnet", "mlp", "resnet10-thin", "resnetap10-bn", "densenet-thin"])
def test_digits_fit(name: str) -> None:
    model = build(named(name, ModelConfig()), (1, 8, 8), 10)
    images = torch.randn(2, 1, 8, 8, generator=stream(0, 0, "images"))
    logits = model(model.init(stream(0, 0, "init")), images)
    assert logits.shape == (2, 10) and not torch.allclose(logits[0], logits[1])


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("vgg11", "instance normalisation"), ("vgg11-bn", "pooling"), ("lenet", "no room"), ("resnet10", "-bn, would not mind"),
        ("resnetap10", "instance"), ("densenet-thin-in", "instance"),
    ],
)  # fmt: skip
def test_too_small_images_are_refused_by_name_and_size(name: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=rf"{named(name, ModelConfig()).name} .*8 x 8.*{reason}"):
        build(named(name, ModelConfig()), (1, 8, 8), 10)


def test_settings_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(ConfigError, match="norm=layer does not go with --model densenet121"):
        build(ModelConfig(name="densenet121", norm="layer"), (3, 32, 32), 10)
    with pytest.raises(ConfigError, match="norm=group needs widths divisible by 4, and convnet has 6"):
        build(ModelConfig(norm="group", width=6), (3, 32, 32), 10)
    assert build(ModelConfig(name="densenet-thin", norm="none"), (3, 32, 32), 10).size < 1_000_618


def test_names_mean_the_network_of_the_papers() -> None:
    own = ModelConfig(width=32, depth=4, norm="group", activation="swish")
    assert named("convnet", own) is own
    assert named("convnet-bn", own) == ModelConfig(width=32, depth=4, norm="batch", activation="swish")
    assert named("convnet-d2-w8", own) == ModelConfig(width=8, depth=2, norm="instance", activation="swish")
    assert [named(name, own).norm for name in ("resnet18", "resnet18-thin", "resnet18-bn", "alexnet")] == [
        "instance",
        "batch",
        "batch",
        "none",
    ]
    assert named("resnet18-ap-bn", own).name == "resnet18-ap"
    for text, words in {
        "vit": "--model vit is not a model; known: alexnet", "resnet18-w64": "no variant 'w64'; of its settings it reads norm",
        "convnet-xy": "no variant 'xy'", "mlp-bn": "reads nothing", "convnet-d0": "no variant 'd0'",
    }.items():  # fmt: skip
        with pytest.raises(ConfigError, match=words):
            named(text, own)


def test_running_statistics_are_torchs() -> None:
    plain = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=5)
    plain.conv1, plain.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    model = build(ModelConfig(name="resnet10", norm="batch"), (3, 8, 8), 5)
    theta = torch.cat([parameter.detach().flatten() for parameter in plain.parameters()])
    statistics = model.initial_statistics()
    assert len(statistics) == model.statistics_size == sum(b.numel() for n, b in plain.named_buffers() if "running" in n)
    for step in range(3):
        images = 2 + torch.randn(6, 3, 8, 8, generator=stream(0, step, "images"))
        before = statistics.clone()
        logits, after = model.observe(theta, images, statistics)
        assert torch.equal(statistics, before) and not torch.equal(after, before)
        torch.testing.assert_close(logits, plain(images), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(model(theta, images), logits)
        statistics = after
    expected = torch.cat([buffer for name, buffer in plain.named_buffers() if "running" in name])
    torch.testing.assert_close(statistics, expected, rtol=1e-4, atol=1e-5)
    plain.eval()
    torch.testing.assert_close(model(theta, images[:1], statistics), plain(images[:1]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.embed(theta, images, statistics)[:1], model.embed(theta, images[:1], statistics), rtol=1e-4, atol=1e-4)


def test_networks_without_batch_normalisation_have_no_statistics() -> None:
    model = build(ModelConfig(width=8), (3, 32, 32), 10)
    assert model.statistics_size == 0 and model.initial_statistics().shape == (0,)
