"""The result of a purification in the terminal."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from neural_polarizer.cli.output import console, right, show
from neural_polarizer.report.run.advice import what_now
from neural_polarizer.report.run.audit import audit_summary
from neural_polarizer.report.run.guard import guard_summary
from neural_polarizer.report.run.measures import measures
from neural_polarizer.report.run.verdict import judge
from neural_polarizer.report.values import count, number, percent, points, seconds
from neural_polarizer.report.values import table as part

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
    """What the defense found and did, and what that cost, each in one line."""
    before, after = part(record, "before"), part(record, "after")
    success = [number(each.get("asr")) for each in (before, after)]
    accuracy = [number(each.get("acc")) for each in (before, after)]
    found = audit_summary(record) or "no class was accused"
    found += f"; the trigger worked on {percent(success[0])} of the images before and on {percent(success[1])} after"
    change = None if accuracy[0] is None or accuracy[1] is None else accuracy[1] - accuracy[0]
    tested = count(after.get("n_test")) or "no"
    cost = (
        f"accuracy {percent(accuracy[0])} before and {percent(accuracy[1])} after ({points(change)} points, on "
        f"{tested} clean test images); {seconds(number(part(record, 'seconds').get('total')))} for the purification"
    )
    return found, cost
