"""What a defense has found in the model, as a table with one row a class."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from neural_polarizer.report.values import class_name, items, number, table


@dataclass(frozen=True)
class AuditTable:
    """The heads of the columns, and a row of texts for each class."""

    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def audit_summary(record: Mapping[str, Any]) -> str | None:
    """The finding in words, or ``None`` if there is none."""
    text = table(record, "audit").get("summary")
    return text if isinstance(text, str) and text else None


def audit_table(record: Mapping[str, Any]) -> AuditTable | None:
    """The table, or ``None`` if nothing was found class by class."""
    return evidence_table(table(table(record, "audit"), "by_class"), record)


def evidence_table(by_class: Mapping[str, Any], record: Mapping[str, Any]) -> AuditTable | None:
    """Values by class as a table with the classes' names, which ``record`` has; ``None`` for no values."""
    columns = {str(name): items(by_class, name) for name in by_class}
    length = max((len(values) for values in columns.values()), default=0)
    if length == 0:
        return None
    rows = (
        (
            class_name(record, label),
            *(_text(values[label]) if label < len(values) else "-" for values in columns.values()),
        )
        for label in range(length)
    )
    return AuditTable(("class", *(name.replace("_", " ") for name in columns)), tuple(rows))


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    known = number(value)
    return "-" if known is None else f"{known:.3g}"
