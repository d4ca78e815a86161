"""DenseNets for small images: torchvision's class behind a 3 x 3 convolution instead of the stem for ImageNet.

Source: specs/dc_dsa_dm_cafe_selection_cl.md section 2.2 (IDC models/densenet_cifar.py). The "DenseNet-121" of IDC's tables is the one of
growth 12. torchvision concatenates the channels of a dense block in the other order, which is a matter of naming.
"""

from torch import nn

from raydd.config import ModelConfig
from raydd.errors import ConfigError
from raydd.models.flat import Shape
from raydd.models.parts import Classifier, Sides, halved, norm
from raydd.models.registry import register_model

_BLOCKS = (6, 12, 24, 16)


def densenet(config: ModelConfig, shape: Shape, classes: int, growth: int) -> Classifier:
    """Four dense blocks with transitions that halve side and channels, the average over all pixels, one linear layer."""
    from torchvision.models.densenet import DenseNet  # takes a second to import

    if config.norm == "layer":
        raise ConfigError([f"--model.norm=layer does not go with --model {config.name}; use batch, instance, group or none."])
    network = DenseNet(growth, _BLOCKS, num_init_features=2 * growth, num_classes=classes)
    parts = dict(network.features.named_children())
    layers: list[nn.Module] = [nn.Conv2d(shape[0], 2 * growth, 3, padding=1, bias=False)]
    sides = (shape[1], shape[2])
    for name in ("denseblock1", "transition1", "denseblock2", "transition2", "denseblock3", "transition3", "denseblock4", "norm5"):
        part = nn.Sequential(parts[name])
        _renormalise(part, config, sides)
        layers.append(part)
        if name.startswith("transition"):
            sides = halved(sides)
    return Classifier(nn.Sequential(*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(1)), network.classifier)


def _renormalise(module: nn.Module, config: ModelConfig, sides: Sides) -> None:
    """Put the configured normalisation in place of torchvision's batch normalisation."""
    for name, part in module.named_children():
        if isinstance(part, nn.BatchNorm2d):
            setattr(module, name, nn.Sequential(*norm(config, part.num_features, sides)))
        else:
            _renormalise(part, config, sides)


@register_model("densenet-thin", norm="batch")
def densenet_thin(config: ModelConfig, shape: Shape, classes: int) -> Classifier:
    """IDC's densenet_cifar, growth 12; 1,000,618 parameters for CIFAR-10."""
    return densenet(config, shape, classes, 12)


@register_model("densenet121", norm="batch")
def densenet121(config: ModelConfig, shape: Shape, classes: int) -> Classifier:
    """DenseNet-121, growth 32; 6,956,298 parameters for CIFAR-10."""
    return densenet(config, shape, classes, 32)
