"""The expert store: one folder for each training recipe, one Arrow file for each expert.

    ROOT/<hash of the recipe>/recipe.json
    ROOT/<hash of the recipe>/expert_00000.arrow ...

The recipe names everything that decides an expert's bits but neither their count nor, without a decaying rate, their length:
more or longer experts extend the same folder.
"""

import json
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from raydd.config import fingerprint
from raydd.errors import StoreError
from raydd.experts.files import BadFile, ExpertFile, encode
from raydd.experts.folder import Folder

RECIPE = "recipe.json"
_NAME = re.compile(r"expert_(\d{5,})\.arrow")
_ADVICE = "Delete it and run `raydd experts` with the same settings to train it again."


def expert_name(expert: int) -> str:
    """The file name of an expert."""
    return f"expert_{expert:05d}.arrow"


class Store:
    """The experts of one recipe. Reading is memory-mapped, so the workers of a machine share one copy.

    `recipe` is any JSON-ready dictionary; `key` is its hash and `folder` the place. A folder that does not exist yet is an
    empty store. The object holds open files: give other processes `root` and `recipe`, not the object.
    """

    def __init__(self, root: str | Folder, recipe: dict[str, Any]):
        """Prefer `Store.open`, which also checks what is there."""
        base = root if isinstance(root, Folder) else Folder(root)
        self.root, self.recipe, self.key = base.location, recipe, fingerprint(recipe)[:16]
        self.folder = base.child(self.key)
        self._files: dict[int, ExpertFile] = {}

    @classmethod
    def open(cls, root: str | Folder, recipe: dict[str, Any], verify: bool = True) -> "Store":
        """Open the recipe's folder under `root` and check every expert in it.

        `verify` reads all snapshots and compares their sha-256 (about a second for each 2 GB); without it only the structure
        is checked, which suits the workers of a process that has verified. Raises `StoreError` naming the file and what to do.
        """
        store = cls(root, recipe)
        store._check_recipe()
        experts = store.experts()
        if verify:
            store.verify(experts)
        return store

    def experts(self, epochs: int = 0) -> list[int]:
        """The experts that exist now with at least `epochs` epochs, in order."""
        found = [int(match[1]) for name in self.folder.names() if (match := _NAME.fullmatch(name))]
        return [expert for expert in found if self.reaches(expert, epochs)]

    def missing(self, count: int, epochs: int) -> list[int]:
        """Those of experts 0..count-1 that are absent now or shorter than `epochs`."""
        present = set(self.experts(epochs))
        return [expert for expert in range(count) if expert not in present]

    def epochs(self, expert: int) -> int | None:
        """The last snapshot that an expert has now; None while it does not exist. Raises `StoreError` for a damaged file."""
        try:
            self._files[expert] = self._open(expert)
        except FileNotFoundError:
            self._files.pop(expert, None)
            return None
        return self._files[expert].epochs

    def theta(self, expert: int, epoch: int) -> np.ndarray:
        """Snapshot `epoch` of an expert: float32 (P,), a read-only view of the file. Raises `StoreError` when it is not there."""
        return self._values(expert, epoch).to_numpy(zero_copy_only=True)

    def tensor(self, expert: int, epoch: int) -> torch.Tensor:
        """The same as a CPU tensor, without a copy. Never write to it: the pages are read-only and the process would die."""
        return torch.from_dlpack(self._values(expert, epoch))

    def metadata(self, expert: int) -> dict[str, Any]:
        """The expert's own JSON: recipe, layout, losses and accuracies by epoch, versions, sha-256."""
        return self._file(expert, 0).metadata

    def verify(self, experts: Iterable[int]) -> None:
        """Compare the sha-256 of these experts with their contents. Raises `StoreError` for the first that differs."""
        files = [(expert, self._file(expert, 0)) for expert in experts]

        def check(entry: tuple[int, ExpertFile]) -> None:
            try:
                entry[1].check()
            except BadFile as error:
                raise self._damaged(expert_name(entry[0]), error) from error

        with ThreadPoolExecutor(4) as pool:  # hashing leaves the interpreter's lock
            list(pool.map(check, files))

    def write(self, expert: int, snapshots: Sequence[np.ndarray], metadata: dict[str, Any]) -> None:
        """Store snapshots float32 (P,) of epochs 0, 1, ... as this expert; a file that is at least as long stays.

        Raises `ResourceError` when the disk is full or the folder cannot be written.
        """
        if RECIPE not in self.folder.names():
            content = json.dumps({"key": self.key, "recipe": self.recipe}, indent=1, sort_keys=True)
            self.folder.write(RECIPE, pa.py_buffer(content.encode()), unless=lambda: RECIPE in self.folder.names())
        data = encode(snapshots, {**metadata, "key": self.key, "expert": expert, "recipe": self.recipe})
        # Another process may have finished a longer trajectory meanwhile.
        self.folder.write(expert_name(expert), data, unless=lambda: self.reaches(expert, len(snapshots) - 1))
        self.epochs(expert)

    def reaches(self, expert: int, epochs: int) -> bool:
        present = self.epochs(expert)
        return present is not None and present >= epochs

    def _check_recipe(self) -> None:
        names = self.folder.names()
        if RECIPE not in names:
            if any(_NAME.fullmatch(name) for name in names):
                raise StoreError(f"{self.folder.place(RECIPE)} is absent, so the experts beside it cannot be trusted. Delete their folder.")
            return
        try:
            with self.folder.source(RECIPE) as file:
                known = json.loads(file.read())["recipe"]
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{self.folder.place(RECIPE)} is not a recipe. Delete its folder and run `raydd experts`.") from error
        if fingerprint(known) != fingerprint(self.recipe):
            raise StoreError(f"{self.folder.place(RECIPE)} was made by another recipe. Delete its folder and run `raydd experts`.")

    def _values(self, expert: int, epoch: int) -> pa.FloatArray:
        try:
            return self._file(expert, epoch).values(epoch)
        except BadFile as error:
            raise self._damaged(expert_name(expert), error) from error

    def _file(self, expert: int, epoch: int) -> ExpertFile:
        """The open file of an expert with at least `epoch` epochs, opened anew when the one at hand is too short."""
        if expert not in self._files or self._files[expert].epochs < epoch:
            self.epochs(expert)
        if expert not in self._files:
            raise StoreError(f"{self.folder.place(expert_name(expert))} does not exist. Run `raydd experts --experts {expert + 1}`.")
        if not 0 <= epoch <= self._files[expert].epochs:
            raise StoreError(
                f"{self.folder.place(expert_name(expert))} has {self._files[expert].epochs} epochs, epoch {epoch} was asked for. "
                f"Run `raydd experts --experts.epochs {epoch}`."
            )
        return self._files[expert]

    def _open(self, expert: int) -> ExpertFile:
        name = expert_name(expert)
        try:
            file = ExpertFile.open(self.folder.source(name))
            if file.metadata.get("key") != self.key or file.metadata.get("expert") != expert:
                raise BadFile(f"it is expert {file.metadata.get('expert')} of recipe {file.metadata.get('key')}")
        except BadFile as error:
            raise self._damaged(name, error) from error
        return file

    def _damaged(self, name: str, error: BadFile) -> StoreError:
        return StoreError(f"{self.folder.place(name)} is damaged or foreign: {error}. {_ADVICE}")
