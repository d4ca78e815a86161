"""Networks as functions of one flat parameter vector.

Trajectories, gradients and stores deal in vectors theta (P,); a network is only the rule that turns (theta, images) into logits.
"""

import copy
import functools
import math
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call

from raydd.config import ModelConfig

Shape = tuple[int, int, int]


class FlatModel:
    """A network without parameters of its own: call it with theta (P,) and images (B, C, H, W), get logits (B, classes).

    `size` is P. The flat order is that of `nn.Module.parameters()`, each tensor in C order, as the reference programs store it.

    Batch normalisation uses the statistics of the batch at hand, as in the training mode of torch, and every call is pure. Who
    needs running statistics keeps them as one vector (Q,), Q being `statistics_size` (0 without batch normalisation): `observe`
    updates them, and a call that is given them normalises with them, as in the evaluation mode of torch.
    """

    def __init__(self, module: nn.Module, shape: Shape, classes: int, config: ModelConfig):
        self.shape, self.classes, self.config = shape, classes, config
        self.layout = [(name, tuple(parameter.shape)) for name, parameter in module.named_parameters()]
        self._sizes = [math.prod(size) for _, size in self.layout]
        self.size = sum(self._sizes)
        self._module, self._norms = module, _without_running_statistics(module)
        self._statistics = [(f"{name}.{kind}", size) for name, size in self._norms.items() for kind in ("running_mean", "running_var")]
        self.statistics_size = sum(size for _, size in self._statistics)

    def views(self, theta: Tensor) -> dict[str, Tensor]:
        """The parameter tensors as views of theta (P,), by name."""
        return {name: part.view(size) for (name, size), part in zip(self.layout, theta.split(self._sizes), strict=True)}

    def __call__(self, theta: Tensor, images: Tensor, statistics: Tensor | None = None) -> Tensor:
        """Logits (B, classes), differentiable to any order in theta and images; `statistics` (Q,) stand for those of the batch."""
        module, tensors = self._mode(theta, statistics)
        return functional_call(module, tensors, (images,))

    def embed(self, theta: Tensor, images: Tensor, statistics: Tensor | None = None) -> Tensor:
        """Features (B, F) before the classifier, for networks that define `embed`."""
        return self._call("embed", theta, images, statistics)

    def maps(self, theta: Tensor, images: Tensor, statistics: Tensor | None = None) -> list[Tensor]:
        """Every block's map after its activation and before pooling, (B, C, H, W) each, then the output of the last block.

        For networks that define `maps`, as ConvNets do.
        """
        return self._call("maps", theta, images, statistics)

    def observe(self, theta: Tensor, images: Tensor, statistics: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, classes) with the statistics of the batch, and the running statistics (Q,) after it.

        Each running value moves by a tenth towards that of the batch; variances are unbiased (torch's default).
        """
        # Copies, which torch updates in place: the vector handed over stays as it is, also inside torch.func.vmap.
        running = {name: part.clone() for name, part in self._running(statistics).items()}
        logits = functional_call(self._observing, {**self.views(theta), **running}, (images,))
        return logits, torch.cat(list(running.values()))

    def initial_statistics(self) -> Tensor:
        """Running statistics float32 (Q,) before the first batch: means 0, variances 1."""
        parts = [torch.zeros(size) if name.endswith("mean") else torch.ones(size) for name, size in self._statistics]
        return torch.cat(parts) if parts else torch.zeros(0)

    def init(self, generator: Generator) -> Tensor:
        """Fresh parameters float32 (P,) by torch's default rules, drawn from `generator` alone.

        Convolution and linear weights and biases are uniform in +-1/sqrt(fan_in); norms start at scale 1 and shift 0
        (specs/mtt_pdd.md section 1.1). A module with a true attribute `he_normal` has convolution weights N(0, 2 / fan_out)
        (specs/idc_dream_pdd.md section 1.12).
        """
        parts, he_normal = [], getattr(self._module, "he_normal", False)
        for module in self._module.modules():
            own = dict(module.named_parameters(recurse=False))
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                bound = 1 / math.sqrt(math.prod(module.weight.shape[1:]))
                drawn = [torch.empty(p.shape).uniform_(-bound, bound, generator=generator) for p in own.values()]
                if he_normal and isinstance(module, nn.Conv2d):
                    fan_out = module.out_channels * math.prod(module.kernel_size)
                    drawn[0].normal_(0, math.sqrt(2 / fan_out), generator=generator)
                parts += drawn
            elif isinstance(module, (nn.GroupNorm, nn.LayerNorm, nn.BatchNorm2d)):
                parts += [torch.full(p.shape, 1.0 if name == "weight" else 0.0) for name, p in own.items()]
            elif own:
                raise TypeError(f"no rule to initialise the parameters of {type(module).__name__}")
        return torch.cat([part.flatten() for part in parts])

    @functools.cached_property
    def _observing(self) -> nn.Module:
        """The network in training mode with running statistics, which every pass updates in place."""
        module = copy.deepcopy(self._module)
        for name, size in self._norms.items():
            norm = module.get_submodule(name)
            norm.track_running_stats = True
            norm.running_mean, norm.running_var = torch.empty(2, size, device="meta").unbind()
        return module

    @functools.cached_property
    def _testing(self) -> nn.Module:
        """The network in evaluation mode, with running statistics in place of the batch's."""
        return copy.deepcopy(self._observing).eval()

    def _call(self, method: str, theta: Tensor, images: Tensor, statistics: Tensor | None) -> Any:
        """Another method of the network in place of its forward."""
        module, tensors = self._mode(theta, statistics)
        return functional_call(_Call(module, method), {f"network.{name}": tensor for name, tensor in tensors.items()}, (images,))

    def _mode(self, theta: Tensor, statistics: Tensor | None) -> tuple[nn.Module, dict[str, Tensor]]:
        """The module to call, and its tensors by name."""
        if statistics is None or not self._norms:
            return self._module, self.views(theta)
        return self._testing, {**self.views(theta), **self._running(statistics)}

    def _running(self, statistics: Tensor) -> dict[str, Tensor]:
        """The running statistics as views of one vector (Q,), by name."""
        parts = statistics.split([size for _, size in self._statistics])
        return {name: part for (name, _), part in zip(self._statistics, parts, strict=True)}


def _without_running_statistics(module: nn.Module) -> dict[str, int]:
    """Let every batch normalisation use the statistics of the batch alone; their names and channels."""
    norms = {name: part for name, part in module.named_modules() if isinstance(part, nn.BatchNorm2d)}
    for norm in norms.values():
        norm.track_running_stats, norm.running_mean, norm.running_var, norm.num_batches_tracked = False, None, None, None
    return {name: norm.num_features for name, norm in norms.items()}


class _Call(nn.Module):
    """`functional_call` runs `forward` only; this makes another method of the network the forward."""

    def __init__(self, network: nn.Module, method: str):
        super().__init__()
        self.network, self.method = network, method

    def forward(self, images: Tensor) -> Any:
        return getattr(self.network, self.method)(images)
