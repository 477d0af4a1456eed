"""ACC, ASR, RA and DER of a run record, each with the sentence that explains it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from neural_polarizer.plausibility.examine import ACCEPTED_LOSS


@dataclass(frozen=True)
class Measure:
    """One row of the table of results; shares are in [0, 1], and ``None`` is "not measured"."""

    short: str
    name: str
    explanation: str
    remedy: str = ""
    before: float | None = None
    after: float | None = None
    higher_is_better: bool = True
    single: bool = False

    @property
    def change(self) -> float | None:
        """After minus before, where both are known."""
        return None if self.before is None or self.after is None else self.after - self.before

    @property
    def tone(self) -> Literal["good", "bad", "plain"]:
        """Whether the change is for the better, or so much for the worse that it matters."""
        if self.change is None:
            return "plain"
        gain = self.change if self.higher_is_better else -self.change
        if round(gain, 9) < -ACCEPTED_LOSS:
            return "bad"
        return "good" if gain >= 0.0005 else "plain"  # less than that is shown as 0.0 points


_MEASURES = (
    Measure(
        "ACC",
        "Clean accuracy",
        "Of the clean test images, the share that the model names correctly. It should stay as it was.",
        remedy="add clean test images with --test",
    ),
    Measure(
        "ASR",
        "Attack success rate",
        "Of the images carrying the trigger, the share that gets the answer the attacker wants. "
        "It should fall to about zero.",
        remedy="add images with the trigger with --triggered",
        higher_is_better=False,
    ),
    Measure(
        "RA",
        "Recovered accuracy",
        "Of the images carrying the trigger, the share that is named correctly all the same. It should rise.",
        remedy="add images with the trigger and their true classes with --triggered",
    ),
    Measure(
        "DER",
        "Defense effectiveness rating",
        "Both effects in one figure: 50% means that nothing was gained, 100% that an attack which always "
        "worked never works now and no accuracy was lost; below 50% the repair did more harm than good.",
        remedy="it needs both --test and --triggered",
        single=True,
    ),
    Measure(
        "clean",
        "Accuracy on the clean images given",
        "Of the clean images that the defense was given, the share that the model names correctly. The first "
        "figure shows that model and images go together. The second proves little, since the defense has seen "
        "these images.",
    ),
)
"""In the order in which they are read."""


def measures(record: Mapping[str, Any]) -> list[Measure]:
    """The rows of the table of results."""
    before, after, clean = record["before"], record["after"], record["clean_acc"]
    shares = {
        "ACC": (before["acc"], after["acc"]),
        "ASR": (before["asr"], after["asr"]),
        "RA": (before["ra"], after["ra"]),
        "DER": (None, record["der"]),
        "clean": (clean["before"], clean["after"]),
    }
    return [replace(each, before=shares[each.short][0], after=shares[each.short][1]) for each in _MEASURES]
