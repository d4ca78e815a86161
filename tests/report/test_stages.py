"""The stages on the page: numbers and images of each, the accuracy with all data where experts tell it, nothing for one stage."""
# ruff: noqa: RUF001 (the page uses dashes and multiplication signs)

import base64
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raydd import artifact, pictures
from raydd.data import Dataset, ImageSet
from raydd.experts.build import recipe
from raydd.experts.store import Store
from raydd.progressive import of_stage
from raydd.report import rendering, stages, write_report
from raydd.report.full_data import full_data
from raydd.report.gallery import by_class
from raydd.report.rundata import RunData, read_run
from tests.report.sample import CLASSES, staged
from tests.report.test_page import Page, read


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return staged(tmp_path_factory.mktemp("staged") / "run")


@pytest.fixture(scope="module")
def run(path: Path) -> RunData:
    return read_run(path)


@pytest.fixture(scope="module")
def shown(path: Path) -> Page:
    return read(write_report(path))


def test_the_page_has_a_section_with_a_row_for_each_stage(path: Path, shown: Page) -> None:
    words = shown.words
    assert "3 stages of 2 images per class, one candidate" in words and "finished after 60 steps in 3 stages" in words
    assert "stages 3 of 2 images per class and 20 steps each" in words
    assert "each expert's network, trained 1000 epochs on the images so far, then on the real images at 0.01" in words
    assert "take part in the matching, frozen" in words and "no experts on all of them are in the store" in words
    assert "trained on the images up to each stage in turn" in words and "Dotted: a stage begins" in words
    assert "#stages" in shown.addresses and (path / "figures" / "stages.png").exists()
    assert "Images shown of each class" not in words


def test_rows_have_the_numbers_of_their_own_images(run: RunData) -> None:
    assert run.artifact is not None
    start, *rows = stages.table(run)
    told = pictures.colours(run.artifact.pixels(run.artifact.initial_images))
    assert (start.mean, start.saturation) == (f"{told.mean:.3f}", f"{told.saturation:.3f}")
    for stage, row in enumerate(rows, start=1):
        told = pictures.colours(run.artifact.pixels(of_stage(run.artifact.synthetic, stage).images))
        assert (row.mean, row.std, row.saturation) == (f"{told.mean:.3f}", f"{told.std:.3f}", f"{told.saturation:.3f}")
    assert [row.ipc for row in rows] == ["2", "4", "6"] and [row.step_size for row in rows] == ["0.01", "0.02", "0.03"]
    assert [row.synthetic for row in rows] == ["40.0 ± 1.0 %", "50.0 ± 1.0 %", "60.0 ± 1.0 %"]
    assert [row.random for row in rows] == ["20.0 ± 1.0 %", "30.0 ± 1.0 %", "40.0 ± 1.0 %"]
    assert {row.share for row in rows} == {"100%"}


def test_blocks_hold_the_images_of_one_stage_a_column_for_each_class(path: Path, run: RunData, shown: Page) -> None:
    assert run.artifact is not None
    found = run.artifact
    for block in stages.blocks(found):
        strip = np.asarray(Image.open(io.BytesIO(base64.b64decode(block.source.partition(",")[2]))))
        own = of_stage(found.synthetic, block.stage)
        for label in range(len(CLASSES)):
            for place, image in enumerate(pictures.pixels(found.pixels(own.images[own.labels == label]))):
                part = strip[place * 9 : place * 9 + 8, label * 9 : label * 9 + 8, :3]
                assert np.array_equal(part, image.transpose(1, 2, 0))
        assert block.width % strip.shape[1] == 0
    assert {f"Images of stage {stage}" for stage in (1, 2, 3)} <= {image["alt"] for image in shown.images}
    scale = 12
    with Image.open(path / "figures" / "images_stages.png") as picture:
        assert picture.size == (3 * 8 * scale + 2 * 4, 3 * (2 * 8 * scale + 4) + 2 * 24)


