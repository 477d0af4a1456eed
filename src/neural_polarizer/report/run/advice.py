"""What to do with a verdict: three sentences for each."""

from collections.abc import Mapping
from typing import Any

from neural_polarizer.report.run.verdict import judge

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

_LIKELIER = (
    "Do not take the model for clean: no class stands out clearly enough to be named, but the evidence points to one.",
    "Purify it with polarizer purify and the same clean images, or repeat the audit with more of them.",
    "Ask the source of the model how it was trained, and whoever suspects a backdoor for images with the trigger.",
)

_AFTER_BOTH: Mapping[str, tuple[str, str, str]] = {
    "backdoor": (
        "Use neither model: a class still stands out in the purified one.",
        "Purify the original again with more clean images or with a larger --set guard.max_acc_drop, and audit again.",
        "If a class stands out once more, train a new model, or take one from a source you trust.",
    ),
    "cannot say": (
        "Rely on neither model yet.",
        "Purify the original with more clean images, and repeat the audit with them.",
        "If it stays unclear, train a new model, or take one from a source you trust.",
    ),
    "none seen": (
        "Use the purified model in place of the original one, and keep an eye on what it answers.",
        "Compare both models on images of your own before you put it to work.",
        "Ask the source of the original how it was trained, and whoever suspects a backdoor for images with the "
        "trigger.",
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


def is_likelier(record: Mapping[str, Any]) -> bool:
    """Whether an audit accuses nobody, though its evidence makes a backdoor likelier than it was beforehand."""
    return bool(record["verdict"] == "none seen" and record["posterior"] > record["prior"])


def after_audit(record: Mapping[str, Any]) -> tuple[str, str, str]:
    """What to do after an audit, of one model or of it and the purified one, in three sentences."""
    after = record["purified"]
    last = record if after is None else after
    if not (record["makes_sense"] and last["makes_sense"]):
        return _NOT_JUDGED
    if is_likelier(last):
        return _LIKELIER if after is None else (_LIKELIER[0], *_AFTER_BOTH["cannot say"][1:])  # no second layer
    nothing = record["verdict"] == last["verdict"] == "none seen" and not is_likelier(record)
    return (_AFTER_AUDIT if after is None or nothing else _AFTER_BOTH)[last["verdict"]]
