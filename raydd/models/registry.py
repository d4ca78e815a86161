"""Architectures by name, and the short names by which networks are evaluated: `resnet18`, `resnet18-bn`, `convnet-d4`."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from raydd.config import ModelConfig
from raydd.errors import ConfigError
from raydd.models.flat import FlatModel, Shape

Build = Callable[[ModelConfig, Shape, int], nn.Module]

_NORMS = {"in": "instance", "bn": "batch", "ln": "layer", "gn": "group", "nn": "none"}


class TooSmall(Exception):
    """Images of which an architecture leaves nothing; the text says where. `build` tells the user."""


@dataclass(frozen=True)
class Architecture:
    """A registered network.

    norm   its normalisation in the papers, which it gets when it is evaluated by name
    reads  the other fields of `ModelConfig` that it heeds; fields that it does not read change nothing
    """

    build: Build
    norm: str
    reads: tuple[str, ...]


_ARCHITECTURES: dict[str, Architecture] = {}


def register_model(name: str, norm: str = "instance", reads: tuple[str, ...] = ("norm",)) -> Callable[[Build], Build]:
    """Decorator: make `(config, (C, H, W), classes) -> nn.Module` a value of `--model.name`.

    The module's parameters may belong to `Conv2d`, `Linear` and the normalisations of torch; see `FlatModel.init`.
    """

    def add(build: Build) -> Build:
        _ARCHITECTURES[name] = Architecture(build, norm, reads)
        return build

    return add


def model_names() -> list[str]:
    """Every registered architecture."""
    return sorted(_ARCHITECTURES)


def build(config: ModelConfig, shape: Shape, classes: int) -> FlatModel:
    """The network of a configuration for images (C, H, W). Raises `ConfigError` for unknown names and images too small."""
    if config.name not in _ARCHITECTURES:
        raise ConfigError([f"--model.name={config.name} is not a model; known: {', '.join(model_names())}."])
    try:
        with torch.device("meta"):
            module = _ARCHITECTURES[config.name].build(config, shape, classes)
    except TooSmall as reason:
        raise ConfigError(
            [
                f"--model {config.name} (norm {config.norm}) cannot take images of {shape[1]} x {shape[2]}: {reason}. "
                "Take another model, or larger images (--data.size)."
            ]
        ) from reason
    return FlatModel(module, shape, classes, config)


def named(text: str, own: ModelConfig) -> ModelConfig:
    """The network that a short name means beside a run whose own network is `own`.

    The run's own name is its own network as it is. Another one has the normalisation of the papers. Suffixes change it: `-in`,
    `-bn`, `-ln`, `-gn`, `-nn` (instance, batch, layer, group, no normalisation), `-d4` (depth) and `-w64` (width), for networks
    that read these settings. Raises `ConfigError` for names that mean nothing.
    """
    if text == own.name:
        return own
    found = [name for name in _ARCHITECTURES if text == name or text.startswith(f"{name}-")]
    if not found:
        raise ConfigError([f"--model {text} is not a model; known: {', '.join(model_names())}, each with {_suffixes()}."])
    name = max(found, key=len)
    config = replace(own, name=name, norm=_ARCHITECTURES[name].norm)
    for suffix in filter(None, text[len(name) :].split("-")):
        changes = _change(suffix)
        if not changes or not changes.keys() <= set(_ARCHITECTURES[name].reads):
            known = ", ".join(_ARCHITECTURES[name].reads) or "nothing"
            raise ConfigError([f"--model {text}: {name} has no variant {suffix!r}; of its settings it reads {known} ({_suffixes()})."])
        config = replace(config, **changes)
    return config


def _change(suffix: str) -> dict[str, Any]:
    """The setting that a suffix changes; nothing for an unknown one."""
    if suffix in _NORMS:
        return {"norm": _NORMS[suffix]}
    number = re.fullmatch(r"([dw])([1-9]\d*)", suffix)
    return {{"d": "depth", "w": "width"}[number[1]]: int(number[2])} if number else {}


def _suffixes() -> str:
    return f"-{', -'.join(_NORMS)}, -dDEPTH or -wWIDTH"
