"""One self-contained HTML page about one run: a pure function of its record and of ready-made pictures."""

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from neural_polarizer.errors import BadInputError
from neural_polarizer.report import charts
from neural_polarizer.report.html import Picture, group_pictures, make_environment
from neural_polarizer.report.run.advice import what_now
from neural_polarizer.report.run.facts import class_table, fact_tables
from neural_polarizer.report.run.guard import dial_charts, guard_summary
from neural_polarizer.report.run.measures import measures
from neural_polarizer.report.run.story import story
from neural_polarizer.report.run.verdict import judge
from neural_polarizer.report.values import count

SCHEMA = 1

_LOSSES = {
    "loss": "total loss",
    "loss_benign": "keep clean images right",
    "loss_asr": "do not follow the perturbation",
    "loss_bce": "return to the true class",
}
_SHARES = {"clean_accuracy": "clean images named correctly", "surrogate_success": "perturbations that mislead"}


def render_run(record: Mapping[str, Any], pictures: Sequence[Picture]) -> str:
    """The page about one run: HTML that loads and runs nothing, and reads the same in a browser, on a phone, on paper.

    ``record`` is the content of ``run.json``: metrics are shares in [0, 1], or None; one of another schema is refused.
    Pictures are shown in their order, groups in the order of their first picture.
    """
    if record["schema"] != SCHEMA:
        raise BadInputError(
            f"the run record has schema {record['schema']!r} but this version reads schema {SCHEMA}; "
            "use the version of neural-polarizer that wrote it"
        )
    model, after = record["model"], record["after"]
    context = {
        "file_name": PurePath(model["path"] or "a model").name,
        "model_name": model["architecture"],
        "num_classes": count(model["num_classes"]),
        "total_seconds": record["seconds"]["total"],
        "verdict": judge(record),
        "measures": measures(record),
        "n_test": count(after["n_test"] or None),
        "n_triggered": count(after["n_triggered"] or None),
        "surrogate": record["surrogate"],
        "what_now": what_now(record),
        "dial": dial_charts(record),
        "guarded": guard_summary(record),
        "story": story(record),
        "audit": class_table(record["audit"]["by_class"], record) if record["audit"] else None,
        "charts": _charts(record),
        "groups": group_pictures(pictures),
        "threats": record.get("threats", ()),
        "findings": record["findings"],
        "warnings": record["warnings"],
        "facts": fact_tables(record),
        "frame": charts,
    }
    return make_environment().get_template("run/run.html.jinja").render(context)


def _charts(record: Mapping[str, Any]) -> list[charts.Chart]:
    if record["guarded"]:  # its history is one row for each weight and round, not for each epoch
        return []
    drawn = (
        charts.line_chart("What was minimised, by epoch", record["history"], _LOSSES),
        charts.line_chart("Effect on the defender's clean images, by epoch", record["history"], _SHARES, shares=True),
    )
    return [chart for chart in drawn if chart is not None]
