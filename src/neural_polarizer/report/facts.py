"""Everything needed to check or repeat a run, as plain tables of names and values."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from neural_polarizer.report.values import items, number, seconds, table

_NOT_RECORDED = "not recorded"
RUN = ("method", "site", "seed", "device", "precision")


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
        FactTable("Run", (*_rows({key: record.get(key) for key in RUN}), ("easiest to reach", _suspect(record)))),
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
        ("clean, for testing", _text(data.get("test"), missing="none (--test)")),
        ("with the trigger", _text(data.get("triggered"), missing="none (--triggered)")),
    )


def _suspect(record: Mapping[str, Any]) -> str:
    """A class that stands out here may be the attacker's; one class always comes first, so it proves nothing."""
    suspect = record.get("suspect")
    if suspect == "next":
        return "to each class the next one (all-to-all)"
    if not isinstance(suspect, int):
        return "not looked for"
    classes = items(table(record, "model"), "classes")
    return f"{suspect} ({classes[suspect]})" if 0 <= suspect < len(classes) else str(suspect)


def _rows(values: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple((str(key), _text(value)) for key, value in values.items())


def _text(value: Any, *, missing: str = _NOT_RECORDED) -> str:
    if value is None:
        return missing
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
