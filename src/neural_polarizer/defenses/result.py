"""What a defense gives back: a model, and what it has found and learned on the way."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor, nn

from neural_polarizer.defenses.guard import Guarded
from neural_polarizer.layer.polarizer import Polarizer

Suspect = int | Literal["next"]
"""A class, for an all-to-one attack, or "next" for all-to-all, ``(y + 1) mod K``."""


@dataclass(frozen=True, eq=False)
class Exhibit:
    """Pictures of something that a defense has found.

    Args:
        title: a heading.
        caption: what the rows show, in a sentence.
        rows: uint8 ``(n, 3, h, w)``, one row of the sheet each.
    """

    title: str
    caption: str
    rows: tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Audit:
    """What a defense has found in the model, for people to look at.

    Args:
        summary: in words.
        by_class: one value for each class, by what it is, such as "anomaly_index"; None where there is none.
        exhibits: pictures.
    """

    summary: str
    by_class: Mapping[str, Sequence[float | bool | None]]
    exhibits: Sequence[Exhibit] = ()


def accusing_nobody(audit: Audit | None, reason: str) -> Audit | None:
    """``audit`` without an accusation, with the reason in its place."""
    return None if audit is None else replace(audit, summary=reason)


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a method makes of a model.

    Args:
        model: the repaired module; the method need not care for its device, modes and flags.
        audit: what the defense has found in the model.
        suspect: the class that the defense took for the attacker's, or "next" for all-to-all; None if it looked
            for none, or found none.
        polarizer: the learned layer inside ``model``, or None for defenses that insert nothing.
        site: where it sits, as ``before:NAME`` or ``after:NAME``.
        site_reason: why the site was chosen, if nobody named one.
        history: one record an epoch (losses, clean accuracy and surrogate success on the defender's own images).
        notes: what the user should be warned of, in words.
        guarded: what the guard of the accuracy let through; None for defenses without one.
    """

    model: nn.Module
    audit: Audit | None = None
    suspect: Suspect | None = None
    polarizer: Polarizer | None = None
    site: str | None = None
    site_reason: str | None = None
    history: Sequence[Mapping[str, float]] = ()
    notes: Sequence[str] = ()
    guarded: Guarded | None = None
