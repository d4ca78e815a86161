"""A result in the formats of others: PNG folder, Hugging Face Parquet, and the tensor files of the MTT and the DC programs.

Each exporter is a function from a result to file contents by relative name; `export` writes them. A folder that an earlier
export made is replaced, any other folder that holds something is refused.
"""

import io
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from raydd import artifact, pictures
from raydd.artifact import Artifact
from raydd.decode import training_images
from raydd.errors import CheckpointError, ConfigError
from raydd.files import atomic_write_json, read_json, write_bytes
from raydd.places import is_uri
from raydd.progressive import up_to
from raydd.runfolder import RunFolder, images_sha256

MARKER = "raydd-export.json"
"""Lies in every exported folder and lists what the export wrote, so that a later one removes exactly that."""

Files = dict[str, bytes]


@dataclass(frozen=True)
class Export:
    """What was written: the folder, how many files, and what the reader should know about them."""

    path: Path
    files: int
    notes: tuple[str, ...]

    def __str__(self) -> str:
        """As the command line prints it."""
        return "\n".join([f"{self.path}: {self.files} files", *self.notes])


def export(run: Path | str, to: str, out: Path | str) -> Export:
    """Export a run folder, or a result file, into the folder `out` as `to`: png, parquet, mtt or dc.

    Raises `ConfigError` when `to` is unknown or cannot hold the images, `run` has no result, or `out` holds what no export made;
    `CheckpointError` when the result file is damaged; `ResourceError` when a file cannot be written.
    """
    if to not in EXPORTERS:
        raise ConfigError([f"--to={to} is not a format; known: {', '.join(sorted(EXPORTERS))}."])
    result = artifact.read(_result_file(str(run)))
    files, notes = EXPORTERS[to](result)
    out = Path(out)
    _clear(out, to)
    # Listed before anything is written, so that an interrupted export can be replaced too.
    atomic_write_json(
        out / MARKER, {"format": to, "notes": notes, "images_sha256": images_sha256(result.synthetic.images), "files": list(files)}
    )
    for name, data in files.items():
        write_bytes(out / name, data)
    return Export(out, len(files), notes)


def to_png(result: Artifact) -> tuple[Files, tuple[str, ...]]:
    """One folder for each class with its images as 8-bit PNG, `index.json`, a page `index.html` and a picture of all, `grid.png`.

    Images as they are stored; where one holds several, side by side.
    """
    pixels, folders = pictures.pixels(result.pixels(result.synthetic.images)), safe_names(result.classes)
    files, rows = {}, []
    digits = max(4, len(str(len(pixels))))
    seen = [0] * len(folders)
    for image, label, stage in zip(pixels, result.synthetic.labels.tolist(), result.synthetic.stages.tolist(), strict=True):
        name = f"{folders[label]}/{seen[label]:0{digits}}.png"
        seen[label] += 1
        files[name] = pictures.png(image)
        rows.append({"file": name, "label": label, "class": result.classes[label], "stage": stage})
    by_class = [pixels[(result.synthetic.labels == label).numpy()] for label in range(len(folders))]
    files["grid.png"] = pictures.png(pictures.grid([images for images in by_class if len(images)], scale=2, gap=2))
    files["index.json"] = (json.dumps({"classes": list(result.classes), "images": rows}, indent=1, ensure_ascii=False) + "\n").encode()
    files["index.html"] = _index(result, rows).encode()
    return files, ("Pixels are clipped to what 8 bits can hold: train from the result file, not from the PNG files.",)


def to_parquet(result: Artifact) -> tuple[Files, tuple[str, ...]]:
    """One Parquet file as on the Hugging Face hub: `image` (struct of PNG bytes and path) and `label` with the class names.

    What networks are to be trained on: where a stored image holds several, each by itself. Of several stages, a column `stage` too.
    Source: the layout that the `datasets` library writes for its Image and ClassLabel features.
    """
    images, labels = result.training_images()
    pixels = pictures.pixels(result.pixel_transform().inverse(images))
    encoded = [{"bytes": pictures.png(image), "path": f"{place:05}.png"} for place, image in enumerate(pixels)]
    features = {"image": {"_type": "Image"}, "label": {"names": list(result.classes), "_type": "ClassLabel"}}
    fields = [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())]
    columns = [encoded, labels.tolist()]
    if len(result.stage_step_sizes) > 1:
        features["stage"] = {"dtype": "int64", "_type": "Value"}
        fields.append(("stage", pa.int64()))
        synthetic = result.synthetic
        columns.append(training_images(synthetic.images, synthetic.stages, result.decode, result.pixel_transform())[1].tolist())
    schema = pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": features}})})
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns, schema=schema), buffer)
    return {"train-00000-of-00001.parquet": buffer.getvalue()}, (
        "Only the training split is written: put the test split of the real data beside it to use the folder as --data parquet:DIR.",
        "Pixels are clipped to what 8 bits can hold: train from the result file for the reported accuracy.",
    )


