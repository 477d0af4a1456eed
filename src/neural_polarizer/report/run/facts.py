"""Everything needed to check or repeat a run, and what was found in its model, as plain tables of names and values."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from neural_polarizer.report.values import class_name, number, seconds

_NOT_RECORDED = "not recorded"
RUN = ("method", "seed", "device", "precision")

Rows = tuple[tuple[str, str], ...]
"""Names and values."""


@dataclass(frozen=True)
class ClassTable:
    """The heads of the columns, and a row of texts for each class."""

    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def class_table(by_class: Mapping[str, Any], record: Mapping[str, Any]) -> ClassTable | None:
    """What was found, a list of values for each measure, with the classes' names, which ``record`` has; None for none.

    A list may be shorter than there are classes.
    """
    rows = tuple(
        (class_name(record, label), *map(_value, values))
        for label, values in enumerate(zip_longest(*by_class.values()))
    )
    return ClassTable(("class", *(name.replace("_", " ") for name in by_class)), rows) if rows else None


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    known = number(value)
    return "-" if known is None else f"{known:.3g}"


def fact_tables(record: Mapping[str, Any]) -> dict[str, Rows]:
    """The tables of the closing section by their headings, without the empty ones."""
    classes = record["model"]["classes"]
    described = {key: value for key, value in record["model"].items() if key != "classes"}
    command = shlex.join(record["command"]) if record["command"] else f"{_NOT_RECORDED} (started from Python)"
    tables = {
        "Repeat it": (("command", command),),
        "Run": (*_rows({key: record[key] for key in RUN}), *_inserted(record), *_suspected(record)),
        "Model": (*_rows(described), ("sha256 of the file", record["model_sha256"])),
        "Images": _images(record),
        "Settings": _rows(record["config"]),
        "Time": tuple((key, seconds(number(value))) for key, value in record["seconds"].items()),
        "Versions": _rows(record["versions"]),
        "Classes": tuple((str(index), name) for index, name in enumerate(classes)),
    }
    return {heading: rows for heading, rows in tables.items() if rows}


def _images(record: Mapping[str, Any]) -> Rows:
    data = record["data"]
    return (
        ("clean, for training", data.get("clean") or _NOT_RECORDED),
        ("how many", str(record["n_clean"])),
        *((("poisoned, for training", data["mixture"]),) if data.get("mixture") else ()),
        ("clean, for testing", data.get("test") or "none (--test)"),
        ("with the trigger", data.get("triggered") or "none (--triggered)"),
    )


def _inserted(record: Mapping[str, Any]) -> Rows:
    site, reason = record["site"], record["site_reason"]
    return (*((("site of the new layer", site),) if site else ()), *((("why there", reason),) if reason else ()))


def _suspected(record: Mapping[str, Any]) -> Rows:
    """The class that the method took for the attacker's, if one stood out."""
    suspect = record["suspect"]
    if suspect is None:
        return ()
    told = "to each class the next one (all-to-all)" if suspect == "next" else class_name(record, suspect)
    return (("suspected class", told),)


def _rows(values: Mapping[str, Any]) -> Rows:
    return tuple((key, "none" if value is None else _text(value)) for key, value in values.items())


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
