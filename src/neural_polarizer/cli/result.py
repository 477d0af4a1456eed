"""The result of a purification in the terminal."""

from collections.abc import Mapping
from typing import Any

from neural_polarizer.cli.output import show, show_table
from neural_polarizer.report.run.advice import what_now
from neural_polarizer.report.run.audit import audit_summary
from neural_polarizer.report.run.guard import guard_summary
from neural_polarizer.report.run.terminal import summary_table
from neural_polarizer.report.run.verdict import judge


def show_result(record: Mapping[str, Any]) -> None:
    """Print the verdict, the figures, what was found, and what to do now."""
    show(f"{judge(record).headline}.")
    show_table(summary_table(record))
    for summary in (audit_summary(record), guard_summary(record)):
        if summary is not None:
            show(summary)
    show(f"What now: {' '.join(what_now(record))}")
