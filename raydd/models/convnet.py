"""The ConvNet of the papers: `depth` blocks of convolution, normalisation, activation and pooling, then one linear layer.

Source: specs/mtt_pdd.md section 1.1 and specs/dc_dsa_dm_cafe_selection_cl.md section 2.1.
"""

import math

import torch
from torch import Tensor, nn

from raydd.config import ModelConfig
from raydd.errors import ConfigError
from raydd.models.flat import Shape
from raydd.models.parts import Classifier, norm
from raydd.models.registry import register_model


class ConvNet(Classifier):
    """A classifier that also gives the maps between its blocks."""

    def maps(self, images: Tensor) -> list[Tensor]:
        """Every block's map after its activation and before pooling, then the output of the last block.

        Source: specs/dc_dsa_dm_cafe_selection_cl.md section 7.
        """
        maps = []
        for layer in self.features:
            images = layer(images)
            if isinstance(layer, tuple(_ACTIVATIONS.values())):
                maps.append(images)
        return [*maps, images]


@register_model("convnet", reads=("norm", "width", "depth", "activation", "pooling"))
def convnet(config: ModelConfig, shape: Shape, classes: int) -> ConvNet:
    """Build the network; the first convolution of grey images is padded by 3, which turns 28 pixels into 32.

    Raises `ConfigError` when pooling leaves no pixel.
    """
    channels, *sides = shape
    layers: list[nn.Module] = []
    for block in range(config.depth):
        padding = 3 if channels == 1 and block == 0 else 1
        layers.append(nn.Conv2d(channels, config.width, 3, padding=padding))
        sides = [side + 2 * padding - 2 for side in sides]
        left = sides if config.pooling == "none" else [side // 2 for side in sides]
        if min(left) < 1:
            raise ConfigError(
                [f"--model.depth={config.depth} pools images of {shape[1]} x {shape[2]} away; lower it or raise --data.size."]
            )
        layers += norm(config, config.width, (sides[0], sides[1]))
        layers.append(_ACTIVATIONS[config.activation]())
        if config.pooling != "none":
            layers.append(nn.AvgPool2d(2) if config.pooling == "avg" else nn.MaxPool2d(2))
        channels, sides = config.width, left
    return ConvNet(nn.Sequential(*layers), nn.Linear(config.width * math.prod(sides), classes))


class _LeakyReLU(nn.LeakyReLU):
    def __init__(self) -> None:
        super().__init__(0.01)


_ACTIVATIONS = {"relu": nn.ReLU, "sigmoid": torch.nn.Sigmoid, "leakyrelu": _LeakyReLU, "swish": nn.SiLU}
