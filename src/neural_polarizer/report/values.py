"""Numbers and text of a run record as people read them; what is missing or not finite is ``None``."""

import math
import unicodedata
from collections.abc import Mapping
from typing import Any

_HIDDEN = {"Cc", "Cf", "Cs"}  # control characters, invisible formatting such as bidi overrides, lone surrogates


def number(value: Any) -> float | None:
    """``value`` as a finite float, or ``None`` if it is anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        converted = float(value)
    except OverflowError:
        return None
    return converted if math.isfinite(converted) else None


def table(record: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The mapping stored under ``key``; an empty one if it is missing, null or of another type."""
    value = record.get(key)
    return value if isinstance(value, Mapping) else {}


def items(record: Mapping[str, Any], key: str) -> list[Any]:
    """The list stored under ``key``; an empty one if it is missing, null or of another type."""
    value = record.get(key)
    return list(value) if isinstance(value, list | tuple) else []


def percent(share: float | None) -> str:
    """A share in [0, 1] as a percentage with one decimal; a dash for None, as in all that follow."""
    return "-" if share is None else f"{100 * share:.1f}%"


def points(change: float | None) -> str:
    """A difference of two shares as signed percentage points with one decimal."""
    if change is None:
        return "-"
    text = f"{100 * change:+.1f}"
    return "0.0" if text in {"+0.0", "-0.0"} else text


def seconds(value: float | None) -> str:
    """A duration in seconds, in minutes from 100 s on."""
    if value is None:
        return "-"
    return f"{value:.1f} s" if value < 100 else f"{value / 60:.1f} min"


def count(value: Any) -> str | None:
    """A number of things with thousands separators, or ``None`` if there is no number."""
    amount = number(value)
    return None if amount is None else f"{amount:,.0f}"


def class_name(record: Mapping[str, Any], label: int) -> str:
    """The number of a class of the model, with its name if that is known."""
    classes = record["model"]["classes"]
    return f"{label} ({classes[label]})" if label < len(classes) else str(label)


def visible(text: str) -> str:
    r"""``text`` with hidden characters spelled out as ``\uXXXX``, so that they cannot mislead the reader."""
    hidden = {char for char in text if char not in "\n\t" and unicodedata.category(char) in _HIDDEN}
    return "".join(f"\\u{ord(char):04x}" if char in hidden else char for char in text)
