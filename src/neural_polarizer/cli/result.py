"""The result of a purification in the terminal."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from neural_polarizer.cli.output import console, right, show
from neural_polarizer.report.run.advice import what_now
from neural_polarizer.report.run.guard import guard_summary
from neural_polarizer.report.run.measures import measures
from neural_polarizer.report.run.story import audit_summary
from neural_polarizer.report.run.verdict import judge
from neural_polarizer.report.values import count, percent, points, seconds

_STYLES = {"good": "green", "bad": "red", "plain": "none"}


def show_result(record: Mapping[str, Any]) -> None:
    """Print the verdict, the figures, what was found, and what to do now."""
    show(f"{judge(record).headline}.")
    console.print(summary_table(record))
    for summary in (audit_summary(record), guard_summary(record)):
        if summary is not None:
            show(summary)
    show(f"What now: {' '.join(what_now(record))}")


def summary_table(record: Mapping[str, Any]) -> Table:
    """Before and after of a run record, in percent; ``-`` marks what was not measured."""
    table = Table("", *right("before", "after", "change"), box=None, pad_edge=False, header_style="bold")
    for measure in measures(record):
        before = "" if measure.single else percent(measure.before)
        change = "" if measure.single else f"[{_STYLES[measure.tone]}]{points(measure.change)}"
        table.add_row(measure.short, before, percent(measure.after), change)
    return table


def found_and_cost(record: Mapping[str, Any]) -> tuple[str, str]:
    """What the defense found and did, and what that cost, each in one line; both test sets were there."""
    before, after = record["before"], record["after"]
    found = audit_summary(record) or "no class was accused"
    found += (
        f"; the trigger worked on {percent(before['asr'])} of the images before and on {percent(after['asr'])} after"
    )
    cost = (
        f"accuracy {percent(before['acc'])} before and {percent(after['acc'])} after "
        f"({points(after['acc'] - before['acc'])} points, on {count(after['n_test'])} clean test images); "
        f"{seconds(record['seconds']['total'])} for the purification"
    )
    return found, cost
