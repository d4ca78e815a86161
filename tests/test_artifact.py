"""The result file: everything comes back, and nothing but a whole result file is read."""

from dataclasses import replace

import pytest
import torch

from raydd import artifact, checkpoint, sealed
from raydd.artifact import Artifact
from raydd.config import Config, to_dict
from raydd.data.transform import Transform
from raydd.decode import Decoding, training_images
from raydd.errors import CheckpointError
from raydd.runfolder import images_sha256
from raydd.types import SyntheticSet

SMALL = Transform.standard((3, 8, 8), (0.0,) * 3, (1.0,) * 3)


@pytest.fixture
def example() -> Artifact:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(6, 3, 4, 4, generator=generator)
    synthetic = SyntheticSet(images, torch.arange(3).repeat_interleave(2), torch.tensor(0.0123), torch.ones(6, dtype=torch.int64))
    matrices = torch.randn(2, 48, 48, generator=generator)
    transform = Transform((3, 4, 4), torch.randn(48, generator=generator), matrix=matrices[0], inverse_matrix=matrices[1])
    return Artifact(
        synthetic, torch.zeros(6, 3, 4, 4), transform.state(), "zca", ("cat", "Hund", "猫"), "digits", "f" * 64, to_dict(Config(ipc=2)), 60
    )  # fmt: skip


def test_everything_comes_back(tmp_path, example):
    path = tmp_path / "synthetic.safetensors"
    artifact.write(path, example)
    found = artifact.read(path)
    for name in ("images", "labels", "step_size", "stages"):
        ours, theirs = getattr(example.synthetic, name), getattr(found.synthetic, name)
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs), name
    assert torch.equal(found.initial_images, example.initial_images)
    ours, theirs = example.transform, found.transform
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert torch.equal(found.pixel_transform().inverse_matrix, ours["inverse_matrix"])
    details = ("rule", "classes", "dataset", "fingerprint", "config", "step", "decode", "versions")
    assert [getattr(found, n) for n in details] == [getattr(example, n) for n in details]
    assert found.versions["torch"] == torch.__version__ and found.decode == Decoding()


def test_how_images_are_stored_comes_back_and_decides_what_is_trained_on_and_shown(tmp_path, example):
    decoding = Decoding("pixels", 2, "bound", 20)
    artifact.write(tmp_path / "x", replace(example, decode=decoding))
    found = artifact.read(tmp_path / "x")
    assert found.decode == decoding
    images, labels = found.training_images()
    expected, targets = training_images(example.synthetic.images, example.synthetic.labels, decoding, example.pixel_transform())
    assert len(images) == 6 * 4 and torch.equal(images, expected) and torch.equal(labels, targets)
    assert torch.equal(found.pixels(found.initial_images), found.initial_images)
    assert torch.equal(example.pixels(example.initial_images), example.pixel_transform().inverse(example.initial_images))
    assert torch.equal(example.training_images()[0], example.synthetic.images)


@pytest.mark.parametrize("value", [{"space": "elsewhere"}, {"factor": 5}, {"kind": "none"}, "zoom", 3])
def test_a_decoding_that_cannot_be_is_refused(tmp_path, example, value):
    artifact.write(tmp_path / "x", example)
    tensors, metadata = sealed.read(tmp_path / "x", artifact.KIND, artifact.FORMAT)
    sealed.write(tmp_path / "x", artifact.KIND, artifact.FORMAT, tensors, metadata | {"decode": value})
    with pytest.raises(CheckpointError, match="not a complete result file"):
        artifact.read(tmp_path / "x")


def test_the_metadata_says_what_is_inside(tmp_path, example):
    path = tmp_path / "synthetic.safetensors"
    artifact.write(path, example)
    _, metadata = sealed.read(path, artifact.KIND, artifact.FORMAT)
    assert (
        metadata["shape"] == [6, 3, 4, 4]
        and metadata["rule"] == "zca"
        and metadata["images_sha256"] == images_sha256(example.synthetic.images)
    )


def test_truncated_altered_absent_and_foreign_files_are_refused_by_name(tmp_path, example):
    path = tmp_path / "synthetic.safetensors"
    artifact.write(path, example)
    data = path.read_bytes()
    for length in (0, 5, 8, 50, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match=r"synthetic\.safetensors: truncated"):
            artifact.read(path)
    altered = bytearray(data)
    altered[-1] ^= 0x80
    path.write_bytes(bytes(altered))
    with pytest.raises(CheckpointError, match=r"synthetic\.safetensors: altered"):
        artifact.read(path)
    with pytest.raises(CheckpointError, match="absent: cannot be read"):
        artifact.read(tmp_path / "absent")
    other = checkpoint.save(tmp_path, 1, {"images": torch.zeros(1)}, {}, {})
    with pytest.raises(CheckpointError, match="is a raydd-checkpoint, not a raydd-synthetic-set"):
        artifact.read(other)


def test_a_whole_file_without_its_parts_is_refused(tmp_path):
    sealed.write(tmp_path / "x", artifact.KIND, artifact.FORMAT, {"images": torch.zeros(1, 1, 2, 2)}, {})
    with pytest.raises(CheckpointError, match=r"not a complete result file \('step_sizes'\)"):
        artifact.read(tmp_path / "x")


def test_a_damaged_transform_is_refused(tmp_path, example):
    path = tmp_path / "x"
    artifact.write(path, example)
    tensors, metadata = sealed.read(path, artifact.KIND, artifact.FORMAT)
    del tensors["transform.inverse_matrix"]
    sealed.write(path, artifact.KIND, artifact.FORMAT, tensors, metadata)
    with pytest.raises(CheckpointError, match=r"not a complete result file .*inverse_matrix"):
        artifact.read(path)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda a: replace(a, initial_images=torch.zeros(5, 3, 4, 4)), "initial images"),
        (lambda a: replace(a, classes=("one", "two")), r"labels outside 0\.\.1"),
        (lambda a: replace(a, synthetic=replace(a.synthetic, stages=torch.ones(2, dtype=torch.int64))), "stages of shape"),
        (lambda a: replace(a, transform=SMALL.state()), r"a standard transform for \(3, 8, 8\) where zca"),
        (lambda a: replace(a, synthetic=replace(a.synthetic, images=torch.zeros(6, 4, 4))), r"expected \(N, C, H, W\)"),
    ],
)
def test_parts_that_do_not_fit_are_not_written(tmp_path, example, change, text):
    with pytest.raises(ValueError, match=text):
        artifact.write(tmp_path / "x", change(example))
    assert not (tmp_path / "x").exists()
