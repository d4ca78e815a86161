"""The page: it shows what happened, needs nothing from outside, and copes with runs that have hardly begun."""
# ruff: noqa: RUF001 (the page uses dashes and multiplication signs)

import base64
import io
import re
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from raydd import artifact
from raydd.config import Execution
from raydd.decode import Decoding
from raydd.errors import CheckpointError, ConfigError
from raydd.report import page, rendering, write_report
from raydd.report.theme import LIGHT, png
from raydd.runfolder import RunFolder
from tests.report.sample import CLASSES, evaluation, finished, record, result, settings

VOID = {"meta", "link", "img", "source", "br"}


@dataclass
class Page(HTMLParser):
    """Text, images and addresses of a page; fails on tags that do not close."""

    text: list[str] = field(default_factory=list)
    images: list[dict[str, str]] = field(default_factory=list)
    addresses: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    open: list[str] = field(default_factory=list)

    def __post_init__(self):
        super().__init__()

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.tags.append(tag)
        self.addresses += [values[name] for name in ("src", "href", "srcset", "data", "action") if name in values]
        if tag == "img":
            self.images.append(values)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def read(path) -> Page:
    found = Page()
    found.feed(path.read_text())
    found.close()
    assert found.open == []
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return finished(tmp_path_factory.mktemp("runs") / "a run")


@pytest.fixture(scope="module")
def shown(run) -> Page:
    return read(write_report(run))


@pytest.fixture
def quick(monkeypatch):
    """Draws the figures but does not turn them into files, for tests that look at the words."""
    monkeypatch.setattr(rendering, "png", lambda figure: b"drawn")


def test_the_page_lies_in_the_run_with_the_figures_beside_it(run, shown):
    assert (run / "report.html").read_text().startswith("<!doctype html>")
    names = {"accuracy", "loss", "choices", "choice_map", "scores", "seconds", "images_start", "images_end"}
    assert {p.stem for p in (run / "figures").iterdir()} == names
    for path in (run / "figures").iterdir():
        Image.open(path).verify()


def test_nothing_comes_from_outside(run, shown):
    assert {a.split(":")[0] for a in shown.addresses if not a.startswith("#")} == {"data"}
    text = (run / "report.html").read_text()
    assert not re.search(r"https?://|@import|url\(", text)
    assert not {"script", "link", "iframe", "object"} & set(shown.tags)


def test_every_link_on_the_page_has_its_place(run, shown):
    text = (run / "report.html").read_text()
    links = [a[1:] for a in shown.addresses if a.startswith("#")]
    assert len(links) == 8 and all(f'<section id="{name}">' in text for name in links)


def test_the_headline_is_the_last_evaluation_against_random_images(shown):
    words = shown.words
    assert "Test accuracy 60.0 ± 1.0 % 2 networks from scratch, after 60 steps" in words
    assert "Random real images 35.0 ± 2.0 % the same number, 2 networks" in words
    assert "Gain +25.0 percentage points, ± 2.2" in words  # sqrt(1 + 4)
    assert "MTT, recipe mtt/<i>small</i> on digits, 2 images per class, 3 candidates a step chosen by dynadistill, seed 0" in words
    assert "finished after 60 steps" in words and "Time 1 h 02 min" in words
    assert "Synthetic images 6 3 classes × 2, each 3 × 8 × 8" in words
    # Step 20 was evaluated twice, before and after the resumption: one of three evaluations.
    assert "the last of 3 evaluations" in words and "flattering, was 66.0 ± 1.0 % after 40 steps" in words


def test_names_are_text_and_never_markup(run, shown):
    text = (run / "report.html").read_text()
    assert "<b>dog</b>" in shown.words and "<script>alert(1)</script>" in shown.words
    assert "<script" not in text and "&lt;b&gt;dog&lt;/b&gt;" in text


def test_images_are_start_beside_end_in_pixels_of_the_screen(shown):
    found = result()
    pictures = {image["alt"]: image for image in shown.images}
    for label, name in enumerate(CLASSES):
        for tensor, when in ((found.initial_images, "start"), (found.synthetic.images, "end")):
            image = pictures[f"{name} at the {when}"]
            data = base64.b64decode(image["src"].removeprefix("data:image/png;base64,"))
            strip = np.asarray(Image.open(io.BytesIO(data)))
            mean, std = torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1), torch.tensor([0.2, 0.25, 0.3]).view(3, 1, 1)
            for place in range(2):
                expected = (((tensor[2 * label + place] * std + mean).clamp(0, 1)) * 255).round().permute(1, 2, 0).numpy()
                part = strip[:, place * 9 : place * 9 + 8]
                assert np.array_equal(part[..., :3], expected) and (part[..., 3] == 255).all()
            assert (strip[:, 8, 3] == 0).all()
            # A whole number of screen pixels for each pixel.
            assert int(image["width"]) % strip.shape[1] == 0 and int(image["height"]) // 8 == int(image["width"]) // strip.shape[1]


def test_every_figure_has_a_light_and_a_dark_form(shown):
    plots = [image for image in shown.images if not image["alt"].endswith(("start", "end"))]
    assert shown.tags.count("picture") == shown.tags.count("source") == len(plots) == 6


