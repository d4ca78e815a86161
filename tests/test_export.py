"""Exports: the pictures and tensors that come back are those of the result, and no folder of others is touched."""

import io
import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from raydd import artifact
from raydd.config import Config, DataConfig, Execution, ModelConfig, to_dict
from raydd.data import load
from raydd.decode import Decoding, uniform
from raydd.errors import CheckpointError, ConfigError, ResourceError
from raydd.export import MARKER, export, safe_names
from raydd.rng import stream
from raydd.runfolder import RunFolder
from tests.report.sample import CLASSES, result, settings, staged


@pytest.fixture
def found():
    return result()


@pytest.fixture
def run(tmp_path, found):
    with RunFolder.create(tmp_path / "run", settings(), Execution()) as folder:
        artifact.write(folder.synthetic, found)
    return tmp_path / "run"


def picture(path) -> Image.Image:
    with Image.open(path) as image:
        image.load()
        return image


def expected(found) -> np.ndarray:
    """The pixels (N, H, W, 3) by the formula."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((0.4, 0.5, 0.6), (0.2, 0.25, 0.3)))
    return ((found.synthetic.images * std + mean).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()


def test_png_folders_hold_the_images_by_class(run, found, tmp_path):
    done = export(run, "png", tmp_path / "out")
    index = json.loads((tmp_path / "out" / "index.json").read_text())
    assert index["classes"] == list(CLASSES)
    assert [row["file"] for row in index["images"][:3]] == ["cat/0000.png", "cat/0001.png", "_b_dog__b_/0000.png"]
    for row, image, label in zip(index["images"], expected(found), found.synthetic.labels.tolist(), strict=True):
        assert (row["label"], row["class"], row["stage"]) == (label, CLASSES[label], 1)
        shown = picture(tmp_path / "out" / row["file"])
        assert shown.mode == "RGB" and np.array_equal(np.asarray(shown), image)
    assert done.files == 6 + 3 and "clipped" in str(done)
    text = (tmp_path / "out" / "index.html").read_text()
    assert text.count("<img") == 6 and "&lt;b&gt;dog" in text and "://" not in text
    assert picture(tmp_path / "out" / "grid.png").size == (2 * 16 + 2, 3 * 16 + 4)


def test_grey_images_become_grey_pictures(tmp_path):
    artifact.write(tmp_path / "grey.safetensors", result(shape=(1, 8, 8)))
    export(tmp_path / "grey.safetensors", "png", tmp_path / "out")
    assert picture(tmp_path / "out" / "cat" / "0000.png").mode == "L"


def test_parquet_is_laid_out_as_on_the_hub(run, found, tmp_path):
    done = export(run, "parquet", tmp_path / "out")
    table = pq.read_table(tmp_path / "out" / "train-00000-of-00001.parquet")
    assert (
        str(table.schema.field("image").type) == "struct<bytes: binary, path: string>" and str(table.schema.field("label").type) == "int64"
    )
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features == {"image": {"_type": "Image"}, "label": {"names": list(CLASSES), "_type": "ClassLabel"}}
    rows = table.to_pylist()
    assert [row["label"] for row in rows] == found.synthetic.labels.tolist()
    images = [np.asarray(Image.open(io.BytesIO(row["image"]["bytes"]))) for row in rows]
    assert np.array_equal(images, expected(found)) and rows[3]["image"]["path"] == "00003.png"
    assert "Only the training split is written" in str(done)


def test_parquet_is_read_back_as_a_data_set_once_a_test_split_is_there(run, found, tmp_path, monkeypatch):
    monkeypatch.setenv("RAYDD_CACHE", str(tmp_path / "cache"))
    export(run, "parquet", tmp_path / "out")
    train = tmp_path / "out" / "train-00000-of-00001.parquet"
    (tmp_path / "out" / "test-00000-of-00001.parquet").write_bytes(train.read_bytes())
    dataset = load(DataConfig(source=f"parquet:{tmp_path / 'out'}"))
    assert dataset.classes == CLASSES and dataset.train.labels.tolist() == found.synthetic.labels.tolist()
    assert np.array_equal(dataset.train.images.transpose(0, 2, 3, 1), expected(found))


def test_mtt_files_hold_plain_tensors(run, found, tmp_path):
    done = export(run, "mtt", tmp_path / "out")
    names = ("images_best.pt", "labels_best.pt", "syn_lr_best.pt")
    images, labels, lr = (torch.load(tmp_path / "out" / name, weights_only=True) for name in names)
    assert torch.equal(images, found.synthetic.images) and images.dtype == torch.float32
    assert torch.equal(labels, found.synthetic.labels) and labels.dtype == torch.int64
    assert lr.shape == () and lr == found.synthetic.step_size
    assert "normalised with mean and standard deviation" in str(done)


def dc_file(path, out) -> dict:
    """What the program of DC finds."""
    export(path, "dc", out)
    (file,) = out.glob("*.pt")
    return {"name": file.name, **torch.load(file, weights_only=True)}


def test_dc_file_is_a_dictionary_of_plain_tensors(run, found, tmp_path):
    content = dc_file(run, tmp_path / "out")
    assert content["name"] == "res_MTT_digits_ConvNet_2ipc.pt"
    ((images, labels),) = content["data"]
    assert torch.equal(images, found.synthetic.images) and images.dtype == torch.float32
    assert torch.equal(labels, found.synthetic.labels) and labels.dtype == torch.int64
    assert content["accs_all_exps"] == {"ConvNet": []}
    assert content["mean"] == pytest.approx([0.4, 0.5, 0.6]) and content["std"] == pytest.approx([0.2, 0.25, 0.3])


def test_dc_file_of_another_network_data_set_and_decoding(run, found, tmp_path):
    stored = torch.rand(found.synthetic.images.shape, generator=stream(0, 0, "x"))
    config = to_dict(Config(method="idc", model=ModelConfig(depth=4, width=32)))
    synthetic, decoding = replace(found.synthetic, images=stored), Decoding("pixels", 2)
    artifact.write(
        run / "synthetic.safetensors", replace(found, synthetic=synthetic, decode=decoding, dataset="tiny-imagenet", config=config)
    )
    content = dc_file(run, tmp_path / "out")
    assert content["name"] == "res_IDC_TinyImageNet_ConvNetD4W32_2ipc.pt"
    ((images, labels),) = content["data"]
    assert torch.equal(images, found.pixel_transform().forward(uniform(stored, 2))) and len(labels) == 4 * len(found.synthetic.labels)


def test_dc_file_takes_no_whitened_images_and_all_stages_at_once(tmp_path, found):
    eye = torch.eye(3 * 8 * 8)
    whitened = {"shape": torch.tensor([3, 8, 8]), "mean": torch.zeros(len(eye)), "matrix": eye, "inverse_matrix": eye}
    artifact.write(tmp_path / "zca.safetensors", replace(found, transform=whitened, rule="zca"))
    with pytest.raises(ConfigError, match="--to=dc: the images are whitened with ZCA.*--to mtt"):
        export(tmp_path / "zca.safetensors", "dc", tmp_path / "zca")
    path = staged(tmp_path / "run")
    assert "of all stages at once" in str(export(path, "dc", tmp_path / "again"))
    ((images, _),) = dc_file(path, tmp_path / "out")["data"]
    assert torch.equal(images, artifact.read(path / "synthetic.safetensors").synthetic.images)


def test_an_export_is_replaced_and_nothing_else(run, tmp_path):
    out = tmp_path / "out"
    export(run, "png", out)
    before = sorted(out.rglob("*"))
    (out / "cat" / "notes.txt").write_text("mine")
    listed = json.loads((out / MARKER).read_text())
    (out / "left").mkdir()
    (out / "left" / "over.png").write_bytes(b"of a larger set")
    (out / MARKER).write_text(json.dumps({**listed, "files": [*listed["files"], "left/over.png"]}))
    export(run, "png", out)
    assert sorted(out.rglob("*")) == sorted([*before, out / "cat" / "notes.txt"])


def test_an_export_of_another_format_is_left_alone(run, tmp_path):
    out = tmp_path / "out"
    export(run, "png", out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match="holds an export of the format png, which --to=mtt would replace. Choose another folder"):
        export(run, "mtt", out)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_a_folder_of_others_is_refused(run, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="is not empty and was not made by an export"):
        export(run, "png", out)
    assert [p.name for p in out.iterdir()] == ["thesis.tex"]
    with pytest.raises(ConfigError, match=r"thesis\.tex is a file"):
        export(run, "png", out / "thesis.tex")


@pytest.mark.parametrize("name", ["../precious", "/etc/precious", "cat/../../precious"])
def test_a_list_that_points_outside_is_refused(run, tmp_path, name):
    out = tmp_path / "out"
    export(run, "mtt", out)
    (tmp_path / "precious").write_text("mine")
    (out / MARKER).write_text(json.dumps({"files": ["images_best.pt", name]}))
    with pytest.raises(CheckpointError, match="lies outside"):
        export(run, "mtt", out)
    assert (tmp_path / "precious").exists() and (out / "images_best.pt").exists()


def test_what_cannot_be_exported_is_said(run, tmp_path):
    with pytest.raises(ConfigError, match=r"--to=jpeg is not a format; known: dc, mtt, parquet, png"):
        export(run, "jpeg", tmp_path / "out")
    with pytest.raises(ConfigError, match="not a run folder"):
        export(tmp_path / "nowhere", "png", tmp_path / "out")
    (run / "synthetic.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"has no result yet .*--resume"):
        export(run, "png", tmp_path / "out")
    (run / "synthetic.safetensors").write_bytes(b"half")
    with pytest.raises(CheckpointError, match="truncated"):
        export(run, "png", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_full_disk_names_the_file_and_the_export_can_be_repeated(run, tmp_path, monkeypatch):
    import errno
    from pathlib import Path

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
        with pytest.raises(ResourceError, match=r"images_best\.pt \(.* bytes\)"):
            export(run, "mtt", tmp_path / "out")
    export(run, "mtt", tmp_path / "out")
    assert (tmp_path / "out" / "images_best.pt").exists()


def test_safe_names():
    titles = ("a/b", "a:b", "A_B", "..", "", "con", "index.html", ".hidden", "猫", "x" * 200, "tab\there", "great white shark")
    names = safe_names(titles)
    assert names[0] == "a_b" and names[8] == "猫" and names[11] == "great white shark" and names[7] == "hidden"
    assert len({name.casefold() for name in names}) == len(titles)
    assert all(name and not name.startswith(".") and not set(name) & set('/\\:*?"<>|\t') and len(name) <= 90 for name in names)
    assert names[3] == "class 3" and names[5] == "_con" and names[6] != "index.html"


def test_several_images_in_one_are_shown_together_and_exported_for_training_apart(run, found, tmp_path):
    """Stored in pixels, 2 x 2 in each: PNG as stored; Parquet and tensor files as networks are trained."""
    stored = torch.rand(found.synthetic.images.shape, generator=stream(0, 0, "x"))
    mixed = replace(found, synthetic=replace(found.synthetic, images=stored), decode=Decoding("pixels", 2))
    artifact.write(run / "synthetic.safetensors", mixed)
    export(run, "png", tmp_path / "png")
    assert np.array_equal(np.asarray(picture(tmp_path / "png" / "cat" / "0000.png")), to_bytes(stored[0]))
    export(run, "parquet", tmp_path / "parquet")
    table = pq.read_table(tmp_path / "parquet" / "train-00000-of-00001.parquet")
    crops, labels = uniform(stored, 2), found.synthetic.labels.repeat(4)
    assert table["label"].to_pylist() == labels.tolist()
    shown = [np.asarray(Image.open(io.BytesIO(cell["bytes"]))) for cell in table["image"].to_pylist()]
    assert all(np.array_equal(image, to_bytes(crop)) for image, crop in zip(shown, crops, strict=True))
    export(run, "mtt", tmp_path / "mtt")
    images, targets = (torch.load(tmp_path / "mtt" / f"{name}_best.pt", weights_only=True) for name in ("images", "labels"))
    assert torch.equal(images, found.pixel_transform().forward(crops)) and torch.equal(targets, labels)


def to_bytes(image: torch.Tensor) -> np.ndarray:
    return (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()


def test_the_stages_of_a_set_are_exported_apart(tmp_path):
    path = staged(tmp_path / "run")
    found = artifact.read(path / "synthetic.safetensors").synthetic
    done = export(path, "mtt", tmp_path / "mtt")
    assert done.files == 3 * 4 and "stage_01, stage_02" in str(done)
    for stage, folder in ((1, "stage_01/"), (2, "stage_02/"), (3, "stage_03/"), (3, "")):
        images, labels, lr = (
            torch.load(tmp_path / "mtt" / f"{folder}{name}_best.pt", weights_only=True) for name in ("images", "labels", "syn_lr")
        )
        assert torch.equal(images, found.images[found.stages <= stage]) and lr == pytest.approx(0.01 * stage)
        assert labels.tolist() == found.labels[found.stages <= stage].tolist()
    export(path, "parquet", tmp_path / "parquet")
    table = pq.read_table(next((tmp_path / "parquet").glob("*.parquet")))
    assert table.column("stage").to_pylist() == found.stages.tolist() == [1, 1, 2, 2, 3, 3] * 3
