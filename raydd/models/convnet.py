"""The ConvNet of the papers: `depth` blocks of convolution, normalisation, activation and pooling, then one linear layer.

Source: specs/mtt_pdd.md section 1.1 and specs/dc_dsa_dm_cafe_selection_cl.md section 2.1.
"""

import math

import torch
from torch import Tensor, nn

from raydd.config import ModelConfig
from raydd.errors import ConfigError
from raydd.models.flat import Shape, register_model


class ConvNet(nn.Module):
    """Logits (B, classes) of images (B, C, H, W); `embed` gives the features (B, F) before the classifier."""

    def __init__(self, features: nn.Sequential, classifier: nn.Linear):
        super().__init__()
        self.features, self.classifier = features, classifier

    def embed(self, images: Tensor) -> Tensor:
        """The flattened output of the last block, in channel, row, column order."""
        return self.features(images).flatten(1)

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

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.embed(images))


@register_model("convnet")
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
        layers += _norm(config, (config.width, *sides))
        layers.append(_ACTIVATIONS[config.activation]())
        if config.pooling != "none":
            layers.append(nn.AvgPool2d(2) if config.pooling == "avg" else nn.MaxPool2d(2))
            sides = [side // 2 for side in sides]
        channels = config.width
        if min(sides) < 1:
            raise ConfigError(
                [f"--model.depth={config.depth} pools images of {shape[1]} x {shape[2]} away; lower it or raise --data.size."]
            )
    return ConvNet(nn.Sequential(*layers), nn.Linear(config.width * math.prod(sides), classes))


def _norm(config: ModelConfig, shape: tuple[int, ...]) -> list[nn.Module]:
    width = shape[0]
    if config.norm == "instance":
        return [nn.GroupNorm(width, width)]
    if config.norm == "group":
        return [nn.GroupNorm(4, width)]
    if config.norm == "layer":
        return [nn.LayerNorm(shape)]
    if config.norm == "batch":
        # Statistics are those of the batch at hand, in training and in testing: a flat vector carries no running ones.
        return [nn.BatchNorm2d(width, track_running_stats=False)]
    return []


class _LeakyReLU(nn.LeakyReLU):
    def __init__(self) -> None:
        super().__init__(0.01)


_ACTIVATIONS = {"relu": nn.ReLU, "sigmoid": torch.nn.Sigmoid, "leakyrelu": _LeakyReLU, "swish": nn.SiLU}