def to_mtt(result: Artifact) -> tuple[Files, tuple[str, ...]]:
    """`images_best.pt` (N, C, H, W), `labels_best.pt` (N,) and `syn_lr_best.pt` (), as the MTT and PDD programs load them.

    What networks are to be trained on: where a stored image holds several, each by itself, normalised. Of several stages, the files of
    each with all images up to it in a folder of its own, as PDD evaluates them, and those of the last at the top.
    Source: the names and contents of the reference programs' log folders (specification of MTT, sections 2.4 and 3.1).
    """
    sizes = result.stage_step_sizes
    files = _mtt_files(result, len(sizes), "")
    if len(sizes) > 1:
        for stage in range(1, len(sizes) + 1):
            files |= _mtt_files(result, stage, f"stage_{stage:02d}/")
    how = f"Train at the rate in syn_lr_best.pt, {sizes[-1]:.4g}: what MTT has learned, with other methods what their papers train at."
    if len(sizes) > 1:
        how = "Train on the folders stage_01, stage_02, .. in turn, each with the step size in its syn_lr_best.pt."
    space = "whitened with ZCA" if result.rule == "zca" else "normalised with mean and standard deviation"
    return files, (
        f"Images are in training space, {space}; the programs must be told to transform the test data the same way.",
        how,
    )


def _mtt_files(result: Artifact, stage: int, folder: str) -> Files:
    """The three files of the images up to a stage, with the step size that it learned."""
    images, labels = replace(result, synthetic=up_to(result.synthetic, stage)).training_images()
    tensors = {"images": images, "labels": labels, "syn_lr": torch.tensor(result.stage_step_sizes[stage - 1])}
    return {f"{folder}{name}_best.pt": _torch_file(tensor.detach().cpu().clone()) for name, tensor in tensors.items()}


def to_dc(result: Artifact) -> tuple[Files, tuple[str, ...]]:
    """`res_METHOD_DATASET_MODEL_Kipc.pt` as the programs of DC, DSA and DM write it and DC-Bench reads it.

    A dictionary: `data`, a list of one pair [images (N, C, H, W), labels (N,)]; `accs_all_exps`, for the network an empty list, since
    this file tells of no evaluation; and `mean` and `std` of the channels, which the programs do not read. What networks are to be
    trained on, of all stages, normalised. K counts stored images. Raises `ConfigError` for whitened images, which the programs do
    not know.
    Source: DatasetCondensation main.py and main_DM.py (specs/dc_dsa_dm_cafe_selection_cl.md sections 1 and 12).
    """
    if result.rule == "zca":
        raise ConfigError(["--to=dc: the images are whitened with ZCA, which the programs of DC do not know. Use --to mtt."])
    images, labels = (tensor.detach().cpu().clone() for tensor in result.training_images())
    settings, transform = result.config, result.pixel_transform()
    data, network = DC_DATA.get(result.dataset, safe_names((result.dataset,))[0]), dc_network(settings["model"])
    content = {
        "data": [[images, labels]],
        "accs_all_exps": {network: []},
        "mean": transform.mean.tolist(),
        "std": transform.std.tolist(),
    }
    ipc = len(result.synthetic.labels) // len(result.classes)
    notes = [f"Images are normalised with mean {_numbers(transform.mean)} and standard deviation {_numbers(transform.std)}."]
    if len(result.stage_step_sizes) > 1:
        notes.append("These are the images of all stages at once (union); trained on in turn, as raydd evaluates them, they do better.")
    return {f"res_{settings['method'].upper()}_{data}_{network}_{ipc}ipc.pt": _torch_file(content)}, tuple(notes)


