"""Between pixels and training space: mean and standard deviation per channel, or ZCA whitening."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from raydd.config import DataConfig, fingerprint
from raydd.data.files import atomic, cache_folder, locked, writing
from raydd.data.types import Dataset
from raydd.data.zca import fit_zca
from raydd.errors import DataError

_STANDARD = {"shape", "mean", "std"}
_ZCA = {"shape", "mean", "matrix", "inverse_matrix"}


@dataclass(frozen=True)
class Transform:
    """How pixels become training space, and back.

    standard  z = (x - mean) / std with mean and std (C,)
    zca       z = (x - mean) matrix with mean (D,), matrix and inverse_matrix (D, D), D = C x H x W
    """

    shape: tuple[int, int, int]
    mean: Tensor
    std: Tensor | None = None
    matrix: Tensor | None = None
    inverse_matrix: Tensor | None = None

    @classmethod
    def standard(cls, shape: tuple[int, int, int], mean: tuple[float, ...], std: tuple[float, ...]) -> "Transform":
        """Mean and standard deviation of each channel, for pixels in [0, 1]."""
        return cls(shape, torch.tensor(mean, dtype=torch.float32), std=torch.tensor(std, dtype=torch.float32))

    @classmethod
    def fit(cls, dataset: Dataset, config: DataConfig, device: torch.device | str = "cpu") -> "Transform":
        """The transform that the settings ask for, in float32 on a device.

        ZCA is fitted on all training images in float64, once: the matrices are kept in the cache folder under the data
        set's fingerprint and eps. Raises `ResourceError` where they do not fit into memory.
        """
        if not config.zca:
            return cls.standard(dataset.shape, dataset.mean, dataset.std).to(device)
        key = fingerprint({"data": dataset.fingerprint, "eps": config.zca_eps, "format": 1})
        path = cache_folder() / f"zca-{key[:32]}.safetensors"
        state = _read(path, key)
        if state is None:
            with writing(path), locked(path):
                state = _read(path, key)
                if state is None:
                    zca = fit_zca(dataset.train.images, config.zca_eps, device)
                    fitted = cls(dataset.shape, zca.mean, matrix=zca.matrix, inverse_matrix=zca.inverse).to("cpu", torch.float32)
                    state = fitted.state()
                    with atomic(path) as scratch:
                        save_file(state, scratch, metadata={"key": key})
        return cls.from_state(state).to(device)

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> "Transform":
        """The transform that `state` came from. Raises `DataError` where tensors are missing or do not fit one another."""
        names = _ZCA if "matrix" in state else _STANDARD
        if set(state) != names:
            raise DataError(f"a stored transform needs the tensors {', '.join(sorted(names))}; it has: {', '.join(sorted(state))}.")
        shape = tuple(state["shape"].tolist())
        size = (math.prod(shape),) if "matrix" in state else shape[:1]
        vectors, squares = [state["mean"], *([state["std"]] if "std" in state else [])], [state[k] for k in names if "matrix" in k]
        if len(shape) != 3 or any(v.shape != size for v in vectors) or any(m.shape != size * 2 for m in squares):
            raise DataError(f"the tensors of a stored transform do not fit images of shape {shape}; the file is damaged.")
        return cls(shape, **{name: state[name] for name in names - {"shape"}})

    def state(self) -> dict[str, Tensor]:
        """Everything needed to build it again, on the CPU; the names present tell the rule."""
        tensors = {"mean": self.mean, "std": self.std, "matrix": self.matrix, "inverse_matrix": self.inverse_matrix}
        kept = {name: tensor.cpu().contiguous() for name, tensor in tensors.items() if tensor is not None}
        return kept | {"shape": torch.tensor(self.shape, dtype=torch.int64)}

    @property
    def rule(self) -> str:
        """`standard` or `zca`."""
        return "standard" if self.matrix is None else "zca"

    @property
    def channels(self) -> int:
        """C."""
        return self.shape[0]

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Transform":
        """The same transform on a device, in another precision if one is named."""
        names = ("mean", "std", "matrix", "inverse_matrix")
        return replace(self, **{n: t.to(device, dtype) for n in names if (t := getattr(self, n)) is not None})

    def forward(self, images: Tensor) -> Tensor:
        """Pixels (n, C, H, W), uint8 or float in [0, 1], to training space, in this transform's device and precision."""
        self._check(images)
        pixels = images.to(self.mean.device)
        if pixels.dtype == torch.uint8:
            pixels = pixels.float() / 255  # in float32 whatever the precision, as torchvision's ToTensor does
        pixels = pixels.to(self.mean.dtype)
        if self.matrix is None:
            return (pixels - self.mean[:, None, None]) / self.std[:, None, None]
        return ((pixels.flatten(1) - self.mean) @ self.matrix).view(pixels.shape)

    def inverse(self, images: Tensor) -> Tensor:
        """Training space (n, C, H, W) to pixels, not clamped: synthetic images may leave [0, 1]."""
        self._check(images)
        values = images.to(self.mean.device, self.mean.dtype)
        if self.inverse_matrix is None:
            return values * self.std[:, None, None] + self.mean[:, None, None]
        return (values.flatten(1) @ self.inverse_matrix + self.mean).view(values.shape)

    def _check(self, images: Tensor) -> None:
        if images.ndim != 4 or tuple(images.shape[1:]) != self.shape:
            raise DataError(
                f"images of shape {tuple(images.shape)} do not fit a transform made for (n, {', '.join(map(str, self.shape))})."
            )


def _read(path: Path, key: str) -> dict[str, Tensor] | None:
    """The tensors of a cached fit, or None where the file is absent, truncated or of another fit."""
    try:
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("key") != key:
                return None
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        return None
