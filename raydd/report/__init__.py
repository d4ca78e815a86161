"""The report of a run: one HTML page that opens without a network, and the same figures as PNG files."""

from pathlib import Path

__all__ = ["write_report"]


def write_report(run_path: Path | str) -> Path:
    """Write the report of a run folder, see `raydd.report.page.write_report`.

    matplotlib and jinja2 are loaded here, when a report is written, and not by importing raydd.
    """
    from raydd.report import page

    return page.write_report(run_path)
