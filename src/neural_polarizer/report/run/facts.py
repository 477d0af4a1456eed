"""Everything needed to check or repeat a run, as plain tables of names and values."""

import json
import shlex
from collections.abc import Mapping
from typing import Any

from neural_polarizer.report.values import class_name, items, number, seconds, table

_NOT_RECORDED = "not recorded"
RUN = ("method", "seed", "device", "precision")

Rows = tuple[tuple[str, str], ...]
"""Names and values."""


def fact_tables(record: Mapping[str, Any]) -> dict[str, Rows]:
    """The tables of the closing section by their headings, without the empty ones."""
    model, spent = table(record, "model"), table(record, "seconds")
    classes = items(model, "classes")
    described = {key: value for key, value in model.items() if key != "classes"}
    run = _rows({key: record.get(key) for key in RUN}, _NOT_RECORDED)
    tables = {
        "Repeat it": (("command", _command(record)),),
        "Run": (*run, *_inserted(record), *_suspected(record)),
        "Model": (*_rows(described), ("sha256 of the file", _text(record.get("model_sha256")))),
        "Images": _images(record),
        "Settings": _rows(table(record, "config")),
        "Time": tuple((str(key), seconds(number(value))) for key, value in spent.items()),
        "Versions": _rows(table(record, "versions")),
        "Classes": tuple((str(index), _text(name)) for index, name in enumerate(classes)),
    }
    return {heading: rows for heading, rows in tables.items() if rows}


def _command(record: Mapping[str, Any]) -> str:
    arguments = items(record, "command")
    return shlex.join(str(part) for part in arguments) if arguments else f"{_NOT_RECORDED} (started from Python)"


def _images(record: Mapping[str, Any]) -> Rows:
    data = table(record, "data")
    return (
        ("clean, for training", _text(data.get("clean"))),
        ("how many", _text(record.get("n_clean"))),
        *((("poisoned, for training", _text(data["mixture"])),) if data.get("mixture") else ()),
        ("clean, for testing", _text(data.get("test"), missing="none (--test)")),
        ("with the trigger", _text(data.get("triggered"), missing="none (--triggered)")),
    )


def _inserted(record: Mapping[str, Any]) -> Rows:
    site, reason = record.get("site"), record.get("site_reason")
    if site is None:
        return ()
    return (("site of the new layer", _text(site)), *((("why there", _text(reason)),) if reason else ()))


def _suspected(record: Mapping[str, Any]) -> Rows:
    """The class that the method took for the attacker's, if one stood out."""
    suspect = record.get("suspect")
    if suspect == "next":
        return (("suspected class", "to each class the next one (all-to-all)"),)
    if not isinstance(suspect, int):
        return ()
    return (("suspected class", class_name(record, suspect)),)


def _rows(values: Mapping[str, Any], missing: str = "none") -> Rows:
    return tuple((str(key), _text(value, missing=missing)) for key, value in values.items())


def _text(value: Any, *, missing: str = _NOT_RECORDED) -> str:
    if value is None:
        return missing
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
