"""One self-contained HTML page about one audit: a pure function of its record and of ready-made pictures."""

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from neural_polarizer.report.charts import spectrum_curve
from neural_polarizer.report.html import Picture, group_pictures, make_environment
from neural_polarizer.report.run.advice import after_audit, is_likelier
from neural_polarizer.report.run.facts import class_table
from neural_polarizer.report.run.verdict import Tone, Verdict
from neural_polarizer.report.values import class_name, percent

_HEADLINES: Mapping[str, tuple[Tone, str]] = {
    "backdoor": ("bad", "This model probably carries a backdoor"),
    "cannot say": ("warn", "The audit cannot say whether there is a backdoor"),
    "none seen": ("good", "No backdoor seen"),
}


def judge_audit(record: Mapping[str, Any]) -> Verdict:
    """The verdict on an audit's record in words; its part about the purified model needs the record's ``model``."""
    tone, headline = _HEADLINES[record["verdict"]]
    if is_likelier(record):
        tone, headline = "warn", "No class stands out, but a backdoor is likelier than before"
    text = " ".join(part for part in (_measured(record), _trust(record)) if part)
    return Verdict(record["verdict"], tone, headline, text)


def purified_part(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """What an audit's record says of the purified model, as a record of its own; None if it was not given."""
    return None if record["purified"] is None else record["purified"] | {"model": record["model"]}


def render_audit(record: Mapping[str, Any], pictures: Sequence[Picture]) -> str:
    """The page about one audit, HTML that loads nothing and runs nothing.

    ``record`` is the content of ``audit.json``. Pictures are shown in their order, groups in the order of their first
    picture.
    """
    after = purified_part(record)
    parts = {"original": record} | ({} if after is None else {"purified": after})
    tables = {f"{name.capitalize()} model": class_table(part["by_class"], record) for name, part in parts.items()}
    context = {
        "file_name": PurePath(record["model"]["path"]).name,
        "purified_name": PurePath(after["path"]).name if after else "",
        "model_name": record["model"]["architecture"],
        "n_clean": record["n_clean"],
        "verdict": judge_audit(record),
        "after": judge_audit(after) if after else None,
        "tests": parts,
        "tables": tables,
        "spectrum": spectrum_curve(after["spectrum"]) if after and after["spectrum"] else None,
        "groups": group_pictures(pictures),
        "threats": record.get("threats", ()),
        "findings": record["findings"],
        "warnings": (),
        "what_now": after_audit(record),
        "facts": {
            "model file, SHA-256": record["model_sha256"],
            "purified file, SHA-256": after["model_sha256"] if after else "-",
            "clean images": record["data"]["clean"],
            "clean images, SHA-256": record["clean_sha256"],
            "seed": record["seed"],
            "versions": ", ".join(f"{name} {text}" for name, text in record["versions"].items()),
        },
    }
    return make_environment().get_template("run/audit.html.jinja").render(context)


def _measured(record: Mapping[str, Any]) -> str:
    """What was measured, and what came out."""
    if record["reason"]:
        return f"Nothing can be said: {record['reason']}."
    verdict = "is the most suspicious one, but does not stand out"
    if record["p_value"] < record["level"]:
        verdict = "stands out"
    aim = "the class next to each image's own (all-to-all)"
    if record["likeliest"] != "next":
        aim = f"class {class_name(record, record['likeliest'])}"
    return (
        "For each class the smallest perturbations were looked for that lead most clean images to it, in pixels and in "
        f"features. A backdoor brings its class near. Here {aim} {verdict} "
        f"(p {record['p_value']:.2g}; below {record['level']:g} it accuses)."
    )


def _trust(record: Mapping[str, Any]) -> str:
    """How far to believe the verdict."""
    if record["verdict"] == "backdoor":
        return (
            f"About {percent(record['level'])} of the clean models are accused wrongly, where their classes are alike. "
            f"With a backdoor as likely as {percent(record['prior'])} beforehand, it is now "
            f"{percent(record['posterior'])} at most. That is evidence, not proof: a clean model can have a class that "
            "is easy to reach."
        )
    if record["verdict"] == "none seen":
        near = max(each for each in record["nameable"].values() if each is not None)
        likelier = (
            f"With a backdoor as likely as {percent(record['prior'])} beforehand, it is now "
            f"{percent(record['posterior'])} at most. "
        )
        return (likelier if is_likelier(record) else "") + (
            f"A class had been named if by the sharpest measure it had been nearer than {percent(near)} of the others' "
            "norm. That is no proof: a backdoor that keeps its class as far as all others does not show."
        )
    return ""
