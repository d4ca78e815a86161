"""Residual networks for small images, three families: those of the MTT, DC and PDD programs, and the two of IDC's.

All have four stages of basic blocks, the last three of which halve the side.

| name | widths | halving | end | program |
|---|---|---|---|---|
| resnet10, resnet18 | 64 to 512 | stride | average over all pixels | MTT, PDD, DC (networks.py); IDC's for other data than CIFAR |
| resnet18-ap | 64 to 512 | average pooling | all pixels | MTT, PDD, DC |
| resnet10-thin, resnet18-thin | 32 to 256 | stride | average over all pixels | IDC for CIFAR (models/resnet.py) |
| resnetap10, resnetap18 | by size | average pooling | average over all pixels | IDC (models/resnet_ap.py) |

Source: specs/dc_dsa_dm_cafe_selection_cl.md section 2.2, specs/idc_dream_pdd.md section 1.12. "ResNet-10" of a table is therefore one
of two networks: full width with instance normalisation in the rows of MTT, thin with batch normalisation in those of IDC.
"""

from torch import Tensor, nn
from torch.nn.functional import relu

from raydd.config import ModelConfig
from raydd.models.flat import Shape
from raydd.models.parts import Classifier, Sides, halved, norm
from raydd.models.registry import register_model

_FULL, _THIN = (64, 128, 256, 512), (32, 64, 128, 256)


class Block(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut, from `channels` of `sides` pixels to `width`.

    `halving` is "" (the side stays), "stride", or "pool": no convolution has a stride, and the outputs of the first and of the
    shortcut are averaged over 2 x 2 pixels. Convolutions have a bias only without normalisation.
    """

    def __init__(self, config: ModelConfig, channels: int, width: int, sides: Sides, halving: str):
        super().__init__()
        stride, bias = 2 if halving == "stride" else 1, config.norm == "none"
        pool = [nn.AvgPool2d(2)] if halving == "pool" else []
        after = after_block(sides, halving)
        first = norm(config, width, sides if pool else after)
        self.first = nn.Sequential(nn.Conv2d(channels, width, 3, stride, 1, bias=bias), *first, nn.ReLU(), *pool)
        self.second = nn.Sequential(nn.Conv2d(width, width, 3, 1, 1, bias=bias), *norm(config, width, after))
        projection = [nn.Conv2d(channels, width, 1, stride, bias=bias), *pool, *norm(config, width, after)]
        self.shortcut = nn.Sequential(*(projection if halving or channels != width else []))

    def forward(self, images: Tensor) -> Tensor:
        return relu(self.second(self.first(images)) + self.shortcut(images))


def after_block(sides: Sides, halving: str) -> Sides:
    """The sides of a block's output. Raises `TooSmall` when pooling leaves nothing."""
    if halving == "pool":
        return halved(sides)
    return ((sides[0] + 1) // 2, (sides[1] + 1) // 2) if halving else sides


def resnet(
    config: ModelConfig,
    shape: Shape,
    classes: int,
    blocks: int,
    *,
    widths: tuple[int, ...] = _FULL,
    halving: str = "stride",
    stem: tuple[int, int] = (3, 1),
    flatten: bool = False,
    he_normal: bool = False,
) -> Classifier:
    """Four stages of `blocks` blocks each; their widths, how they halve the side, and `he_normal` initial convolutions.

    `stem` is the side of the first convolution and of the average pooling behind it; `flatten` classifies all pixels of the last
    stage instead of their average.
    """
    channels, *rest = shape
    sides, width, (kernel, pool) = (rest[0], rest[1]), widths[0], stem
    convolution = nn.Conv2d(channels, width, kernel, 1, kernel // 2, bias=config.norm == "none")
    layers = [convolution, *norm(config, width, sides), nn.ReLU()]
    if pool > 1:
        layers.append(nn.AvgPool2d(pool))
        sides = (sides[0] // pool, sides[1] // pool)
    channels = width
    for stage, width in enumerate(widths):
        for place in range(blocks):
            how = halving if stage and not place else ""
            layers.append(Block(config, channels, width, sides, how))
            channels, sides = width, after_block(sides, how)
    end, features = (nn.Flatten(), channels * sides[0] * sides[1]) if flatten else (nn.AdaptiveAvgPool2d(1), channels)
    return Classifier(nn.Sequential(*layers, end), nn.Linear(features, classes), he_normal)


def pooling_resnet(config: ModelConfig, shape: Shape, classes: int, blocks: int) -> Classifier:
    """ResNetAP: thin up to 32 pixels, full width above; images of more than 64 pixels are pooled behind the first convolution.

    The program goes by the data set's name, and so builds the wide one for MNIST and SVHN too.
    """
    side = max(shape[1:])
    stem = (3, 1) if side <= 64 else (3, 2) if side <= 128 else (7, 4)
    widths = _THIN if side <= 32 else _FULL
    return resnet(config, shape, classes, blocks, widths=widths, halving="pool", stem=stem, he_normal=True)


@register_model("resnet10")
def resnet10(config: ModelConfig, shape: Shape, classes: int) -> Classifier:
    """PDD's ResNet10; 4,903,242 parameters for CIFAR-10."""
    return resnet(config, shape, classes, 1)


@register_model("resnet18")
def resnet18(config: ModelConfig, shape: Shape, classes: int) -> Classifier:
    """ResNet18 of MTT, PDD and DC; 11,173,962 parameters for CIFAR-10."""
    return resnet(config, shape, classes, 2)


@register_model("resnet18-ap")
def resnet18_ap(config: ModelConfig, shape: Shape, classes: int) -> Classifier:
    """ResNet18_AP of MTT, PDD and DC; 11,250,762 parameters for CIFAR-10."""
    return resnet(config, shape, classes, 2, halving="pool", flatten=True)


@register_model("resnet10-thin", norm="batch")
def resnet10_thin(config: ModelConfig, shape: Shape, classes: int) -> Classifier:
    """IDC's ResNet-10 for CIFAR; 1,228,970 parameters for CIFAR-10."""
    return resnet(config, shape, classes, 1, widths=_THIN, he_normal=True)


@register_model("resnet18-thin", norm="batch")
def resnet18_thin(config: ModelConfig, shape: Shape, classes: int) -> Classifier:
    """IDC's ResNet-18 for CIFAR, of half the usual width; 2,797,610 parameters for CIFAR-10."""
    return resnet(config, shape, classes, 2, widths=_THIN, he_normal=True)


@register_model("resnetap10")
def resnetap10(config: ModelConfig, shape: Shape, classes: int) -> Classifier:
    """IDC's ResNetAP-10; 1,228,970 parameters for CIFAR-10, 4,910,922 for 10 classes of 224 x 224 pixels."""
    return pooling_resnet(config, shape, classes, 1)


@register_model("resnetap18")
def resnetap18(config: ModelConfig, shape: Shape, classes: int) -> Classifier:
    """IDC's ResNetAP-18; 2,797,610 parameters for CIFAR-10."""
    return pooling_resnet(config, shape, classes, 2)