DC_DATA = {
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
    "svhn": "SVHN",
    "mnist": "MNIST",
    "fashionmnist": "FashionMNIST",
    "tiny-imagenet": "TinyImageNet",
}
"""What the programs of DC call the data sets."""


def dc_network(model: dict[str, Any]) -> str:
    """The programs' name of a ConvNet: ConvNet is 3 blocks of width 128, D and W name another depth and width. Others keep their name."""
    if model["name"] != "convnet":
        return model["name"]
    depth = f"D{model['depth']}" if model["depth"] != 3 else ""
    return f"ConvNet{depth}" + (f"W{model['width']}" if model["width"] != 128 else "")


def _numbers(values: torch.Tensor) -> str:
    return ", ".join(f"{value:.4g}" for value in values.tolist())


EXPORTERS: dict[str, Callable[[Artifact], tuple[Files, tuple[str, ...]]]] = {
    "png": to_png,
    "parquet": to_parquet,
    "mtt": to_mtt,
    "dc": to_dc,
}


def safe_names(classes: tuple[str, ...]) -> list[str]:
    """A folder name for each class: letters, digits, space, ".", "_" and "-" stay, all else becomes "_".

    No name is empty, hidden, ends in a dot or equals another one or an index file, not even in another case.
    """
    names: list[str] = []
    taken = {MARKER, "grid.png", "index.json", "index.html"}
    for label, title in enumerate(classes):
        name = re.sub(r"[^\w. -]", "_", title).strip(" .")[:80] or f"class {label}"
        # Windows keeps these for devices.
        if re.fullmatch(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", name.lower()):
            name = f"_{name}"
        while name.casefold() in taken:
            name = f"{name}_{label}"
        taken.add(name.casefold())
        names.append(name)
    return names


def _result_file(run: str) -> Path:
    if not is_uri(run) and Path(run).is_file():
        return Path(run)
    path = RunFolder.view(run).synthetic
    if not path.exists():
        raise ConfigError([f"{run} has no result yet ({path.name} is absent). Let the run finish: --resume {run}."])
    return path


def _clear(out: Path, to: str) -> None:
    """Remove what an earlier export of this format wrote. Raises `ConfigError` when `out` is a file or holds anything else."""
    if out.is_file():
        raise ConfigError([f"{out} is a file. Name a folder to export into."])
    if not out.exists() or not any(out.iterdir()):
        return
    marker = out / MARKER
    if not marker.is_file():
        raise ConfigError([f"{out} is not empty and was not made by an export. Choose another folder."])
    listed, before = _listed(marker), read_json(marker).get("format", to)
    if before != to:
        raise ConfigError([f"{out} holds an export of the format {before}, which --to={to} would replace. Choose another folder."])
    for path in listed:
        (out / path).unlink(missing_ok=True)
    for folder in {(out / path).parent for path in listed} - {out}:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _listed(marker: Path) -> list[PurePosixPath]:
    """What an export wrote. Raises `CheckpointError` when the list is damaged or leads out of the folder."""
    try:
        paths = [PurePosixPath(name) for name in read_json(marker)["files"]]
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{marker}: is damaged ({error}). Choose another folder, or empty this one.") from error
    outside = [path for path in paths if path.is_absolute() or ".." in path.parts]
    if outside:
        raise CheckpointError(f"{marker}: names {outside[0]}, which lies outside. Choose another folder.")
    return paths


def _torch_file(content: Any) -> bytes:
    buffer = io.BytesIO()
    # The one use of torch's own file format: the programs of others read nothing else. Tensors in plain containers, so that
    # weights_only=True can load them.
    torch.save(content, buffer)
    return buffer.getvalue()


def _index(result: Artifact, rows: list[dict[str, object]]) -> str:
    loader = FileSystemLoader(Path(__file__).parent / "report")
    template = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    scale = max(1, round(96 / result.synthetic.images.shape[-1]))
    classes = [(name, [row["file"] for row in rows if row["label"] == label]) for label, name in enumerate(result.classes)]
    return template.get_template("index.html").render(
        title=result.config.get("recipe") or result.dataset,
        step=result.step,
        classes=classes,
        side=result.synthetic.images.shape[-1] * scale,
    )