def test_times_settings_environment_faults(shown):
    words = shown.words
    assert "score candidates 12.0 s 15.8% 200.0 ms 200.0 ms" in words  # of 60 s in steps and 4 evaluations of 4 s
    assert "other 12.0 s" in words and "evaluation 16.0 s 21.1%" in words and "all 76.0 s 100.0% 1.00 s 1.00 s" in words
    assert "selection.candidates 3 1" in words and "mtt.max_start_epoch 4 25" in words and "workers 2 –" in words
    assert torch.__version__ in words and "resumed after 20 steps" in words and "workers 0" in words
    assert "steps redrawn because nothing finite came out 1" in words and "steps skipped 1" in words and "resumptions 1" in words
    assert "12 worker worker 1 died" in words


def test_a_run_of_one_candidate_says_so(tmp_path, quick):
    shown = read(write_report(finished(tmp_path / "one", candidates=1)))
    assert "Every step has one candidate" in shown.words and "one candidate a step" in shown.words
    assert {p.stem for p in (tmp_path / "one" / "figures").iterdir()}.isdisjoint({"scores"})


def test_a_run_that_has_just_begun(tmp_path):
    RunFolder.create(tmp_path / "new", settings(), Execution()).close()
    shown = read(write_report(tmp_path / "new"))
    for text in (
        "0 of 60 steps done",
        "not evaluated yet",
        "No evaluation yet",
        "No step has been recorded",
        "No candidate has been chosen",
    ):
        assert text in shown.words
    assert shown.images == []


def test_a_run_in_progress_is_read_while_it_is_written(tmp_path, quick):
    with RunFolder.create(tmp_path / "now", settings(), Execution()) as run:
        run.append(record(0))
        shown = read(write_report(run.path))
        assert "1 of 60 steps done" in shown.words and "Time so far 1.0 s" in shown.words
        run.append(record(1))
        with open(run.metrics, "a") as file:
            file.write('{"step":2,"lo')
        assert "2 of 60 steps done" in read(write_report(run.path)).words


def test_only_skipped_steps_and_one_evaluation(tmp_path, quick):
    with RunFolder.create(tmp_path / "bad", settings(), Execution()) as run:
        for step in range(3):
            run.append(record(step, skipped=True))
        run.append_evaluation(evaluation(0, 0.1, nets=1))
    shown = read(write_report(tmp_path / "bad"))
    assert "steps skipped 3" in shown.words and "Test accuracy 10.0 ± 1.0 % 1 network" in shown.words


def test_a_damaged_result_file_is_named_and_the_rest_is_shown(tmp_path, quick):
    path = finished(tmp_path / "hurt")
    (path / "synthetic.safetensors").write_bytes((path / "synthetic.safetensors").read_bytes()[:-9])
    shown = read(write_report(path))
    assert "synthetic.safetensors: truncated" in shown.words and "60.0 ± 1.0 %" in shown.words


def test_no_run_and_damaged_records_are_errors(tmp_path):
    with pytest.raises(ConfigError, match="not a run folder"):
        write_report(tmp_path)
    path = finished(tmp_path / "hurt")
    (path / "metrics.jsonl").write_text("nonsense\n" + (path / "metrics.jsonl").read_text())
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl: line 1 is damaged"):
        write_report(path)


def test_many_classes_and_images_are_limited_and_the_page_says_so(tmp_path):
    path = tmp_path / "many"
    found = replace(result(tuple(f"class {n}" for n in range(120)), ipc=12, shape=(1, 4, 4)), decode=Decoding("pixels", 2))
    with RunFolder.create(path, settings(), Execution()) as run:
        artifact.write(run.synthetic, found)
    shown = read(write_report(path))
    assert "Images shown of each class: 10 of 12." in shown.words and "Classes shown: 100 of 120." in shown.words
    assert len(shown.images) == 2 * 100 and shown.tags.count("details") == 9 + 1
    assert "Each holds 4 images side by side" in shown.words
    assert "Classes 91 to 100" in shown.words and "class 99 at the end" in {image["alt"] for image in shown.images}


def test_a_class_without_images_is_no_error(tmp_path):
    found = result(ipc=1)
    with RunFolder.create(tmp_path / "gap", settings(), Execution()) as run:
        artifact.write(run.synthetic, replace(found, synthetic=replace(found.synthetic, labels=torch.tensor([0, 0, 2]))))
    assert "no images" in read(write_report(tmp_path / "gap")).words


def test_the_figures_do_not_depend_on_matplotlib_settings_outside(run):
    import matplotlib

    data = page.read_run(run)
    before = png(page.drawings(data)["loss"](LIGHT))
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red"}):
        facecolor = matplotlib.rcParams["axes.facecolor"]
        page.drawings(data)["loss"](LIGHT)
        assert matplotlib.rcParams["axes.facecolor"] == facecolor
    assert png(page.drawings(data)["loss"](LIGHT)) == before


def test_a_selection_is_called_by_its_rule(run_copy: Path) -> None:
    (run_copy / "selected.json").write_text('{"method": "herding"}')
    page = write_report(run_copy).read_text()
    assert "HERDING" in page and "real images chosen by this rule" in page and "MTT," not in page
