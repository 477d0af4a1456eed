"""The headline of a report, in plain words: what the numbers of a run say about the backdoor, and what to do now."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from neural_polarizer.report.run.guard import not_purified
from neural_polarizer.report.values import percent, points

HARMLESS_SUCCESS = 0.05  # a trigger that works on fewer images than this share counts as not working
ACCEPTED_LOSS = 0.02  # clean accuracy that may be lost before a repair counts as costly
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


_LESS_LOSS = {True: "a smaller --set guard.max_acc_drop", False: "milder settings (--set)"}
_MORE_EFFECT = {True: "a larger --set guard.max_acc_drop", False: "stronger settings (--set)"}

_AGAIN = (
    "Purify again with more clean images, with {more_effect}, or with the attacker's class if you know it (--target).",
    "If the trigger still works afterwards, train a new model, or take one from a source you trust.",
)
_AFTER_PURIFICATION: Mapping[str, tuple[str, str, str]] = {
    "removed": (
        "Use purified.safetensors in place of the original model.",
        "Measure both models on images of your own before you put the new one to work, and keep the original file "
        "with this report.",
        "Run polarizer audit on the result with --purified, because this verdict speaks only of the trigger that "
        "was supplied.",
    ),
    "costly": (
        "Decide whether your use can bear the loss of accuracy that the table shows.",
        "If it cannot, purify again with more clean images or with {less_loss}.",
        "If that does not help either, use neither model: train a new one, or take one from a source you trust.",
    ),
    "unproven": (
        "Repeat the command with both --test and --triggered, so that the report can compare before and after.",
        "Until then, measure the accuracy of both models on images of your own.",
        "Run polarizer audit on the original model to see whether clean images show a backdoor.",
    ),
    "reduced": ("Do not use the purified model where somebody could show it the trigger.", *_AGAIN),
    "not-removed": ("Use neither model: the trigger still works.", *_AGAIN),
    "untouched": (
        "Treat the result as the original model: nothing in it was changed.",
        "Purify again with more clean images or with {more_effect}.",
        "If the model comes back unchanged once more, train a new one, or take one from a source you trust.",
    ),
    "absent": (
        "Check the images given with --triggered: the original model does not follow their trigger.",
        "If they are the right ones, the original model is as good as the purified one against this trigger.",
        "Run polarizer audit on the original model to look for another backdoor.",
    ),
    "unknown": (
        "Run polarizer audit on the original model with --purified: it needs no trigger, only clean images.",
        "Ask whoever suspects a backdoor for images with the trigger, and repeat the command with --triggered.",
        "Until then, compare both models on images of your own, and do not call the purified one clean.",
    ),
}

_AFTER_AUDIT: Mapping[str, tuple[str, str, str]] = {
    "backdoor": (
        "Do not use this model.",
        "Purify it with polarizer purify and the same clean images.",
        "Audit it again with --purified, and compare both models on images of your own.",
    ),
    "cannot say": (
        "Do not rely on this model yet.",
        "Repeat the audit with more clean images (a larger --n-clean) and with another --seed.",
        "If it stays unclear, purify the model: where there is no backdoor, that costs little accuracy.",
    ),
    "none seen": (
        "Use this model only where you would use it without an audit.",
        "Keep this report with the hash of the file, so that another file cannot take its place.",
        "If somebody gives you images with a suspected trigger, try them with polarizer evaluate --triggered.",
    ),
}

_NOT_JUDGED = (
    "Check that model and images go together: --profile, --classes, and the size of the images.",
    "Repeat the audit when the model names the clean images correctly.",
    "Until then, treat the model as if it had not been audited.",
)


def what_now(record: Mapping[str, Any]) -> tuple[str, str, str]:
    """What to do after a purification, in three sentences."""
    guarded = record["guarded"] is not None
    words = {"less_loss": _LESS_LOSS[guarded], "more_effect": _MORE_EFFECT[guarded]}
    first, second, third = (text.format(**words) for text in _AFTER_PURIFICATION[judge(record).kind])
    return first, second, third


def after_audit(record: Mapping[str, Any]) -> tuple[str, str, str]:
    """What to do after an audit, in three sentences; ``record`` is that of the audit, or its part on one model."""
    return _AFTER_AUDIT[record["verdict"]] if record["makes_sense"] else _NOT_JUDGED
