"""Between pixels and training space: against plain formulas and against the recorded whitening of the reference."""

import hashlib
import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from raydd.config import DataConfig
from raydd.data import Dataset, Transform, load, open_source, transform
from raydd.data.decode import decode
from raydd.data.zca import covariance_of, fit_zca
from raydd.errors import DataError, ResourceError
from raydd.pictures import pixels

ZCA = DataConfig(zca=True, size=4)


@pytest.fixture
def digits() -> Dataset:
    """Digits of 4 x 4, whose 16 x 16 matrices are quick to fit."""
    return load(ZCA)


def test_standard_is_mean_and_std_of_each_channel():
    fitted = Transform.standard((3, 2, 2), (0.1, 0.2, 0.3), (0.5, 0.25, 2.0))
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 2, 2), np.uint8)
    expected = (images / 255 - np.array([0.1, 0.2, 0.3])[:, None, None]) / np.array([0.5, 0.25, 2.0])[:, None, None]
    values = fitted.forward(torch.from_numpy(images))
    assert values.dtype == torch.float32 and np.allclose(values, expected, atol=1e-6)
    assert torch.equal(values, fitted.forward(torch.from_numpy(images).float() / 255))
    assert np.allclose(fitted.inverse(values), images / 255, atol=1e-6)
    assert fitted.rule == "standard" and fitted.channels == 3


def test_inverse_does_not_clamp():
    fitted = Transform.standard((1, 1, 1), (0.5,), (0.5,))
    assert fitted.inverse(torch.tensor([[[[3.0]]], [[[-3.0]]]])).flatten().tolist() == [2.0, -1.0]


def test_fit_follows_the_settings(digits: Dataset):
    standard = Transform.fit(digits, DataConfig(size=4))
    values = standard.forward(torch.from_numpy(digits.train.images.copy()))
    assert abs(values.mean().item()) < 1e-5 and abs(values.std(correction=0).item() - 1) < 1e-5
    assert Transform.fit(digits, ZCA).rule == "zca"


def test_whitening_is_that_of_the_formula(digits: Dataset):
    pixels = digits.train.images.reshape(len(digits.train), -1) / 255
    covariance = np.cov(pixels, rowvar=False)
    basis, spectrum, _ = np.linalg.svd(covariance)
    expected = (pixels - pixels.mean(0)) @ basis @ np.diag((spectrum + 0.1) ** -0.5) @ basis.T
    fitted = Transform.fit(digits, ZCA)
    values = fitted.forward(torch.from_numpy(digits.train.images.copy()))
    assert values.dtype == torch.float32 and np.allclose(values.flatten(1), expected, atol=1e-5)
    assert np.allclose(fitted.inverse(values).flatten(1), pixels, atol=1e-5)


def test_test_images_use_the_training_matrix(digits: Dataset):
    fitted = Transform.fit(digits, ZCA)
    mean = fitted.forward(torch.from_numpy(digits.test.images.copy())).mean(0)
    assert 1e-3 < mean.abs().max() < 1  # near zero, but not the test set's own mean


def test_covariance_does_not_depend_on_chunks():
    images = np.random.default_rng(1).integers(0, 256, (2500, 1, 3, 3), np.uint8)
    mean, covariance = covariance_of(images, "cpu")
    pixels = images.reshape(2500, 9) / 255
    assert np.allclose(mean, pixels.mean(0), rtol=1e-7, atol=0)
    assert np.allclose(covariance, np.cov(pixels, rowvar=False), rtol=1e-6, atol=1e-12)


def test_pixel_that_never_changes_is_no_obstacle():
    images = np.random.default_rng(2).integers(0, 256, (50, 1, 2, 2), np.uint8)
    images[:, 0, 0, 0] = 9
    fitted = fit_zca(images, 1e-8)
    assert torch.isfinite(fitted.matrix).all()
    assert torch.allclose(fitted.matrix @ fitted.inverse, torch.eye(4, dtype=torch.float64), atol=1e-9)


def test_fit_is_kept_on_disk_under_content_and_eps(digits: Dataset, cache: Path, monkeypatch: pytest.MonkeyPatch):
    first = Transform.fit(digits, ZCA)
    monkeypatch.setattr(transform, "fit_zca", lambda *arguments: pytest.fail("fitted again"))
    assert torch.equal(Transform.fit(digits, ZCA).matrix, first.matrix)
    for config, dataset in ((DataConfig(zca=True, size=4, zca_eps=0.2), digits), (ZCA, load(DataConfig(size=4, channels=3)))):
        with pytest.raises(pytest.fail.Exception, match="fitted again"):
            Transform.fit(dataset, config)


def test_damaged_or_foreign_fit_is_made_again(digits: Dataset, cache: Path):
    first = Transform.fit(digits, ZCA)
    (path,) = cache.glob("zca-*.safetensors")
    path.write_bytes(path.read_bytes()[:-100])
    assert torch.equal(Transform.fit(digits, ZCA).matrix, first.matrix)
    save_file({"matrix": torch.zeros(2)}, path)
    assert torch.equal(Transform.fit(digits, ZCA).matrix, first.matrix)
    assert set(load_file(path)) == {"shape", "mean", "matrix", "inverse_matrix"}


