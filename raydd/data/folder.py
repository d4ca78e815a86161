"""`folder:DIR`: one folder per class, `train/CLASS/*.png` and `test/CLASS/*.png`.

The test split is the first of `test`, `val`, `valid`, `validation` that holds class folders of the training split. Class
folders are searched in depth, classes are numbered in the order of their names. Tiny-ImageNet's `val/images` with
`val_annotations.txt` is read as it is.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from raydd.config import DataConfig
from raydd.data.sources import source
from raydd.data.types import Content, Picture, RawSplit, Source
from raydd.errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
TEST = ("test", "val", "valid", "validation")
ANNOTATIONS = "val_annotations.txt"

Listing = list[tuple[Path, int]]
"""Image files with the number of their class."""


@source("folder", folder=True)
def folder(location: str, config: DataConfig) -> Source:
    """Images in class folders. Raises `DataError` where the layout is another."""
    return folder_source(f"folder:{Path(location).expanduser().resolve().name}", Path(location).expanduser())


def folder_source(name: str, root: Path, titles: dict[str, str] | None = None) -> Source:
    """The same for any root; `titles` gives class folders other names to be shown by."""
    if not (root / "train").is_dir():
        found = ", ".join(sorted(p.name for p in root.glob("*"))[:5]) if root.is_dir() else "no such folder"
        raise DataError(f"{root}: needs train/CLASS/*.png and test/CLASS/*.png (or val/); found: {found or 'an empty folder'}.")
    classes = _class_folders(root / "train")
    train, test = _listing(root / "train", classes), _test_listing(root, classes)
    files = tuple((path.relative_to(root).as_posix(), path) for path, _ in train + test)
    shown = tuple((titles or {}).get(c, c) for c in classes)
    extra = [root / "val" / ANNOTATIONS] if (root / "val" / ANNOTATIONS).is_file() else []
    files += tuple((path.relative_to(root).as_posix(), path) for path in extra)
    # class folders without images show in no file name, so they are part of the identity
    return Source(name, lambda: Content(shown, _split(train), _split(test)), files, identity="\n".join(shown))


def _class_folders(split: Path) -> list[str]:
    loose = next((p for p in sorted(split.iterdir()) if p.suffix.lower() in SUFFIXES and p.is_file()), None)
    if loose is not None:
        raise DataError(f"{loose} lies in no class folder; move it to {split}/CLASS/.")
    return sorted(p.name for p in split.iterdir() if p.is_dir() and not p.name.startswith("."))


def _images(top: Path) -> list[Path]:
    """Image files below a folder, sorted by path; hidden files and folders are left out."""
    names = (Path(base, name) for base, _, files in os.walk(top, followlinks=True) for name in files)
    return sorted(p for p in names if p.suffix.lower() in SUFFIXES and not _hidden(p.relative_to(top)))


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _listing(split: Path, classes: list[str]) -> Listing:
    return [(path, label) for label, name in enumerate(classes) for path in _images(split / name)]


def _test_listing(root: Path, classes: list[str]) -> Listing:
    if (root / "val" / ANNOTATIONS).is_file():
        return _annotated(root / "val", classes)
    present = [root / name for name in TEST if (root / name).is_dir()]
    if not present:
        raise DataError(f"{root}: no test split. Put test images into {root}/test/CLASS/, with the class folders of train/.")
    for split in present:
        names = {p.name for p in split.iterdir() if p.is_dir()}
        if names & set(classes):
            extra = sorted(name for name in names - set(classes) if _images(split / name))
            if extra:
                raise DataError(f"{split / extra[0]}: train/ has no class of this name. Add {root}/train/{extra[0]}, or remove it here.")
            return _listing(split, classes)
    raise DataError(
        f"{present[0]} holds none of the class folders of train/ ({', '.join(classes[:3])}, ...). Sort the test images into "
        f"{present[0]}/CLASS/, or add {ANNOTATIONS} to val/ as Tiny-ImageNet has it."
    )


def _annotated(split: Path, classes: list[str]) -> Listing:
    """Tiny-ImageNet's validation images: each line of the annotations is file, class, box, separated by tabs."""
    number = {name: label for label, name in enumerate(classes)}
    listing = []
    for row, line in enumerate((split / ANNOTATIONS).read_text().splitlines(), 1):
        fields = line.split("\t")
        path = split / "images" / fields[0]
        if len(fields) < 2 or fields[1] not in number or path.name != fields[0] or not path.is_file():
            raise DataError(f"{split / ANNOTATIONS} line {row}: needs the name of a file in images/ and a class of train/: {line!r}.")
        listing.append((path, number[fields[1]]))
    return listing


def _split(listing: Listing) -> RawSplit:
    def pictures() -> Iterator[tuple[str, Picture]]:
        return ((str(path), path) for path, _ in listing)

    return RawSplit(np.array([label for _, label in listing], np.int64), pictures)
