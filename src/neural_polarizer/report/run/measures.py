"""ACC, ASR, RA and DER of a run record, each with the sentence that explains it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from neural_polarizer.report.run.verdict import ACCEPTED_LOSS
from neural_polarizer.report.values import number, table


@dataclass(frozen=True)
class Measure:
    """One row of the table of results; shares are in [0, 1], and ``None`` is "not measured"."""

    short: str
    name: str
    explanation: str
    higher_is_better: bool
    before: float | None
    after: float | None
    remedy: str
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


_TEXTS = (
    (
        "ACC",
        "Clean accuracy",
        "Of the clean test images, the share that the model names correctly. It should stay as it was.",
        True,
        "add clean test images with --test",
    ),
    (
        "ASR",
        "Attack success rate",
        "Of the images carrying the trigger, the share that gets the answer the attacker wants. "
        "It should fall to about zero.",
        False,
        "add images with the trigger with --triggered",
    ),
    (
        "RA",
        "Recovered accuracy",
        "Of the images carrying the trigger, the share that is named correctly all the same. It should rise.",
        True,
        "add images with the trigger and their true classes with --triggered",
    ),
)


def measures(record: Mapping[str, Any]) -> list[Measure]:
    """The rows of the table of results, in the order in which they are read."""
    before, after = table(record, "before"), table(record, "after")
    rows = []
    for short, name, explanation, higher, remedy in _TEXTS:
        shares = [number(rates.get(short.lower())) for rates in (before, after)]
        rows.append(Measure(short, name, explanation, higher, shares[0], shares[1], remedy))
    effectiveness = Measure(
        "DER",
        "Defense effectiveness rating",
        "Both effects in one figure: 50% means that nothing was gained, 100% that an attack which always "
        "worked never works now and no accuracy was lost; below 50% the repair did more harm than good.",
        higher_is_better=True,
        before=None,
        after=number(record.get("der")),
        remedy="it needs both --test and --triggered",
        single=True,
    )
    return [*rows, effectiveness, *_on_clean_images(record)]


def _on_clean_images(record: Mapping[str, Any]) -> list[Measure]:
    """The accuracy on the defender's own images; records of earlier versions have none."""
    found = table(record, "clean_acc")
    if not found:
        return []
    explanation = (
        "Of the clean images that the defense was given, the share that the model names correctly. The first figure "
        "shows that model and images go together. The second proves little, since the defense has seen these images."
    )
    before, after = number(found.get("before")), number(found.get("after"))
    return [Measure("clean", "Accuracy on the clean images given", explanation, True, before, after, remedy="")]