def test_too_large_for_memory_is_refused_with_numbers(monkeypatch: pytest.MonkeyPatch):
    class Memory:
        available = 2**30

    monkeypatch.setattr(psutil, "virtual_memory", Memory)
    images = np.zeros((2, 3, 64, 64), np.uint8)
    with pytest.raises(ResourceError, match=r"--data\.zca on images of 12288 values needs 6\.8 GiB .*cpu has 1\.0 GiB free"):
        fit_zca(images, 0.1)


@pytest.mark.parametrize("config", [DataConfig(size=4), ZCA])
def test_state_goes_through_a_safetensors_file(digits: Dataset, tmp_path: Path, config: DataConfig):
    fitted = Transform.fit(digits, config)
    save_file(fitted.state(), tmp_path / "state.safetensors")
    again = Transform.from_state(load_file(tmp_path / "state.safetensors"))
    images = torch.from_numpy(digits.test.images.copy())
    assert (again.rule, again.shape) == (fitted.rule, fitted.shape)
    assert torch.equal(again.forward(images), fitted.forward(images))
    assert torch.equal(again.inverse(fitted.forward(images)), fitted.inverse(fitted.forward(images)))


def test_unusable_states_are_refused(digits: Dataset):
    state = Transform.fit(digits, ZCA).state()
    with pytest.raises(DataError, match="needs the tensors inverse_matrix, matrix, mean, shape; it has: matrix, mean, shape"):
        Transform.from_state({name: tensor for name, tensor in state.items() if name != "inverse_matrix"})
    with pytest.raises(DataError, match="needs the tensors mean, shape, std; it has: nonsense"):
        Transform.from_state({"nonsense": torch.zeros(1)})
    with pytest.raises(DataError, match=r"do not fit images of shape \(1, 4, 4\)"):
        Transform.from_state(state | {"mean": torch.zeros(3)})


def test_images_of_another_shape_are_refused():
    fitted = Transform.standard((1, 8, 8), (0.5,), (0.5,))
    for function in (fitted.forward, fitted.inverse):
        with pytest.raises(DataError, match=r"shape \(2, 3, 8, 8\) do not fit a transform made for \(n, 1, 8, 8\)"):
            function(torch.zeros(2, 3, 8, 8))


@pytest.mark.parametrize("zca", [False, True])
def test_pictures_of_real_images_are_those_images(parquet_set: Path, zca: bool):
    config = DataConfig(source=f"parquet:{parquet_set}", zca=zca)
    dataset = load(config)
    fitted = Transform.fit(dataset, config)
    shown = pixels(fitted.inverse(fitted.forward(torch.from_numpy(dataset.train.images.copy()))))
    assert np.array_equal(shown, dataset.train.images)


def relative(value: Any, expected: np.ndarray) -> float:
    return float(np.abs(np.asarray(value) - expected).max() / np.abs(expected).max())


@pytest.fixture(scope="module")
def cifar10() -> Path:
    """Recompressed CIFAR-10 as Parquet."""
    default = Path(__file__).parents[2] / ".." / "shared" / "data" / "cifar10"
    folder = Path(os.environ.get("RAYDD_CIFAR10", default))
    if not folder.is_dir():
        pytest.skip("CIFAR-10 as Parquet is absent: set RAYDD_CIFAR10 to its folder")
    return folder


@pytest.mark.golden
def test_whitening_matches_the_reference(golden: Callable[[str], Any], cifar10: Path):
    case, manifest = golden("zca_whitening"), golden("manifest")
    start, count = int(case["in_first_row"]), int(case["in_row_count"])
    rows = itertools.islice(open_source(DataConfig(source=f"parquet:{cifar10}")).read().train.pictures(), start, start + count)
    images = np.ascontiguousarray(np.stack([decode(where, picture, None, 3)[0] for where, picture in rows]))
    (entry,) = (c for c in manifest["cases"] if c["case"] == "zca_whitening")
    assert hashlib.sha256(images).hexdigest() == entry["fitted_images_sha256"]

    zca = fit_zca(images, float(case["in_eps"]))
    fitted = Transform((3, 32, 32), zca.mean, matrix=zca.matrix, inverse_matrix=zca.inverse)
    first = torch.from_numpy(case["in_first_16_images_uint8"])
    whitened = fitted.forward(first)
    assert relative(zca.mean, case["out_mean"]) < 1e-8
    assert relative(zca.matrix[:8], case["out_matrix_first_8_rows"]) < 1e-8
    assert relative(zca.matrix.norm(), case["out_matrix_frobenius_norm"]) < 1e-8
    assert relative(zca.inverse.norm(), case["out_inverse_matrix_frobenius_norm"]) < 1e-8
    assert relative(whitened, case["out_whitened"]) < 1e-8
    assert relative(fitted.inverse(whitened), case["out_inverse"]) < 1e-7  # recorded in float32
    assert relative(fitted.to("cpu", torch.float32).forward(first), case["out_whitened_float32"]) < 1e-3
