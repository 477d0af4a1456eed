"""A suite in a few lines: how far it has come, what came out, and where it was computed."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from neural_polarizer.report.bench.names import RATES, number_text, text_of, unit_text, value_text
from neural_polarizer.report.bench.results import Entry
from neural_polarizer.report.bench.tables import Table
from neural_polarizer.report.values import number, seconds
from neural_polarizer.report.values import table as inner


@dataclass(frozen=True)
class Progress:
    """How many runs of a suite are done, failed, or have not been computed."""

    done: int
    failed: int
    missing: int

    @property
    def total(self) -> int:
        return self.done + self.failed + self.missing


def progress(entries: Sequence[Entry]) -> Progress:
    """Count the runs of a suite."""
    states = [None if entry.record is None else entry.record.get("status") for entry in entries]
    done, missing = states.count("done"), states.count(None)
    return Progress(done, len(states) - done - missing, missing)


def headline(table: Table) -> tuple[str, ...]:
    """What came out, in at most two sentences: what is best on average, and how far we are from the paper."""
    return tuple(sentence for sentence in (_leader(table), _distance(table)) if sentence)


def conditions(entries: Sequence[Entry]) -> tuple[tuple[str, str], ...]:
    """Where, when and with what the runs were computed, as names and values."""
    records = {str(entry.record.get("id")): entry.record for entry in entries if entry.record is not None}
    found = [inner(record, "provenance") for record in records.values()]
    versions = [inner(provenance, "versions") for provenance in found]
    started = sorted(str(provenance["started"]) for provenance in found if provenance.get("started"))
    spent = [number(provenance.get("seconds")) for provenance in found]
    rows = {
        "device": _distinct([str(provenance.get("device") or "") for provenance in found]),
        "versions": _distinct([f"{name} {version}" for each in versions for name, version in each.items()]),
        "started": " to ".join(dict.fromkeys((started[0], started[-1]))) if started else "",
        "computed for": seconds(sum(known)) if (known := [one for one in spent if one is not None]) else "",
    }
    return tuple((name, text) for name, text in rows.items() if text)


def _distinct(texts: Sequence[str]) -> str:
    return ", ".join(text for text in dict.fromkeys(texts) if text)


def _leader(table: Table) -> str:
    averages = [cell for cell in table.cells.values() if not cell.entries]
    for value in ("der", "asr", "acc", "seconds"):
        for cell in averages:
            figure = cell.figures.get(value)
            if figure is not None and figure.rank == "best" and figure.mean is not None:
                name = text_of(cell.labels, [axis for axis in table.axes if axis != "attack"])
                cited = "" if figure.paper is None else f" (paper {_with_unit(value, figure.paper)})"
                return f"Best mean {value_text(value)}: {name} with {_with_unit(value, figure.mean)}{cited}."
    return ""


def _distance(table: Table) -> str:
    parts = []
    for value in table.values:
        found = [cell.figures[value].delta for cell in table.measured]
        deltas = [abs(delta) for delta in found if delta is not None]
        if deltas and value in RATES:
            amount, cells = f"{number_text(value, fmean(deltas))} points", "cell" if len(deltas) == 1 else "cells"
            parts.append(f"{value_text(value)} {amount} ({len(deltas)} {cells})")
    return f"Mean distance to the paper: {', '.join(parts)}." if parts else ""


def _with_unit(value: str, amount: float) -> str:
    unit = unit_text(value)
    return f"{number_text(value, amount)}{unit if unit == '%' else f' {unit}'}"
