"""The decoded cache: built once, memory-mapped, and never trusted when it is damaged."""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from raydd.config import DataConfig
from raydd.data import cache as cache_module
from raydd.data import load
from raydd.data.cache import statistics
from raydd.errors import DataError
from tests.data.samples import encode, noise

DIGITS_FINGERPRINT = "8fbc23d5"


def arrow(cache: Path) -> Path:
    (path,) = cache.glob("*.arrow")
    return path


def forbid_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(*arguments: object) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(cache_module, "decode", decode)


def test_pixels_labels_and_names_arrive(parquet_set: Path):
    dataset = load(DataConfig(source=f"parquet:{parquet_set}"))
    assert np.array_equal(dataset.train.images, np.stack(noise(6)).transpose(0, 3, 1, 2))
    assert np.array_equal(dataset.test.images, np.stack(noise(4, seed=1)).transpose(0, 3, 1, 2))
    assert dataset.train.labels.tolist() == [0, 1, 0, 1, 0, 1] and dataset.train.labels.dtype == np.int64
    assert dataset.classes == ("cat", "dog") and dataset.shape == (3, 8, 8)


def test_second_load_decodes_nothing_and_is_the_same(parquet_set: Path, monkeypatch: pytest.MonkeyPatch):
    config = DataConfig(source=f"parquet:{parquet_set}")
    first = load(config)
    forbid_decoding(monkeypatch)
    monkeypatch.setattr(cache_module, "_file_hash", forbid_decoding)  # nor are the files read for their hash
    second = load(config)
    assert second.fingerprint == first.fingerprint and np.array_equal(second.train.images, first.train.images)
    assert (second.mean, second.std) == (first.mean, first.std)


def test_images_are_a_read_only_memory_map(parquet_set: Path, cache: Path):
    dataset = load(DataConfig(source=f"parquet:{parquet_set}"))
    assert not dataset.train.images.flags.writeable and not dataset.train.images.flags.owndata
    address = dataset.train.images.__array_interface__["data"][0]
    ranges = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if str(arrow(cache)) in line]
    bounds = [tuple(int(end, 16) for end in line[0].split("-")) for line in ranges]
    assert any(low <= address < high for low, high in bounds)


