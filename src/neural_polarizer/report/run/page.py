"""One self-contained HTML page about one run: a pure function of its record and of ready-made pictures."""

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from neural_polarizer.errors import BadInputError
from neural_polarizer.report import charts
from neural_polarizer.report.html import Picture, group_pictures, make_environment
from neural_polarizer.report.run.advice import what_now
from neural_polarizer.report.run.audit import evidence_table
from neural_polarizer.report.run.facts import fact_tables
from neural_polarizer.report.run.guard import dial_charts, guard_summary
from neural_polarizer.report.run.measures import measures
from neural_polarizer.report.run.story import story
from neural_polarizer.report.run.verdict import judge
from neural_polarizer.report.values import count, items, number, table

_SCHEMA = 1

_LOSSES = {
    "loss": "total loss",
    "loss_benign": "keep clean images right",
    "loss_asr": "do not follow the perturbation",
    "loss_bce": "return to the true class",
}
_SHARES = {"clean_accuracy": "clean images named correctly", "surrogate_success": "perturbations that mislead"}


def render_run(record: Mapping[str, Any], pictures: Sequence[Picture]) -> str:
    """The page about one run: HTML that loads and runs nothing, and reads the same in a browser, on a phone, on paper.

    ``record`` is the content of ``run.json``: metrics are shares in [0, 1]; anything may be missing or null; one of
    another schema is refused. Pictures are shown in their order, groups in the order of their first picture.
    """
    schema = record.get("schema")
    if schema not in (None, _SCHEMA):
        raise BadInputError(
            f"the run record has schema {schema!r} but this version reads schema {_SCHEMA}; "
            "use the version of neural-polarizer that wrote it"
        )
    return make_environment().get_template("run/run.html.jinja").render(_context(record, pictures))


def _context(record: Mapping[str, Any], pictures: Sequence[Picture]) -> dict[str, Any]:
    model = table(record, "model")
    path = str(model.get("path") or "")
    after = table(record, "after")
    return {
        "file_name": PurePath(path).name or "a model",
        "path": path,
        "model_name": model.get("architecture") or "unknown architecture",
        "num_classes": count(model.get("num_classes")),
        "total_seconds": number(table(record, "seconds").get("total")),
        "verdict": judge(record),
        "measures": measures(record),
        "n_test": _some(after.get("n_test")),
        "n_triggered": _some(after.get("n_triggered")),
        "surrogate": _surrogate(record),
        "what_now": what_now(record),
        "dial": dial_charts(record),
        "guarded": guard_summary(record),
        "story": story(record),
        "audit": evidence_table(table(record, "audit"), record),
        "charts": _charts(record),
        "groups": group_pictures(pictures),
        "findings": [str(text) for text in items(record, "findings")],
        "warnings": [str(text) for text in items(record, "warnings")],
        "facts": fact_tables(record),
        "frame": charts,
    }


def _some(value: Any) -> str | None:
    """A number of things in words; None for none."""
    return count(value) if number(value) else None


def _surrogate(record: Mapping[str, Any]) -> dict[str, float | None] | None:
    values = table(record, "surrogate")
    known = {key: number(values.get(key)) for key in ("before", "after", "radius")}
    return None if known["before"] is None and known["after"] is None else known


def _charts(record: Mapping[str, Any]) -> list[charts.Chart]:
    if table(record, "guarded"):  # its history is one row for each weight and round, not for each epoch
        return []
    history = [row for row in items(record, "history") if isinstance(row, Mapping)]
    drawn = (
        charts.line_chart("What was minimised, by epoch", history, _LOSSES),
        charts.line_chart("Effect on the defender's clean images, by epoch", history, _SHARES, shares=True),
    )
    return [chart for chart in drawn if chart is not None]
