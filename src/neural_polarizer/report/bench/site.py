"""The benchmark's web pages: an overview and one page a suite, with its table in files to take away."""

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from itertools import chain, count
from statistics import fmean
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from neural_polarizer.report.bench import bars, names, plots
from neural_polarizer.report.bench.results import Entry, Label, SuiteResult
from neural_polarizer.report.bench.table_text import failures, notes, render_csv, render_latex, render_markdown
from neural_polarizer.report.bench.tables import FAILED_ATTACK, REPEATS, Table
from neural_polarizer.report.bench.tabulate import make_table
from neural_polarizer.report.html import Picture, group_pictures, make_environment
from neural_polarizer.report.values import number, seconds
from neural_polarizer.report.values import table as inner

if TYPE_CHECKING:
    from markupsafe import Markup

_MARKS = (
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",
    "M-3.6-3.6h7.2v7.2h-7.2z",
    "M0-4.8l4.6 8h-9.2z",
    "M0-5.2l5.2 5.2l-5.2 5.2l-5.2-5.2z",
    "M0 4.8l4.6-8h-9.2z",
)
"""Shapes that tell series apart without colour, as SVG paths around the origin."""


class _Page(NamedTuple):
    """A suite with the name that its files share, and its table."""

    stem: str
    suite: SuiteResult
    table: Table


def render_site(
    results: Sequence[SuiteResult], pictures: Mapping[str, Sequence[Picture]] = MappingProxyType({})
) -> dict[str, str]:
    """All files of the site by name: ``index.html``, and of each suite a page and its table as CSV, Markdown, LaTeX.

    Every page holds all that it needs: it loads nothing, and only its own script and style may run. ``pictures`` are
    shown on the pages of the suites of these names.
    """
    pages = [_Page(stem, suite, make_table(suite)) for stem, suite in zip(_stems(results), results, strict=True)]
    environment = make_environment()
    environment.globals |= _helpers()
    index = environment.get_template("bench/site_index.html.jinja").render(pages=pages)
    found = {"index.html": index}
    for page in pages:
        shown = group_pictures(pictures.get(page.suite.name, ()))
        found[f"{page.stem}.html"] = environment.get_template("bench/site_suite.html.jinja").render(
            _context(page, shown)
        )
        found[f"{page.stem}.csv"] = render_csv(page.table)
        found[f"{page.stem}.md"] = render_markdown(page.table)
        found[f"{page.stem}.tex"] = render_latex(page.table)
    return found


def _stems(results: Sequence[SuiteResult]) -> list[str]:
    """A name for the files of each suite that is safe in every file system and used once."""
    stems: list[str] = []
    for suite in results:
        wanted = re.sub(r"[^a-z0-9_-]+", "-", suite.name.lower()).strip("-") or "suite"
        candidates = chain([wanted], (f"{wanted}-{number}" for number in count(2)))
        stems.append(next(name for name in candidates if name not in ("index", *stems)))
    return stems


def _context(page: _Page, pictures: Mapping[str, Sequence[Picture]]) -> dict[str, Any]:
    table = page.table
    scatter = plots.make_scatter(table)
    curves = plots.make_curves(table)
    drawn = curves or ((scatter,) if scatter else ())
    return {
        "page": page,
        "table": table,
        "filters": _filters(table),
        "notes": notes(table),
        "failures": failures(table),
        "conditions": conditions(page.suite.entries),
        "plots": drawn,
        "legend": {series.style: series.label for plot in drawn for series in plot.series},
        "bar_plots": () if curves else (*bars.make_bars(table, "der"), *bars.make_bars(table, "seconds")),
        "pictures": pictures,
    }


def _sought(labels: Mapping[str, Label]) -> dict[str, str]:
    """What the filters compare with; an average belongs to no attack."""
    averaged = labels.get("attack") == names.MEAN
    return {axis: text for axis, text in names.labels_text(labels).items() if not (averaged and axis == "attack")}


def _filters(table: Table) -> dict[str, tuple[str, ...]]:
    """The axes with more than one label, and their labels, as they are shown."""
    found = {}
    for axis in table.axes:
        labels = [cell.labels for cell in table.measured if axis in cell.labels]
        found[axis] = tuple(dict.fromkeys(names.labels_text(each)[axis] for each in labels))
    return {axis: texts for axis, texts in found.items() if len(texts) > 1}


def _helpers() -> dict[str, Any]:
    script, style = _inlined("bench/site.js"), _inlined("page.css") + _inlined("bench/site.css")
    return {
        "script": script,
        "style": style,
        "script_hash": _hash(script),
        "style_hash": _hash(style),
        "names": names,
        "progress": progress,
        "headline": headline,
        "plot_frame": plots,
        "bar_frame": bars,
        "sought": _sought,
        "signed": lambda value, change: names.signed_text(value, change).replace("-", "\N{MINUS SIGN}"),
        "tone": _tone,
        "pretty": partial(json.dumps, indent=2, ensure_ascii=False, default=str),
        "marks": _MARKS,
        "repeats": REPEATS,
        "failed_attack": FAILED_ATTACK,
    }


def _inlined(name: str) -> "Markup":
    from markupsafe import Markup

    return Markup((files("neural_polarizer.report") / name).read_text(encoding="utf-8"))


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _tone(value: str, change: float) -> str:
    """Whether a difference is for the better; what is shown as nothing is neither."""
    if not names.signed_text(value, change).strip("+-0."):
        return "plain"
    better = names.DIRECTIONS.get(value, 0) * change
    return "good" if better > 0 else "bad" if better < 0 else "plain"


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
                name = names.text_of(cell.labels, [axis for axis in table.axes if axis != "attack"])
                cited = "" if figure.paper is None else f" (paper {_with_unit(value, figure.paper)})"
                return f"Best mean {names.value_text(value)}: {name} with {_with_unit(value, figure.mean)}{cited}."
    return ""


def _distance(table: Table) -> str:
    parts = []
    for value in table.values:
        found = [cell.figures[value].delta for cell in table.measured]
        deltas = [abs(delta) for delta in found if delta is not None]
        if deltas and value in names.RATES:
            amount, cells = f"{names.number_text(value, fmean(deltas))} points", "cell" if len(deltas) == 1 else "cells"
            parts.append(f"{names.value_text(value)} {amount} ({len(deltas)} {cells})")
    return f"Mean distance to the paper: {', '.join(parts)}." if parts else ""


def _with_unit(value: str, amount: float) -> str:
    unit = names.unit_text(value)
    return f"{names.number_text(value, amount)}{unit if unit == '%' else f' {unit}'}"
