"""The expert store: round trips, damage, foreign files, and writers that die or meet."""

import errno
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import fs

from raydd.errors import ResourceError, StoreError
from raydd.experts.folder import Folder
from raydd.experts.snapshots import Snapshots
from raydd.experts.store import Store

RECIPE: dict[str, Any] = {"lr": 0.01, "seed": 0}


def walk(epochs: int, seed: int = 0, size: int = 50) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).normal(size=(epochs + 1, size)).astype(np.float32))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "experts"


@pytest.fixture
def store(root: Path) -> Store:
    """Experts 0 with 4 and 1 with 2 epochs."""
    store = Store.open(str(root), RECIPE)
    store.write(0, walk(4), {"layout": [["weight", [5, 10]]]})
    store.write(1, walk(2, seed=1), {})
    return store


def path_of(store: Store, expert: int = 0) -> Path:
    return Path(store.folder.place(f"expert_{expert:05d}.arrow"))


def test_an_empty_store_needs_no_folder(root: Path) -> None:
    store = Store.open(str(root), RECIPE)
    assert store.experts() == [] and store.missing(2, 3) == [0, 1] and store.epochs(0) is None
    assert not root.exists()


def test_what_is_written_is_read(store: Store, root: Path) -> None:
    reader = Store.open(str(root), RECIPE)
    for epoch, theta in enumerate(walk(4)):
        assert np.array_equal(reader.theta(0, epoch), theta)
        assert torch.equal(reader.tensor(0, epoch), torch.tensor(theta))
    assert reader.experts() == [0, 1] and reader.experts(3) == [0]
    assert reader.missing(3, 2) == [2] and reader.missing(3, 3) == [1, 2]
    assert (reader.epochs(0), reader.epochs(1), reader.epochs(2)) == (4, 2, None)
    assert reader.metadata(0)["layout"] == [["weight", [5, 10]]] and reader.metadata(0)["recipe"] == RECIPE


def test_the_files_are_plain_arrow_with_the_documented_columns(store: Store) -> None:
    with pa.memory_map(str(path_of(store))) as source:
        table = pa.ipc.open_file(source).read_all()
    assert table.schema.field("epoch").type == pa.int32()
    assert table.schema.field("theta").type == pa.list_(pa.float32(), 50)
    assert table.column("epoch").to_pylist() == [0, 1, 2, 3, 4]
    assert np.array_equal(np.array(table.column("theta").to_pylist(), np.float32), np.stack(walk(4)))
    recipe = json.loads((path_of(store).parent / "recipe.json").read_text())
    assert recipe == {"key": store.key, "recipe": RECIPE} and path_of(store).parent.name == store.key


def test_reading_copies_nothing_and_is_read_only(store: Store) -> None:
    theta = store.theta(0, 2)
    assert not theta.flags.writeable and not theta.flags.owndata
    assert theta.ctypes.data == store.theta(0, 2).ctypes.data == store.tensor(0, 2).data_ptr()


def test_other_recipes_have_other_folders(store: Store, root: Path) -> None:
    other = Store.open(str(root), {**RECIPE, "lr": 0.02})
    assert other.experts() == [] and other.key != store.key
    assert Store.open(str(root), dict(reversed(RECIPE.items()))).key == store.key


def test_asking_for_too_much_names_the_numbers_and_the_remedy(store: Store) -> None:
    with pytest.raises(StoreError, match=r"expert_00001\.arrow has 2 epochs, epoch 3 was asked for\. Run `raydd experts"):
        store.theta(1, 3)
    with pytest.raises(StoreError, match=r"expert_00007\.arrow does not exist\. Run `raydd experts --experts 8`"):
        store.theta(7, 0)
    with pytest.raises(StoreError, match="epoch -1"):
        store.theta(0, -1)


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, 0.99])
def test_a_truncated_file_is_refused_by_name(store: Store, root: Path, kept: float) -> None:
    path = path_of(store)
    size = path.stat().st_size
    os.truncate(path, kept if isinstance(kept, int) else int(size * kept))
    with pytest.raises(StoreError, match=r"expert_00000\.arrow is damaged or foreign: truncated.*Delete it and run `raydd experts`"):
        Store.open(str(root), RECIPE)


def test_one_altered_bit_is_found(store: Store, root: Path) -> None:
    path = path_of(store)
    content = bytearray(path.read_bytes())
    place = content.find(walk(4)[3].tobytes()) + 17
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"expert_00000\.arrow is damaged or foreign: its contents do not match its sha-256"):
        Store.open(str(root), RECIPE)
    assert Store.open(str(root), RECIPE, verify=False).epochs(0) == 4


def test_an_expert_of_another_recipe_or_index_is_refused(store: Store, root: Path) -> None:
    other = Store.open(str(root), {**RECIPE, "seed": 1})
    other.write(0, walk(4), {})
    path_of(store).write_bytes(path_of(other).read_bytes())
    with pytest.raises(StoreError, match=f"it is expert 0 of recipe {other.key}"):
        Store.open(str(root), RECIPE)
    path_of(store).write_bytes(path_of(store, 1).read_bytes())
    with pytest.raises(StoreError, match=r"expert_00000\.arrow is damaged or foreign: it is expert 1"):
        Store.open(str(root), RECIPE)


