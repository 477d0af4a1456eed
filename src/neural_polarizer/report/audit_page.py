"""One self-contained HTML page about one audit: a pure function of its record and of ready-made pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from neural_polarizer.report.advice import after_audit
from neural_polarizer.report.audit import AuditTable, evidence_table
from neural_polarizer.report.html import Picture, group_pictures, make_environment
from neural_polarizer.report.values import class_name, items, number, percent, table
from neural_polarizer.report.verdict import Tone

_CURVE = (400, 120)


@dataclass(frozen=True)
class Finding:
    """What the score of one model means: ``tone`` for the colour, the rest for people."""

    tone: Tone
    headline: str
    text: str


_HEADLINES: Mapping[str, tuple[Tone, str]] = {
    "backdoor": ("bad", "This model probably carries a backdoor"),
    "inconclusive": ("warn", "Not clear whether there is a backdoor"),
    "no sign": ("good", "No sign of a backdoor"),
}


def judge_audit(record: Mapping[str, Any]) -> Finding:
    """The verdict on an audit's record, or on its part about the purified model, in words."""
    tone, headline = _HEADLINES.get(str(record.get("verdict")), ("open", "Not judged"))
    return Finding(tone, headline, " ".join(part for part in (_lead(record), _odds(record), _caution(record)) if part))


def render_audit(record: Mapping[str, Any], pictures: Sequence[Picture]) -> str:
    """The page about one audit.

    Args:
        record: the content of ``audit.json``; anything may be missing or null.
        pictures: shown in this order, groups in the order of their first picture.

    Returns:
        HTML that loads nothing and runs nothing.
    """
    purified = table(record, "purified")
    context = {
        "file_name": PurePath(str(table(record, "model").get("path") or "")).name or "a model",
        "purified_name": PurePath(str(purified.get("path") or "")).name,
        "model_name": table(record, "model").get("architecture") or "unknown architecture",
        "n_clean": number(record.get("n_clean")),
        "finding": judge_audit(record),
        "after": judge_audit({**purified, "model": table(record, "model")}) if purified else None,
        "scores": [(name, _score(part)) for name, part in (("original", record), ("purified", purified)) if part],
        "tables": [
            (name, found)
            for name, part in (("Original model", record), ("Purified model", purified))
            if (found := _table(record, part)) is not None
        ],
        "spectrum": _spectrum(table(purified, "spectrum")),
        "groups": group_pictures(pictures),
        "remarks": [str(text) for text in items(record, "findings")],
        "warnings": [str(text) for text in items(record, "warnings")],
        "what_now": after_audit(record),
        "facts": [
            ("model file, SHA-256", str(record.get("model_sha256") or "-")),
            ("purified file, SHA-256", str(purified.get("model_sha256") or "-")),
            ("clean images", str(table(record, "data").get("clean") or "-")),
            ("clean images, SHA-256", str(record.get("clean_sha256") or "-")),
            ("seed", str(record.get("seed"))),
            ("versions", ", ".join(f"{name} {text}" for name, text in table(record, "versions").items())),
        ],
    }
    return make_environment().get_template("audit.html.jinja").render(context)


def _aim(record: Mapping[str, Any]) -> str:
    suspect = record.get("suspect")
    if suspect == "next":
        return "the class next to each image's own (all-to-all)"
    return f"class {class_name(record, suspect)}" if isinstance(suspect, int) else "one class"


def _lead(record: Mapping[str, Any]) -> str:
    value, low, high = (number(record.get(key)) for key in ("value", "low", "high"))
    if value is None:
        return ""
    interval = "" if low is None or high is None else f" (90 % of the resampled image sets: {low:.1f} to {high:.1f})"
    place = "what the last layers see" if record.get("seen_in") == "features" else "the pixels"
    rest = (
        "than to the class before each image's own; its lead over that"
        if record.get("suspect") == "next"
        else "than to any other; its lead over the next class"
    )
    return (
        f"One small change of {place}, the same for all images, leads them to {_aim(record)} more easily {rest} is "
        f"{value:.1f} times the spread between classes{interval}."
    )


def _odds(record: Mapping[str, Any]) -> str:
    if record.get("unusable") == "low accuracy":
        accuracy = percent(number(record.get("accuracy")))
        return (
            f"But the model classifies only {accuracy} of the clean images correctly, so this means nothing: check "
            "--profile (normalisation) and the order of the classes."
        )
    if record.get("unusable") == "few classes":
        return "There are too few classes to say whether one of them stands out."
    p_value = number(record.get("p_value"))
    if p_value is None:
        return ""
    return f"Of the clean models that this score was compared with, {percent(p_value)} or fewer reach it."


def _caution(record: Mapping[str, Any]) -> str:
    if number(record.get("value")) is None:
        return ""
    if record.get("verdict") == "no sign":
        return "That is no proof: a backdoor of a kind that was not tried here may not show."
    return "That is evidence, not proof: a clean model can have a class that is easy to reach."


def _score(part: Mapping[str, Any]) -> tuple[str, ...]:
    value, low, high = (number(part.get(key)) for key in ("value", "low", "high"))
    numbers = tuple("-" if each is None else f"{each:.2f}" for each in (value, low, high))
    p_value, agreement = number(part.get("p_value")), number(part.get("agreement"))
    return (
        *numbers,
        "-" if p_value is None else f"{p_value:.3f}",
        "-" if part.get("suspect") is None else str(part.get("suspect")),
        percent(agreement),
        str(part.get("verdict")),
    )


def _table(record: Mapping[str, Any], part: Mapping[str, Any]) -> AuditTable | None:
    return evidence_table(table(part, "by_class"), record)


def _spectrum(found: Mapping[str, Any]) -> dict[str, Any] | None:
    changes = [value for value in map(number, items(found, "changes")) if value is not None]
    if not changes:
        return None
    width, height = _CURVE
    top = max(*changes, 1.0)
    step = width / max(len(changes) - 1, 1)
    dots = " ".join(f"{place * step:.1f},{height * (1 - value / top):.1f}" for place, value in enumerate(changes))
    return {
        "dots": dots,
        "width": width,
        "height": height,
        "one": height * (1 - 1 / top),
        "largest": f"{changes[0]:.2f}",
        "channels": len(changes),
        "directions": number(found.get("directions")),
        "distance": percent(number(found.get("distance"))),
    }
