"""The code on the page about adding a data set runs as printed."""

import re
from pathlib import Path

import pytest

from raydd.config import DataConfig
from raydd.data import __path__ as package
from raydd.data import load, sources

PAGE = Path(__file__).parents[2] / "docs" / "add-a-dataset.md"


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


def test_parquet_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    write, look, _ = blocks()
    exec(write + look, {})
    assert capsys.readouterr().out.startswith("(3, 32, 32) ('0', '1') 20 10 (0.")


def test_new_source_example_is_picked_up_from_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sources, "_SOURCES", dict(sources._SOURCES))
    (tmp_path / "stripes.py").write_text(blocks()[2])
    monkeypatch.syspath_prepend(tmp_path)
    __import__("stripes")
    dataset = load(DataConfig(source="stripes"))
    assert dataset.classes == ("horizontal", "vertical") and dataset.shape == (1, 16, 16)
    assert (len(dataset.train), len(dataset.test)) == (200, 50)
    assert (dataset.train.images[0, 0] == dataset.train.images[1, 0].T).all()


def test_files_of_the_package_register_themselves():
    modules = {path.stem for path in Path(package[0]).glob("*.py")} - {"__init__"}
    import sys

    assert all(f"raydd.data.{module}" in sys.modules for module in modules)
