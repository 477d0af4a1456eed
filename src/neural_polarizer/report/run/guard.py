"""What the guard of the accuracy let through: in a sentence, and as curves."""

from collections.abc import Mapping
from typing import Any

from neural_polarizer.report.charts import Chart, dial_chart
from neural_polarizer.report.values import count, percent


def guard_summary(record: Mapping[str, Any]) -> str | None:
    """How strong the layer is, what that costs on clean images, and what is left of held-out stand-ins.

    None for methods without a guard.
    """
    found = record["guarded"]
    if found is None:
        return None
    chosen = next(point for point in found["points"] if point["dial"] == found["chosen"])
    budget = f"{100 * found['budget']:.1f}"
    judges = f"{count(found['judges'])} clean images, each with a layer that has not learned from it"
    if not_purified(record):
        return (
            f"Not purified. No strength of the layer that helps stays within {budget} points of accuracy, "
            f"measured on {judges}. So the model came back as it was."
        )
    cost = round(100 * chosen["drop"], 1) + 0.0  # or a little gain would be -0.0
    return (
        f"The layer works at {chosen['dial']:g} times its learned strength. It is expected to cost "
        f"{cost:.1f} points of accuracy, measured on {judges}. The budget is {budget}; where a "
        "backdoor is seen, an excess within the error is allowed. "
        f"Held-out stand-ins lead {percent(chosen['suspect'])} of the images to the most suspicious class, against "
        f"{percent(found['points'][0]['suspect'])} without the layer."
    )


def not_purified(record: Mapping[str, Any]) -> bool:
    """Whether the guard gave the model back as it was."""
    return record["guarded"] is not None and record["guarded"]["chosen"] == 0


def dial_charts(record: Mapping[str, Any]) -> list[Chart]:
    """Accuracy, and stand-ins that still work, against the strength of the layer; none for methods without a guard."""
    found = record["guarded"]
    if found is None or len(found["points"]) < 2:
        return []
    keys = ("dial", "acc", "drop", "suspect", "stand_ins")
    dials, acc, drop, suspect, stand_ins = ([point[key] for point in found["points"]] for key in keys)
    place, label = dials.index(found["chosen"]), "strength of the layer"
    accuracy = {
        "counted": acc,
        "expected, less affected by chance": [acc[0] - each for each in drop],
        "the least that is allowed": [acc[0] - found["budget"]] * len(acc),
    }
    working = {"for the most suspicious class": suspect, "for all classes, by the evidence": stand_ins}
    return [
        dial_chart("Accuracy on clean images", label, dials, accuracy, place),
        dial_chart("Held-out stand-ins that still work", label, dials, working, place),
    ]
