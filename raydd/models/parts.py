"""What several architectures are made of: features before a linear classifier, normalisation, pooling."""

from torch import Tensor, nn

from raydd.config import ModelConfig
from raydd.errors import ConfigError
from raydd.models.registry import TooSmall

Sides = tuple[int, int]


class Classifier(nn.Module):
    """Logits (B, classes) of images (B, C, H, W); `embed` gives the features (B, F) before the classifier.

    `he_normal` says how `FlatModel.init` draws convolutions: normal with variance 2 / fan_out, in place of torch's default.
    """

    def __init__(self, features: nn.Module, classifier: nn.Linear, he_normal: bool = False):
        super().__init__()
        self.features, self.classifier, self.he_normal = features, classifier, he_normal

    def embed(self, images: Tensor) -> Tensor:
        """The flattened features, in channel, row, column order."""
        return self.features(images).flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.embed(images))


def norm(config: ModelConfig, width: int, sides: Sides) -> list[nn.Module]:
    """The normalisation `config.norm` of (B, width, *sides): a list of one module, or of none.

    Raises `TooSmall` where instance normalisation would make everything constant, `ConfigError` for a width without 4 groups.
    """
    if config.norm == "instance":
        if max(sides) <= 1:
            # A lone pixel less its own mean is nothing: no image would get through.
            raise TooSmall("instance normalisation of single pixels leaves nothing of them (batch normalisation, -bn, would not mind)")
        return [nn.GroupNorm(width, width)]
    if config.norm == "group":
        if width % 4:
            raise ConfigError([f"--model.norm=group needs widths divisible by 4, and {config.name} has {width}."])
        return [nn.GroupNorm(4, width)]
    if config.norm == "layer":
        return [nn.LayerNorm((width, *sides))]
    return [nn.BatchNorm2d(width)] if config.norm == "batch" else []


def halved(sides: Sides) -> Sides:
    """The sides after pooling by 2. Raises `TooSmall` when no pixel is left."""
    height, width = sides
    if min(sides) < 2:
        raise TooSmall(f"its pooling would leave nothing of {height} x {width} pixels")
    return height // 2, width // 2
