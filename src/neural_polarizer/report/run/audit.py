"""What a defense has found in the model, as a table with one row a class."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import zip_longest
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


def evidence_table(found: Mapping[str, Any], record: Mapping[str, Any]) -> AuditTable | None:
    """What was ``found`` class by class, with the classes' names, which ``record`` has; None for nothing."""
    by_class = table(found, "by_class")
    columns = [items(by_class, name) for name in by_class]
    by_label = enumerate(zip_longest(*columns))
    rows = tuple((class_name(record, label), *map(_text, values)) for label, values in by_label)
    heads = ("class", *(str(name).replace("_", " ") for name in by_class))
    return AuditTable(heads, rows) if rows else None


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    known = number(value)
    return "-" if known is None else f"{known:.3g}"