@pytest.mark.parametrize("damage", [lambda d: d[:-40], lambda d: d[: len(d) // 2], lambda d: b"", lambda d: b"ARROW1" + d[6:100]])
def test_damaged_cache_file_is_rebuilt(parquet_set: Path, cache: Path, damage: Callable[[bytes], bytes]):
    config = DataConfig(source=f"parquet:{parquet_set}")
    fingerprint = load(config).fingerprint
    whole = arrow(cache).read_bytes()
    arrow(cache).unlink()
    (cache / arrow_name(config, parquet_set)).write_bytes(damage(whole))
    assert load(config).fingerprint == fingerprint
    assert arrow(cache).read_bytes() == whole


def arrow_name(config: DataConfig, folder: Path) -> str:
    """Where the copy of this set lies, found by building it in another cache."""
    before = os.environ["RAYDD_CACHE"]
    os.environ["RAYDD_CACHE"] = str(folder / "elsewhere")
    load(config)
    os.environ["RAYDD_CACHE"] = before
    return arrow(folder / "elsewhere").name


def test_cache_file_of_another_set_is_rebuilt(parquet_set: Path, cache: Path):
    load(DataConfig(source=f"parquet:{parquet_set}"))
    path, whole = arrow(cache), arrow(cache).read_bytes()
    load(DataConfig())
    (other,) = set(cache.glob("*.arrow")) - {path}
    path.unlink()
    shutil.copy(other, path)
    assert load(DataConfig(source=f"parquet:{parquet_set}")).classes == ("cat", "dog")
    assert path.read_bytes() == whole


def test_remembered_hash_that_is_not_json_is_ignored(parquet_set: Path, cache: Path):
    config = DataConfig(source=f"parquet:{parquet_set}")
    fingerprint = load(config).fingerprint
    (memo,) = cache.glob("source-*.json")
    for text in ("", "[1]", '{"signature": "other", "content": "wrong"}'):
        memo.write_text(text)
        assert load(config).fingerprint == fingerprint


def test_fingerprint_follows_content_not_place(parquet_set: Path, tmp_path: Path, write_parquet: Callable[..., Path]):
    config = DataConfig(source=f"parquet:{parquet_set}")
    fingerprint = load(config).fingerprint
    moved = shutil.copytree(parquet_set, tmp_path / "moved")
    assert load(DataConfig(source=f"parquet:{moved}")).fingerprint == fingerprint
    assert load(DataConfig(source=f"parquet:{parquet_set}", size=4)).fingerprint != fingerprint
    assert load(DataConfig(source=f"parquet:{parquet_set}", channels=1)).fingerprint != fingerprint
    write_parquet(parquet_set / "test-00000-of-00001.parquet", noise(4, seed=1), [1, 0, 1, 0], ["cat", "dog"])
    assert load(config).fingerprint != fingerprint


def test_fingerprint_of_digits_is_the_same_everywhere():
    assert load(DataConfig()).fingerprint[:8] == DIGITS_FINGERPRINT


def test_progress_counts_every_image_once():
    seen: list[tuple[int, int]] = []
    load(DataConfig(), lambda done, total: seen.append((done, total)))
    assert seen[-1] == (1797, 1797) and [done for done, _ in seen] == sorted({done for done, _ in seen})
    seen.clear()
    load(DataConfig(), lambda done, total: seen.append((done, total)))
    assert seen == []


def test_two_processes_build_one_copy(parquet_set: Path, cache: Path):
    program = (
        "import sys; from raydd.data import load; from raydd.config import DataConfig; print('ready', flush=True); sys.stdin.readline();"
        "d = load(DataConfig(source=sys.argv[1]), lambda done, total: print('decoded', flush=True)); print(d.fingerprint)"
    )
    command = [sys.executable, "-c", program, f"parquet:{parquet_set}"]
    root = Path(__file__).parents[2]
    runs = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root) for _ in range(2)]
    for run in runs:
        assert run.stdout.readline() == "ready\n"
    for run in runs:
        run.stdin.write("\n")
        run.stdin.flush()
    answers = [run.communicate()[0].split() for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert sum(answer.count("decoded") for answer in answers) == 1
    assert answers[0][-1] == answers[1][-1]
    assert not list(cache.glob(".*.tmp")) and arrow(cache)


def test_remains_of_a_killed_builder_are_removed(parquet_set: Path, cache: Path):
    config = DataConfig(source=f"parquet:{parquet_set}")
    load(config)
    left = arrow(cache).with_name(f".{arrow(cache).name}.1-abc.tmp")
    left.write_bytes(b"half")
    arrow(cache).unlink()
    load(config)
    assert not left.exists()


def test_failed_build_leaves_nothing(parquet_set: Path, cache: Path, write_parquet: Callable[..., Path]):
    write_parquet(parquet_set / "test-00000-of-00001.parquet", [*noise(3), b"broken"], [0, 1, 0, 1])
    with pytest.raises(DataError, match=r"test-00000-of-00001\.parquet row 3: cannot be decoded"):
        load(DataConfig(source=f"parquet:{parquet_set}"))
    assert not list(cache.glob("*.arrow")) and not list(cache.glob(".*.tmp"))


def test_cache_folder_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RAYDD_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(DataError, match="set RAYDD_CACHE"):
        load(DataConfig())


def test_full_disk_is_an_error_with_a_way_out(monkeypatch: pytest.MonkeyPatch):
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache_module, "_write", full)
    with pytest.raises(DataError, match=r"No space left.*RAYDD_CACHE"):
        load(DataConfig())


def test_grey_stays_one_channel_until_one_image_has_colour(tmp_path: Path, write_parquet: Callable[..., Path]):
    grey, mixed = tmp_path / "grey", tmp_path / "mixed"
    for folder in (grey, mixed):
        write_parquet(folder / "train.parquet", noise(4, channels=1), [0, 1, 0, 1])
        write_parquet(folder / "test.parquet", noise(2, channels=1), [0, 1])
    write_parquet(mixed / "test.parquet", [*noise(1, channels=1), *noise(1)], [0, 1])
    flat = load(DataConfig(source=f"parquet:{grey}"))
    assert flat.shape == (1, 8, 8) and len(flat.mean) == 1
    assert np.array_equal(flat.train.images[:, 0], np.stack(noise(4, channels=1)))
    assert load(DataConfig(source=f"parquet:{grey}", channels=3)).shape == (3, 8, 8)
    coloured = load(DataConfig(source=f"parquet:{mixed}"))
    assert coloured.shape == (3, 8, 8) and (coloured.train.images[:, 0] == coloured.train.images[:, 2]).all()


def test_sizes_that_differ_are_refused_or_resized(parquet_set: Path, write_parquet: Callable[..., Path]):
    write_parquet(parquet_set / "test-00000-of-00001.parquet", [*noise(1), *noise(1, side=10)], [0, 1])
    config = DataConfig(source=f"parquet:{parquet_set}")
    with pytest.raises(DataError, match=r"train-.* row 0 is 8 x 8, .*test-.* row 1 is 10 x 10.*--data\.size"):
        load(config)
    dataset = load(DataConfig(source=f"parquet:{parquet_set}", size=8))
    assert dataset.shape == (3, 8, 8) and np.array_equal(dataset.train.images, np.stack(noise(6)).transpose(0, 3, 1, 2))


def test_images_that_are_not_square_are_refused(tmp_path: Path, write_parquet: Callable[..., Path]):
    wide = [image[:6] for image in noise(4)]
    for split in ("train", "test"):
        write_parquet(tmp_path / "wide" / f"{split}.parquet", wide, [0, 1, 0, 1])
    with pytest.raises(DataError, match=r"row 0 is 8 x 6, not square.*--data\.size"):
        load(DataConfig(source=f"parquet:{tmp_path / 'wide'}"))


def test_statistics_are_those_of_all_training_pixels(parquet_set: Path):
    dataset = load(DataConfig(source=f"parquet:{parquet_set}"))
    pixels = np.stack(noise(6)).astype(np.float64) / 255
    assert np.allclose(dataset.mean, pixels.mean((0, 1, 2)), rtol=1e-13, atol=0)
    assert np.allclose(dataset.std, pixels.std((0, 1, 2)), rtol=1e-13, atol=0)


def test_constant_channel_cannot_be_normalised():
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 4, 4), np.uint8)
    images[:, 1] = 7
    with pytest.raises(DataError, match="channel 1 has the same value"):
        statistics(images)


def test_encoding_does_not_enter_the_fingerprint(tmp_path: Path, write_parquet: Callable[..., Path]):
    fingerprints = set()
    for form in ("PNG", "BMP"):
        for split in ("train", "test"):
            write_parquet(tmp_path / form / f"{split}.parquet", [encode(image, form) for image in noise(2)], [0, 1])
        fingerprints.add(load(DataConfig(source=f"parquet:{tmp_path / form}")).fingerprint)
    assert len(fingerprints) == 1


def test_hash_of_a_source_covers_names_and_bytes(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"1")
    assert cache_module._file_hash(tmp_path / "a") == hashlib.sha256(b"1").hexdigest()
