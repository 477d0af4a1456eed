"""The headline of a report: what the numbers of a run say about the backdoor, in plain words."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from neural_polarizer.plausibility.examine import ACCEPTED_LOSS
from neural_polarizer.report.run.guard import not_purified
from neural_polarizer.report.values import percent, points

HARMLESS_SUCCESS = 0.05  # a trigger that works on fewer images than this share counts as not working
_REDUCED_TO = 0.5  # at most this part of the original success may be left for "reduced"

Kind = Literal["removed", "costly", "unproven", "reduced", "not-removed", "untouched", "absent", "unknown"]
Tone = Literal["good", "warn", "bad", "open"]


@dataclass(frozen=True)
class Verdict:
    """One judgement: ``kind`` for programs, ``tone`` for the colour, the rest for people."""

    kind: str
    tone: Tone
    headline: str
    text: str


_HEADLINES: Mapping[Kind, tuple[Tone, str]] = {
    "removed": ("good", "Backdoor removed"),
    "costly": ("warn", "Backdoor removed, but clean accuracy fell"),
    "unproven": ("warn", "The trigger does not work on the purified model"),
    "reduced": ("warn", "Backdoor weakened, not removed"),
    "not-removed": ("bad", "Backdoor not removed"),
    "untouched": ("bad", "Not purified: the model came back as it was"),
    "absent": ("open", "This trigger did not work in the first place"),
    "unknown": ("open", "Not known whether a backdoor is left"),
}


def judge(record: Mapping[str, Any]) -> Verdict:
    """The verdict on a run record."""
    before, after = record["before"], record["after"]
    success, accuracy = ((before[rate], after[rate]) for rate in ("asr", "acc"))
    kind = _kind(success, accuracy)
    if not_purified(record) and kind != "absent":
        kind = "untouched"
    tone, headline = _HEADLINES[kind]
    parts = [_success_text(*success), _accuracy_text(*accuracy)]
    if kind == "unknown" and record["surrogate"]:
        parts.append(
            f"Fresh perturbations mislead the purified model on {percent(record['surrogate']['after'])} of the clean "
            f"images, and the original on {percent(record['surrogate']['before'])}."
        )
    return Verdict(kind, tone, headline, " ".join(parts))


def _kind(success: tuple[float | None, float | None], accuracy: tuple[float | None, float | None]) -> Kind:
    success_before, success_after = success
    if success_after is None:
        return "unknown"
    if success_after >= HARMLESS_SUCCESS:
        reduced = success_before is not None and success_after <= _REDUCED_TO * success_before
        return "reduced" if reduced else "not-removed"
    if success_before is not None and success_before < HARMLESS_SUCCESS:
        return "absent"
    accuracy_before, accuracy_after = accuracy
    if success_before is None or accuracy_before is None or accuracy_after is None:
        return "unproven"
    # Rounded, so that a loss of exactly two points does not fail by a binary fraction.
    return "removed" if round(accuracy_before - accuracy_after, 9) <= ACCEPTED_LOSS else "costly"


def _success_text(before: float | None, after: float | None) -> str:
    if after is None:
        return (
            "No images with the trigger were supplied, so the attack could not be tried on the purified "
            "model. This page has indirect evidence only; supply such images with --triggered to measure it."
        )
    if before is None:
        return (
            f"On the purified model the trigger gets its way on {percent(after)} of the triggered images; "
            "how well it worked on the original model was not measured."
        )
    return (
        f"On the original model the trigger got its way on {percent(before)} of the triggered images; "
        f"on the purified model it does so on {percent(after)}."
    )


def _accuracy_text(before: float | None, after: float | None) -> str:
    if before is None or after is None:
        return "The price in clean accuracy is not known; supply clean test images with --test to measure it."
    change = points(after - before).replace("-", "\N{MINUS SIGN}")
    return f"Accuracy on clean test images went from {percent(before)} to {percent(after)} ({change} points)."
