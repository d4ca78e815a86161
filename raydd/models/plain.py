"""The plain networks of DC's cross-architecture tables: VGG11, AlexNet, LeNet and a perceptron.

Source: specs/dc_dsa_dm_cafe_selection_cl.md section 2.2 (DatasetCondensation networks.py). Grey images get a wider border in the first
convolution, which turns 28 pixels into 32. The last layer fits the pixels that are left, where the programs fix 32 x 32.
"""

import itertools
import math

from torch import nn

from raydd.config import ModelConfig
from raydd.models.flat import Shape
from raydd.models.parts import Classifier, halved, norm
from raydd.models.registry import TooSmall, register_model

# (channels, kernel, border of colour images, border of grey images), or "pool" for the largest of 2 x 2 pixels
Layer = tuple[int, int, int, int] | str

_VGG11: tuple[Layer, ...] = (
    (64, 3, 1, 3), "pool", (128, 3, 1, 1), "pool", (256, 3, 1, 1), (256, 3, 1, 1), "pool",
    (512, 3, 1, 1), (512, 3, 1, 1), "pool", (512, 3, 1, 1), (512, 3, 1, 1), "pool",
)  # fmt: skip
_ALEXNET: tuple[Layer, ...] = (
    (128, 5, 2, 4), "pool", (192, 5, 2, 2), "pool", (256, 3, 1, 1), (192, 3, 1, 1), (192, 3, 1, 1), "pool",
)  # fmt: skip
_LENET: tuple[Layer, ...] = ((6, 5, 0, 2), "pool", (16, 5, 0, 0), "pool")


def convolutions(config: ModelConfig, shape: Shape, plan: tuple[Layer, ...]) -> tuple[list[nn.Module], int]:
    """The layers of a plan, each convolution with its normalisation and ReLU, and the number of features that they give.

    Raises `TooSmall` when a layer has no pixel left.
    """
    channels, *rest = shape
    sides, grey, layers = (rest[0], rest[1]), shape[0] == 1, []
    for layer in plan:
        if isinstance(layer, str):
            layers.append(nn.MaxPool2d(2))
            sides = halved(sides)
            continue
        width, kernel, border = *layer[:2], layer[3 if grey else 2]
        sides = (sides[0] + 2 * border - kernel + 1, sides[1] + 2 * border - kernel + 1)
        if min(sides) < 1:
            raise TooSmall(f"a convolution of {kernel} x {kernel} has no room")
        layers += [nn.Conv2d(channels, width, kernel, padding=border), *norm(config, width, sides), nn.ReLU()]
        channels = width
    return layers, channels * math.prod(sides)


def linears(sizes: tuple[int, ...]) -> list[nn.Module]:
    """Linear layers with ReLU from each size to the next."""
    return [layer for pair in itertools.pairwise(sizes) for layer in (nn.Linear(*pair), nn.ReLU())]


@register_model("vgg11")
def vgg11(config: ModelConfig, shape: Shape, classes: int) -> Classifier:
    """VGG11 with one linear layer; 9,231,114 parameters for CIFAR-10."""
    layers, features = convolutions(config, shape, _VGG11)
    return Classifier(nn.Sequential(*layers), nn.Linear(features, classes))


@register_model("alexnet", norm="none")
def alexnet(config: ModelConfig, shape: Shape, classes: int) -> Classifier:
    """AlexNet for small images; 1,872,202 parameters for CIFAR-10 without normalisation."""
    layers, features = convolutions(config, shape, _ALEXNET)
    return Classifier(nn.Sequential(*layers), nn.Linear(features, classes))


@register_model("lenet", norm="none")
def lenet(config: ModelConfig, shape: Shape, classes: int) -> Classifier:
    """LeNet with ReLU and largest-value pooling; 62,006 parameters for CIFAR-10 without normalisation."""
    layers, features = convolutions(config, shape, _LENET)
    return Classifier(nn.Sequential(*layers, nn.Flatten(), *linears((features, 120, 84))), nn.Linear(84, classes))


@register_model("mlp", norm="none", reads=())
def mlp(config: ModelConfig, shape: Shape, classes: int) -> Classifier:
    """Two hidden layers of 128; 411,146 parameters for CIFAR-10. It has no normalisation."""
    return Classifier(nn.Sequential(nn.Flatten(), *linears((math.prod(shape), 128, 128))), nn.Linear(128, classes))