def test_other_arrow_files_and_formats_are_refused(store: Store, root: Path) -> None:
    table = pa.table({"a": [1]})
    with pa.OSFile(str(path_of(store)), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write(table)
    with pytest.raises(StoreError, match="not an expert"):
        Store.open(str(root), RECIPE)
    content = path_of(store, 1).read_bytes()
    path_of(store).write_bytes(content.replace(b'"format": 1', b'"format": 9'))
    with pytest.raises(StoreError, match="format 9"):
        Store.open(str(root), RECIPE)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"recipe": {"lr": 5}}'])
def test_a_foreign_recipe_is_refused(store: Store, root: Path, content: str) -> None:
    path = path_of(store).parent / "recipe.json"
    path.write_text(content)
    with pytest.raises(StoreError, match=r"recipe\.json.*Delete its folder"):
        Store.open(str(root), RECIPE)
    path.unlink()
    with pytest.raises(StoreError, match=r"recipe\.json is absent"):
        Store.open(str(root), RECIPE)


def test_what_a_killed_writer_left_is_ignored_and_swept(store: Store, root: Path) -> None:
    folder = path_of(store).parent
    (folder / ".expert_00002.arrow.4711.tmp").write_bytes(b"half")
    reader = Store.open(str(root), RECIPE)
    assert reader.experts() == [0, 1] and reader.missing(3, 0) == [2]
    reader.write(2, walk(1, seed=2), {})
    assert reader.experts() == [0, 1, 2]
    assert sorted(path.name for path in folder.iterdir()) == [".lock", *(f"expert_0000{i}.arrow" for i in range(3)), "recipe.json"]


def test_a_shorter_trajectory_never_replaces_a_longer_one(store: Store, root: Path) -> None:
    Store.open(str(root), RECIPE).write(0, walk(3, seed=9), {})
    assert store.epochs(0) == 4 and np.array_equal(store.theta(0, 1), walk(4)[1])


def test_writers_that_meet_leave_the_longest_of_each_expert(root: Path) -> None:
    def build(epochs: int) -> None:
        own = Store.open(str(root), RECIPE)
        for expert in range(4):
            own.write(expert, walk(epochs, seed=expert), {})

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(build, [1, 5, 2, 6, 3, 4]))
    store = Store.open(str(root), RECIPE)
    assert store.experts(6) == [0, 1, 2, 3]
    assert not list(path_of(store).parent.glob(".*.tmp"))


def test_readers_see_an_extension_and_keep_what_they_had(store: Store, root: Path) -> None:
    reader = Store.open(str(root), RECIPE)
    before = reader.theta(1, 2)
    store.write(1, walk(6, seed=1), {})
    assert np.array_equal(before, walk(2, seed=1)[2])
    assert np.array_equal(reader.theta(1, 6), walk(6, seed=1)[6])


def test_a_full_disk_is_reported_and_harms_nothing(store: Store, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ResourceError, match=r"No space left for .*expert_00002\.arrow \([0-9,]+ bytes\)"):
            store.write(2, walk(4), {})
    assert Store.open(str(root), RECIPE).experts() == [0, 1]
    assert not list(path_of(store).parent.glob(".*.tmp"))


def test_a_root_that_is_a_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match=r"file.*--store"):
        Store.open(str(tmp_path / "file"), RECIPE).write(0, walk(1), {})


def test_any_pyarrow_file_system_serves(tmp_path: Path) -> None:
    # Not a LocalFileSystem, so this takes the road of an object store: no memory map, no lock, no rename.
    remote = Folder("experts", fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()))
    assert remote.local is None and remote.free_bytes() is None
    store = Store.open(remote, RECIPE)
    assert store.missing(1, 2) == [0]
    store.write(0, walk(2), {})
    reader = Store.open(remote, RECIPE)
    assert np.array_equal(reader.theta(0, 2), walk(2)[2]) and reader.experts(2) == [0]
    path = tmp_path / "experts" / store.key / "expert_00000.arrow"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(StoreError, match="truncated"):
        Store.open(remote, RECIPE)


def test_uris_and_their_errors(root: Path) -> None:
    Store.open(root.as_uri(), RECIPE).write(0, walk(1), {})
    assert Store.open(str(root), RECIPE).experts() == [0]
    with pytest.raises(ResourceError, match=r"nonsense://x cannot be opened"):
        Folder("nonsense://x")


def test_snapshots_on_the_cpu_are_views(store: Store) -> None:
    snapshots = Snapshots(store, "cpu")
    assert snapshots.theta(0, 3).data_ptr() == store.theta(0, 3).ctypes.data
    assert torch.equal(snapshots.theta(1, 2), torch.tensor(walk(2, seed=1)[2]))


def test_snapshots_are_kept_up_to_the_budget(store: Store) -> None:
    snapshots = Snapshots(store, "cpu", torch.float64, budget=2 * 50 * 8)
    first, second, third = (snapshots.theta(0, epoch) for epoch in range(3))
    assert first.dtype == torch.float64
    assert snapshots.theta(0, 0) is first and snapshots.theta(0, 1) is second and snapshots.theta(0, 2) is not third
    assert torch.equal(snapshots.theta(0, 2), third)
