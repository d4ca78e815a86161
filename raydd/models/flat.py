"""Networks as functions of one flat parameter vector, and the registry of their architectures.

Trajectories, gradients and stores deal in vectors theta (P,); a network is only the rule that turns (theta, images) into logits.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call

from raydd.config import ModelConfig
from raydd.errors import ConfigError

Shape = tuple[int, int, int]
Architecture = Callable[[ModelConfig, Shape, int], nn.Module]

_ARCHITECTURES: dict[str, Architecture] = {}


def register_model(name: str) -> Callable[[Architecture], Architecture]:
    """Decorator: make `(config, (C, H, W), classes) -> nn.Module` a value of `--model.name`."""

    def add(architecture: Architecture) -> Architecture:
        _ARCHITECTURES[name] = architecture
        return architecture

    return add


def model_names() -> list[str]:
    """Every registered architecture."""
    return sorted(_ARCHITECTURES)


def build(config: ModelConfig, shape: Shape, classes: int) -> "FlatModel":
    """The network of a configuration for images (C, H, W). Raises `ConfigError` for unknown names and images too small."""
    if config.name not in _ARCHITECTURES:
        raise ConfigError([f"--model.name={config.name} is not a model; known: {', '.join(model_names())}."])
    with torch.device("meta"):
        module = _ARCHITECTURES[config.name](config, shape, classes)
    return FlatModel(module, shape, classes, config)


class FlatModel:
    """A network without parameters of its own: call it with theta (P,) and images (B, C, H, W), get logits (B, classes).

    `size` is P. The flat order is that of `nn.Module.parameters()`, each tensor in C order, as the reference programs store it.
    """

    def __init__(self, module: nn.Module, shape: Shape, classes: int, config: ModelConfig):
        self._module, self.shape, self.classes, self.config = module, shape, classes, config
        self.layout = [(name, tuple(parameter.shape)) for name, parameter in module.named_parameters()]
        self._sizes = [math.prod(size) for _, size in self.layout]
        self.size = sum(self._sizes)
        self._embedding, self._maps = _Call(module, "embed"), _Call(module, "maps")

    def views(self, theta: Tensor) -> dict[str, Tensor]:
        """The parameter tensors as views of theta (P,), by name."""
        return {name: part.view(size) for (name, size), part in zip(self.layout, theta.split(self._sizes), strict=True)}

    def __call__(self, theta: Tensor, images: Tensor) -> Tensor:
        """Logits (B, classes), differentiable to any order in theta and images."""
        return functional_call(self._module, self.views(theta), (images,))

    def embed(self, theta: Tensor, images: Tensor) -> Tensor:
        """Features (B, F) before the classifier, for networks that define `embed`."""
        return self._call(self._embedding, theta, images)

    def maps(self, theta: Tensor, images: Tensor) -> list[Tensor]:
        """Every block's map after its activation and before pooling, (B, C, H, W) each, then the output of the last block.

        For networks that define `maps`.
        """
        return self._call(self._maps, theta, images)

    def _call(self, method: "_Call", theta: Tensor, images: Tensor) -> Any:
        return functional_call(method, {f"network.{name}": view for name, view in self.views(theta).items()}, (images,))

    def init(self, generator: Generator) -> Tensor:
        """Fresh parameters float32 (P,) by torch's default rules, drawn from `generator` alone.

        Convolution and linear weights and biases are uniform in +-1/sqrt(fan_in); norms start at scale 1 and shift 0
        (specs/mtt_pdd.md section 1.1).
        """
        parts = []
        for module in self._module.modules():
            own = dict(module.named_parameters(recurse=False))
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                bound = 1 / math.sqrt(math.prod(module.weight.shape[1:]))
                parts += [torch.empty(p.shape).uniform_(-bound, bound, generator=generator) for p in own.values()]
            elif isinstance(module, (nn.GroupNorm, nn.LayerNorm, nn.BatchNorm2d)):
                parts += [torch.full(p.shape, 1.0 if name == "weight" else 0.0) for name, p in own.items()]
            elif own:
                raise TypeError(f"no rule to initialise the parameters of {type(module).__name__}")
        return torch.cat([part.flatten() for part in parts])


class _Call(nn.Module):
    """`functional_call` runs `forward` only; this makes another method of the network the forward."""

    def __init__(self, network: nn.Module, method: str):
        super().__init__()
        self.network, self.method = network, method

    def forward(self, images: Tensor) -> Any:
        return getattr(self.network, self.method)(images)
