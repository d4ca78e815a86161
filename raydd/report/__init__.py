"""The report of a run: one HTML page that opens without a network, and the same figures as PNG files."""

from raydd.report.page import write_report

__all__ = ["write_report"]
