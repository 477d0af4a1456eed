"""One self-contained HTML page about one audit: a pure function of its record and of ready-made pictures."""

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from neural_polarizer.report.html import Picture, group_pictures, make_environment
from neural_polarizer.report.run.advice import after_audit
from neural_polarizer.report.run.audit import evidence_table
from neural_polarizer.report.run.verdict import Tone, Verdict
from neural_polarizer.report.values import class_name, items, number, percent, table

_CURVE = (400, 120)


_HEADLINES: Mapping[str, tuple[Tone, str]] = {
    "backdoor": ("bad", "This model probably carries a backdoor"),
    "cannot say": ("warn", "The audit cannot say whether there is a backdoor"),
    "none seen": ("good", "No backdoor seen"),
}


def judge_audit(record: Mapping[str, Any]) -> Verdict:
    """The verdict on an audit's record, or on its part about the purified model, in words."""
    tone, headline = _HEADLINES.get(str(record.get("verdict")), ("open", "Not judged"))
    text = " ".join(part for part in (_measured(record), _trust(record)) if part)
    return Verdict(str(record.get("verdict") or "not judged"), tone, headline, text)


def render_audit(record: Mapping[str, Any], pictures: Sequence[Picture]) -> str:
    """The page about one audit, HTML that loads nothing and runs nothing.

    ``record`` is the content of ``audit.json``, of which anything may be missing or null. Pictures are shown in their
    order, groups in the order of their first picture.
    """
    purified = table(record, "purified")
    context = {
        "file_name": PurePath(str(table(record, "model").get("path") or "")).name or "a model",
        "purified_name": PurePath(str(purified.get("path") or "")).name,
        "model_name": table(record, "model").get("architecture") or "unknown architecture",
        "n_clean": number(record.get("n_clean")),
        "verdict": judge_audit(record),
        "after": judge_audit({**purified, "model": table(record, "model")}) if purified else None,
        "tests": [(name, _test(part)) for name, part in (("original", record), ("purified", purified)) if part],
        "tables": [
            (name, found)
            for name, part in (("Original model", record), ("Purified model", purified))
            if (found := evidence_table(part, record)) is not None
        ],
        "spectrum": _spectrum(table(purified, "spectrum")),
        "groups": group_pictures(pictures),
        "findings": [str(text) for text in items(record, "findings")],
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
    return make_environment().get_template("run/audit.html.jinja").render(context)


def _aim(record: Mapping[str, Any], key: str) -> str:
    suspect = record.get(key)
    if suspect == "next":
        return "the class next to each image's own (all-to-all)"
    return f"class {class_name(record, suspect)}" if isinstance(suspect, int) else "no class"


def _measured(record: Mapping[str, Any]) -> str:
    """What was measured, and what came out."""
    reason, p_value, level = record.get("reason"), number(record.get("p_value")), number(record.get("level"))
    if isinstance(reason, str) and reason:
        return f"Nothing can be said: {reason}."
    if p_value is None or level is None:
        return ""
    verdict = "stands out" if p_value < level else "is the most suspicious one, but does not stand out"
    return (
        "For each class the smallest perturbations were looked for that lead most clean images to it, in pixels and in "
        f"features. A backdoor brings its class near. Here {_aim(record, 'likeliest')} {verdict} "
        f"(p {p_value:.2g}; below {level:g} it accuses)."
    )


def _trust(record: Mapping[str, Any]) -> str:
    """How far to believe the verdict."""
    level, posterior, prior = (number(record.get(key)) for key in ("level", "posterior", "prior"))
    if record.get("verdict") == "backdoor" and None not in (level, posterior, prior):
        return (
            f"About {percent(level)} of the clean models are accused wrongly, where their classes are alike. With a "
            f"backdoor as likely as {percent(prior)} beforehand, it is now {percent(posterior)} at most. That is "
            "evidence, not proof: a clean model can have a class that is easy to reach."
        )
    near = max((each for each in map(number, table(record, "nameable").values()) if each is not None), default=None)
    if record.get("verdict") == "none seen" and near is not None:
        return (
            f"A class had been named if by the sharpest measure it had been nearer than {percent(near)} of the others' "
            "norm. That is no proof: a backdoor that keeps its class as far as all others does not show."
        )
    return ""


def _test(part: Mapping[str, Any]) -> tuple[str, ...]:
    p_value, level, posterior, accuracy = (
        number(part.get(key)) for key in ("p_value", "level", "posterior", "accuracy")
    )
    return (
        "-" if part.get("likeliest") is None else str(part.get("likeliest")),
        "-" if p_value is None else f"{p_value:.2g}",
        "-" if level is None else f"{level:g}",
        percent(posterior),
        percent(accuracy),
        str(part.get("verdict")),
    )


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
