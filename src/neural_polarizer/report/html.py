"""One self-contained HTML page about one run: a pure function of its record and of ready-made pictures."""

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from neural_polarizer.errors import BadInputError, needing
from neural_polarizer.report import charts
from neural_polarizer.report.advice import what_now
from neural_polarizer.report.audit import audit_table
from neural_polarizer.report.facts import fact_tables
from neural_polarizer.report.guard import dial_charts, guard_summary
from neural_polarizer.report.measures import measures
from neural_polarizer.report.story import story
from neural_polarizer.report.values import count, items, number, percent, points, seconds, table, visible
from neural_polarizer.report.verdict import judge

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

_SCHEMA = 1
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

_LOSSES = {
    "loss": "total loss",
    "loss_benign": "keep clean images right",
    "loss_asr": "do not follow the perturbation",
    "loss_bce": "return to the true class",
}
_SHARES = {
    "clean_accuracy": "clean images named correctly",
    "surrogate_success": "perturbations that mislead",
}


@dataclass(frozen=True)
class Picture:
    """A PNG for the report, with its heading, the sentence below it and the group it is shown in."""

    title: str
    caption: str
    png: bytes
    group: str

    def __post_init__(self) -> None:
        if not self.png.startswith(_PNG_SIGNATURE):
            raise BadInputError(f"picture {self.title!r} is not a PNG; make it with contact_sheet()")

    @property
    def uri(self) -> str:
        """The picture itself as a ``data:`` address."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode()


def render_run(record: Mapping[str, Any], pictures: Sequence[Picture]) -> str:
    """The page about one run.

    Args:
        record: the content of ``run.json``; metrics are shares in [0, 1]; anything may be missing or null.
        pictures: shown in this order, groups in the order of their first picture.

    Returns:
        HTML that loads nothing, runs nothing and reads the same in a browser, on a phone and on paper.

    Raises:
        BadInputError: the record was written in a schema that this version does not read.
    """
    schema = record.get("schema")
    if schema not in (None, _SCHEMA):
        raise BadInputError(
            f"the run record has schema {schema!r} but this version reads schema {_SCHEMA}; "
            "use the version of neural-polarizer that wrote it"
        )
    return make_environment().get_template("run.html.jinja").render(_context(record, pictures))


def make_environment() -> "Environment":
    """The templates of this folder: all text is escaped, a name that is not given is an error."""
    with needing("report", "reports"):
        from jinja2 import Environment, PackageLoader, StrictUndefined
    environment = Environment(
        loader=PackageLoader("neural_polarizer", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
    )
    environment.filters |= {
        "percent": percent,
        "points": _signed_points,
        "seconds": seconds,
        "flags": _mark_flags,
    }
    return environment


def _finalize(value: Any) -> Any:
    return visible(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def _signed_points(change: float | None) -> str:
    return points(change).replace("-", "\N{MINUS SIGN}") if change is not None else ""


def _mark_flags(text: str) -> "Markup":
    """Set command-line flags as code, which also keeps a line from breaking inside them."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"--[a-z]+", r'<code class="flag">\g<0></code>', str(escape(visible(text)))))


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
        "n_test": count(after.get("n_test")),
        "n_triggered": count(after.get("n_triggered")),
        "surrogate": _surrogate(record),
        "what_now": what_now(record),
        "dial": dial_charts(record),
        "guarded": guard_summary(record),
        "story": story(record),
        "audit": audit_table(record),
        "charts": _charts(record),
        "groups": group_pictures(pictures),
        "findings": [str(text) for text in items(record, "findings")],
        "warnings": [str(text) for text in items(record, "warnings")],
        "facts": fact_tables(record),
        "frame": charts,
    }


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


def group_pictures(pictures: Sequence[Picture]) -> dict[str, list[Picture]]:
    """Pictures by their group, both in the order in which they come."""
    groups: dict[str, list[Picture]] = {}
    for picture in pictures:
        groups.setdefault(picture.group, []).append(picture)
    return groups
