"""The result of a run as a small table for the terminal."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from neural_polarizer.report.measures import measures
from neural_polarizer.report.values import percent, points


def summary_table(record: Mapping[str, Any]) -> Table:
    """Before and after of a run record, in percent; ``-`` marks what was not measured."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for head in ("before", "after", "change"):
        table.add_column(head, justify="right")
    styles = {"good": "green", "bad": "red", "plain": ""}
    for measure in measures(record):
        before = "" if measure.single else percent(measure.before)
        change = "" if measure.single else points(measure.change)
        style = styles[measure.tone]
        table.add_row(measure.short, before, percent(measure.after), f"[{style}]{change}[/]" if style else change)
    return table
