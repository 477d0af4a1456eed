"""What the guard of the accuracy let through: in a sentence, and as curves."""

from collections.abc import Mapping
from typing import Any

from neural_polarizer.report.charts import Chart, dial_chart
from neural_polarizer.report.values import count, items, number, percent, table


def guard_summary(record: Mapping[str, Any]) -> str | None:
    """How strong the layer is, what that costs on clean images, and what is left of held-out stand-ins.

    None for methods without a guard.
    """
    found = table(record, "guarded")
    curve = [each for each in items(found, "points") if isinstance(each, Mapping)]
    chosen = next((each for each in curve if each.get("dial") == found.get("chosen")), None)
    dial, drop, budget = (
        number(value) for value in (found.get("chosen"), (chosen or {}).get("drop"), found.get("budget"))
    )
    if chosen is None or dial is None or drop is None or budget is None:
        return None
    judges = f"{count(found.get('judges')) or 'the'} clean images, each with a layer that has not learned from it"
    if dial == 0:
        return (
            f"Not purified. No strength of the layer that helps stays within {100 * budget:.1f} points of accuracy, "
            f"measured on {judges}. So the model came back as it was."
        )
    left, first = number(chosen.get("suspect")), number(curve[0].get("suspect"))
    return (
        f"The layer works at {dial:g} times its learned strength. It is expected to cost {100 * drop:.1f} points of "
        f"accuracy, measured on {judges}. The budget is {100 * budget:.1f}; where a backdoor is seen, an excess "
        "within the error is allowed. "
        f"Held-out stand-ins lead {percent(left)} of the images to the most suspicious class, against "
        f"{percent(first)} without the layer."
    )


def not_purified(record: Mapping[str, Any]) -> bool:
    """Whether the guard gave the model back as it was."""
    found = table(record, "guarded")
    return bool(found) and found.get("chosen") == 0


def dial_charts(record: Mapping[str, Any]) -> list[Chart]:
    """Accuracy, and stand-ins that still work, against the strength of the layer; none for methods without a guard."""
    found = table(record, "guarded")
    curve = [each for each in items(found, "points") if isinstance(each, Mapping)]
    keys = ("dial", "acc", "drop", "suspect", "stand_ins")
    rows = [[value for key in keys if (value := _modest(each.get(key))) is not None] for each in curve]
    complete = [row for row in rows if len(row) == len(keys)]
    budget, chosen = _modest(found.get("budget")), found.get("chosen")
    place = next((index for index, row in enumerate(complete) if row[0] == chosen), None)
    if place is None or budget is None or len(complete) < 2:
        return []
    dials, acc, drop, suspect, stand_ins = (list(column) for column in zip(*complete, strict=True))
    label = "strength of the layer"
    accuracy = {
        "counted": acc,
        "expected, less affected by chance": [acc[0] - each for each in drop],
        "the least that is allowed": [acc[0] - budget] * len(acc),
    }
    working = {"for the most suspicious class": suspect, "for all classes, by the evidence": stand_ins}
    return [
        dial_chart("Accuracy on clean images", label, dials, accuracy, place),
        dial_chart("Held-out stand-ins that still work", label, dials, working, place),
    ]


def _modest(value: Any) -> float | None:
    """A finite number that can be drawn."""
    known = number(value)
    return None if known is None or abs(known) > 1e6 else known