def test_the_gallery_takes_as_many_of_every_stage(run: RunData, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run.artifact is not None
    monkeypatch.setattr("raydd.report.gallery.PER_CLASS", 3)
    images = run.artifact.synthetic.images
    expected = pictures.pixels(run.artifact.pixels(images[[0, 2, 4]]))
    assert np.array_equal(by_class(run.artifact, images)[0], expected)


def test_many_classes_and_large_images_are_limited(run: RunData, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run.artifact is not None
    monkeypatch.setattr(stages, "PIXELS", 3 * 64 * 2)  # two images of each of three stages
    assert [(block.width, block.height) for block in stages.blocks(run.artifact)] == [(8 * 17, 8 * 8)] * 3  # one row of two classes


def test_a_union_has_one_point_and_the_other_stages_none(tmp_path: Path) -> None:
    path = staged(tmp_path / "run", mode="union")
    lines = [json.loads(line) for line in (path / "evaluations.jsonl").read_text().splitlines()]
    (path / "evaluations.jsonl").write_text("".join(json.dumps({**one, "by_stage": one["by_stage"][-1:]}) + "\n" for one in lines))
    found = read_run(path)
    assert [row.synthetic for row in stages.table(found)] == ["", "–", "–", "60.0 ± 1.0 %"]
    assert "all images at once" in stages.caption(found)


def test_shares_of_a_curriculum_and_settings_in_words(run: RunData) -> None:
    told = {"shares": [{"stage": stage, "share": 0.1 * stage, "so_far": 0.0} for stage in (1, 2, 3)], "text": "stage 1 uses 10%"}
    config = replace(
        run.config, stages=replace(run.config.stages, transition=False, frozen_lr_scale=0.1, batch_mode="new_first", scale_lr=True)
    )
    changed = replace(run, curriculum=told, config=config)
    assert [row.share for row in stages.table(changed)[1:]] == ["10.0%", "20.0%", "30.0%"]
    assert dict(stages.settings(changed)) == {
        "stages": "3 of 2 images per class and 20 steps each",
        "later stages start from": "later epochs of the experts",
        "images of earlier stages": "move at 0.1 times the rate",
        "image learning rate": "multiplied by the stage's number",
        "inner batches": "the stage's own images, filled up with earlier ones",
        "real images": "stage 1 uses 10%",
    }
    others = replace(config, method="dm", stages=replace(config.stages, conditioning=False))
    words = dict(stages.settings(replace(run, config=others)))
    assert words["images of earlier stages"] == "take no part" and words["later stages start from"] == "fresh networks"
    assert [row.step_size for row in stages.table(replace(run, config=others))[1:]] == ["–"] * 3


def test_all_data_is_what_the_experts_of_the_store_came_to(run: RunData) -> None:
    assert run.artifact is not None
    place = (run.config, run.execution, run.artifact)
    assert full_data(*place) is None
    none = ImageSet(np.zeros((0, 3, 8, 8), np.uint8), np.zeros(0, np.int64))
    constants = ((0.4000001, 0.5, 0.6), (0.2, 0.25, 0.3))
    known = recipe(run.config, Dataset("digits", none, none, CLASSES, *constants, run.artifact.fingerprint))
    for values in ({**known, "seed": 5}, {**known, "stage": 2, "starts": "a"}):
        Store(run.execution.store, values).write(0, [np.zeros(4, np.float32)] * 2, {"test_accuracy": [[1, 0.1]]})
    assert full_data(*place) is None
    store = Store(run.execution.store, known)
    for expert, accuracy in enumerate((0.8, 0.9)):
        store.write(expert, [np.zeros(4, np.float32)] * 8, {"test_accuracy": [[3, 0.2], [7, accuracy]]})
    found = full_data(*place)
    assert found is not None and (found.experts, found.epochs) == (2, 7)
    assert found.mean == pytest.approx(0.85) and found.std == pytest.approx(0.05)
    assert "2 experts on all real images, 7 epochs, 85.0 ± 5.0 %" in stages.caption(replace(run, full=found))
    assert full_data(replace(run.config, method="dm"), *place[1:]) is None


def test_a_staged_run_that_has_just_begun(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "png", lambda figure: b"drawn")
    (tmp_path / "run").mkdir()
    for name in ("config.json", "environment.json"):
        (tmp_path / "run" / name).write_bytes((path / name).read_bytes())
    words = read(write_report(tmp_path / "run")).words
    assert "0 of 60 steps in 3 stages done" in words and "The stages appear here" in words


def test_a_run_of_one_stage_has_no_such_section(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "png", lambda figure: b"drawn")
    found = read(write_report(staged(tmp_path / "run", stages=1)))
    assert "#stages" not in found.addresses and "Stages" not in found.words and "Dotted" not in found.words
    assert artifact.read(tmp_path / "run" / "synthetic.safetensors").step_sizes == ()
