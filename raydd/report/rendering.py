"""From figures and values to a page: every page of the report has the same head, and figures in a light and a dark form."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

from raydd.environment import versions
from raydd.report.gallery import data_uri
from raydd.report.theme import DARK, LIGHT, Theme, png

Draw = Callable[[Theme], Figure]


@dataclass(frozen=True)
class Picture:
    """One figure in both themes as PNG files, with the text that stands for it where it cannot be seen."""

    light_png: bytes
    dark_png: bytes
    alt: str

    @classmethod
    def of(cls, draw: Draw, alt: str, encoded: Callable[[Figure], bytes] | None = None) -> "Picture":
        """Drawn in both themes; `encoded` makes a PNG file of a figure, `raydd.report.theme.png` when left out."""
        encoded = encoded or png
        return cls(encoded(draw(LIGHT)), encoded(draw(DARK)), alt)

    @property
    def light(self) -> str:
        """As a data URI."""
        return data_uri(self.light_png)

    @property
    def dark(self) -> str:
        """As a data URI."""
        return data_uri(self.dark_png)


def render(template: str, **values: Any) -> str:
    """The page of a template beside this file. It also gets `written`, the time, and `version`, that of raydd."""
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    written = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return environment.get_template(template).render(**values, written=written, version=versions()["raydd"])
