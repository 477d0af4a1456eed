"""Everything needed to check or repeat a run, as plain tables of names and values."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from neural_polarizer.report.values import class_name, items, number, seconds, table

_NOT_RECORDED = "not recorded"
RUN = ("method", "seed", "device", "precision")


@dataclass(frozen=True)
class FactTable:
    """A heading and its rows of (name, value)."""

    heading: str
    rows: tuple[tuple[str, str], ...]


def fact_tables(record: Mapping[str, Any]) -> list[FactTable]:
    """The tables of the closing section, without the empty ones."""
    model = dict(table(record, "model"))
    classes = items(model, "classes")
    model.pop("classes", None)
    timings = table(record, "seconds")
    tables = [
        FactTable("Repeat it", (("command", _command(record)),)),
        FactTable(
            "Run",
            (*_rows({key: record.get(key) for key in RUN}, _NOT_RECORDED), *_inserted(record), *_suspected(record)),
        ),
        FactTable("Model", (*_rows(model), ("sha256 of the file", _text(record.get("model_sha256"))))),
        FactTable("Images", _images(record)),
        FactTable("Settings", _rows(table(record, "config"))),
        FactTable("Time", tuple((str(key), seconds(number(value))) for key, value in timings.items())),
        FactTable("Versions", _rows(table(record, "versions"))),
        FactTable("Classes", tuple((str(index), _text(name)) for index, name in enumerate(classes))),
    ]
    return [entry for entry in tables if entry.rows]


def _command(record: Mapping[str, Any]) -> str:
    arguments = items(record, "command")
    return shlex.join(str(part) for part in arguments) if arguments else f"{_NOT_RECORDED} (started from Python)"


def _images(record: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    data = table(record, "data")
    return (
        ("clean, for training", _text(data.get("clean"))),
        ("how many", _text(record.get("n_clean"))),
        *((("poisoned, for training", _text(data["mixture"])),) if data.get("mixture") else ()),
        ("clean, for testing", _text(data.get("test"), missing="none (--test)")),
        ("with the trigger", _text(data.get("triggered"), missing="none (--triggered)")),
    )


def _inserted(record: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    site, reason = record.get("site"), record.get("site_reason")
    if site is None:
        return ()
    return (("site of the new layer", _text(site)), *((("why there", _text(reason)),) if reason else ()))


def _suspected(record: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """The class that the method took for the attacker's, if one stood out."""
    suspect = record.get("suspect")
    if suspect == "next":
        return (("suspected class", "to each class the next one (all-to-all)"),)
    if not isinstance(suspect, int):
        return ()
    return (("suspected class", class_name(record, suspect)),)


def _rows(values: Mapping[str, Any], missing: str = "none") -> tuple[tuple[str, str], ...]:
    return tuple((str(key), _text(value, missing=missing)) for key, value in values.items())


def _text(value: Any, *, missing: str = _NOT_RECORDED) -> str:
    if value is None:
        return missing
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
