"""The result of a run as one self-contained file, `synthetic.safetensors`: nothing else is needed to evaluate or to export it.

The learned step size, the whitening matrices and the settings are inside, because a synthetic set is worth little without them:
published sets without their learning rate or their whitening have been evaluated wrongly (specification of MTT, section 5, items 5 and 6).
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from raydd import sealed
from raydd.data.transform import Transform
from raydd.decode import Decoding, stored_pixels, training_images
from raydd.environment import versions
from raydd.errors import CheckpointError, ConfigError, DataError
from raydd.runfolder import images_sha256
from raydd.schema import from_dict, to_dict
from raydd.types import SyntheticSet

KIND = "raydd-synthetic-set"
FORMAT = 2
_TRANSFORM = "transform."
_KINDS = {
    "classes": list, "dataset": str, "fingerprint": str, "config": dict, "step": int, "rule": str, "versions": dict,
}  # fmt: skip
_DETAILS = ("classes", "dataset", "fingerprint", "config", "step", "rule", "versions")


@dataclass(frozen=True)
class Artifact:
    """A synthetic set with all that its use needs.

    synthetic       images (N, C, H, W) as stored, in the space that `decode` names; labels, step size, stages
    initial_images  (N, C, H, W), what the images started from, stored alike
    transform       `Transform.state()`: the tensors of the transform between pixels and training space
    rule            `Transform.rule`: which kind it is
    classes         class names, by label
    dataset         name of the real data, and its `fingerprint` (sha-256, hex)
    config          the resolved settings, as nested dictionaries
    step            distillation steps done
    decode          how stored images become training images
    versions        what it was made with
    step_sizes      learned step sizes of the stages before the last, whose own is that of `synthetic`
    """

    synthetic: SyntheticSet
    initial_images: Tensor
    transform: dict[str, Tensor]
    rule: str
    classes: tuple[str, ...]
    dataset: str
    fingerprint: str
    config: dict[str, Any]
    step: int
    decode: Decoding = field(default_factory=Decoding)
    versions: dict[str, str] = field(default_factory=versions)
    step_sizes: tuple[float, ...] = ()

    @property
    def stage_step_sizes(self) -> tuple[float, ...]:
        """The learned step size of every stage, the last one included."""
        return (*self.step_sizes, self.synthetic.step_size.item())

    def pixel_transform(self) -> Transform:
        """The transform itself, on the CPU. Raises `DataError` when its tensors do not fit one another."""
        return Transform.from_state(self.transform)

    def pixels(self, images: Tensor) -> Tensor:
        """Images (n, C, H, W) stored as this file's are, as pixel values: float, not clamped to 0..1."""
        return stored_pixels(images, self.decode, self.pixel_transform())

    def training_images(self) -> tuple[Tensor, Tensor]:
        """What networks are to be trained on: images (n, C, H, W) in training space and labels (n,), decoded."""
        return training_images(self.synthetic.images, self.synthetic.labels, self.decode, self.pixel_transform())


def write(path: Path | str, artifact: Artifact) -> None:
    """Write the result file atomically.

    Raises `ResourceError` when it cannot be written, `ValueError` when labels, stages or initial images do not fit the images.
    """
    _fit(artifact)
    synthetic = artifact.synthetic
    tensors = {
        "images": synthetic.images,
        "labels": synthetic.labels,
        "step_sizes": torch.tensor(artifact.stage_step_sizes),
        "stages": synthetic.stages,
        "initial_images": artifact.initial_images,
        **{_TRANSFORM + name: tensor for name, tensor in artifact.transform.items()},
    }
    metadata = {name: getattr(artifact, name) for name in _DETAILS} | {"decode": to_dict(artifact.decode)}
    metadata |= {"shape": list(synthetic.images.shape), "images_sha256": images_sha256(synthetic.images)}
    sealed.write(path, KIND, FORMAT, tensors, metadata)


def read(path: Path | str) -> Artifact:
    """The checked content of a result file, on the CPU.

    Raises `CheckpointError` naming the file and the reason: absent, truncated, altered, another kind of file, another format.
    """
    tensors, metadata = sealed.read(path, KIND, FORMAT)
    try:
        *earlier, step_size = tensors["step_sizes"]
        artifact = Artifact(
            synthetic=SyntheticSet(tensors["images"], tensors["labels"], step_size, tensors["stages"]),
            initial_images=tensors["initial_images"],
            transform={name.removeprefix(_TRANSFORM): t for name, t in tensors.items() if name.startswith(_TRANSFORM)},
            **{name: tuple(metadata[name]) if name == "classes" else metadata[name] for name in _DETAILS},
            decode=from_dict(Decoding, metadata["decode"], "decode."),
            step_sizes=tuple(size.item() for size in earlier),
        )
        wrong = [name for name, kind in _KINDS.items() if not isinstance(metadata[name], kind)]
        if wrong or not all(isinstance(name, str) for name in artifact.classes):
            raise ValueError(f"{(wrong or ['classes'])[0]} of the wrong type")
        _fit(artifact)
    except (KeyError, ValueError, TypeError, AttributeError, DataError, ConfigError) as error:
        raise CheckpointError(f"{path}: is not a complete result file ({error}).") from error
    return artifact


def _fit(artifact: Artifact) -> None:
    synthetic = artifact.synthetic
    count = len(synthetic.images)
    if synthetic.images.ndim != 4:
        raise ValueError(f"images of shape {tuple(synthetic.images.shape)}; expected (N, C, H, W)")
    artifact.decode.check(synthetic.images.shape[-1])
    transform = artifact.pixel_transform()
    if transform.shape != tuple(synthetic.images.shape[1:]) or transform.rule != artifact.rule:
        raise ValueError(
            f"a {transform.rule} transform for {transform.shape} where {artifact.rule} for {tuple(synthetic.images.shape)} is named"
        )
    if artifact.initial_images.shape != synthetic.images.shape:
        raise ValueError(f"initial images {tuple(artifact.initial_images.shape)} beside images {tuple(synthetic.images.shape)}")
    for name in ("labels", "stages"):
        if getattr(synthetic, name).shape != (count,):
            raise ValueError(f"{name} of shape {tuple(getattr(synthetic, name).shape)} for {count} images")
    if count and int(synthetic.stages.max()) != len(artifact.stage_step_sizes):
        raise ValueError(f"{len(artifact.stage_step_sizes)} step sizes for {int(synthetic.stages.max())} stages")
    if count and not 0 <= int(synthetic.labels.min()) <= int(synthetic.labels.max()) < len(artifact.classes):
        raise ValueError(f"labels outside 0..{len(artifact.classes) - 1}, the range of the class names")
