"""From margins to one number for a model, with its uncertainty, and what it means."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from neural_polarizer.audit.evidence import Margins
from neural_polarizer.rng import stream
from neural_polarizer.suspects import Suspect, lead_of_class, lead_of_next

Verdict = Literal["backdoor", "inconclusive", "no sign"]
Unusable = Literal["few classes", "low accuracy"]

FEWEST_CLASSES = 5
"""With fewer, there is no crowd for a class to stand out from."""
LEAST_ACCURACY = 0.5
"""Below it the model hardly knows its classes, or gets its images in another form than in training."""
RESAMPLES = 500
LIKELY, UNLIKELY = 2.0, 1.0
REFERENCE = (
    *(0.13, 0.18, 0.25, 0.25, 0.30, 0.36, 0.38, 0.39, 0.44, 0.47),
    *(0.49, 0.69, 0.73, 0.98, 0.98, 1.30, 1.55, 2.30, 2.71, 3.05),
)
"""Scores of 20 clean models (docs/research/audit.md)."""


@dataclass(frozen=True)
class Score:
    """How far the attacker's presumed label stands out from the crowd of classes.

    Args:
        value: the lead of the best class over the next best one, in standard deviations of all classes but the best;
            or that of "the class next to one's own" over the class before it in those of all classes.
        low: 5 % quantile of the value over bootstrap samples of the clean images.
        high: 95 % quantile.
        p_value: share of clean models that score as high or higher, ``(1 + higher) / (1 + models)``, among those of
            docs/research/audit.md. This and all above is None where there are fewer than FEWEST_CLASSES.
        suspect: the best aim.
        agreement: share of the bootstrap samples with the same best aim.
        seen_in: where it stands out most, "features" or "pixels".
        verdict: what it means.
        accuracy: share of the clean images that the model classifies correctly.
        unusable: why the verdict is "inconclusive" whatever the value; None if it is not.
    """

    value: float | None
    low: float | None
    high: float | None
    p_value: float | None
    suspect: Suspect | None
    agreement: float | None
    seen_in: Literal["features", "pixels"] | None
    verdict: Verdict
    accuracy: float
    unusable: Unusable | None


def score(margins: Margins, *, seed: int, reference: Sequence[float] = REFERENCE) -> Score:
    """The score of a model.

    Args:
        margins: of ``evidence.collect_margins``.
        seed: of the bootstrap.
        reference: scores of clean models.
    """
    count = len(margins.pixels)
    if count < FEWEST_CLASSES:
        nothing = (None,) * 7
        return Score(*nothing, verdict="inconclusive", accuracy=margins.accuracy, unusable="few classes")
    whole = _means(margins.features), _means(margins.pixels)
    value, aim, seen_in = (each[0] for each in _stand_out(*(means[None] for means in whole)))
    generator = stream(seed, "audit bootstrap")
    again = _stand_out(*(_resampled(each, generator) for each in (margins.features, margins.pixels)))
    low, high = again[0].quantile(torch.tensor([0.05, 0.95], dtype=again[0].dtype)).tolist()
    found, known = float(value), margins.accuracy >= LEAST_ACCURACY
    return Score(
        value=found,
        low=low,
        high=high,
        p_value=(1 + sum(each >= found for each in reference)) / (1 + len(reference)),
        suspect="next" if int(aim) == count else int(aim),
        agreement=float((again[1] == aim).double().mean()),
        seen_in="pixels" if int(seen_in) else "features",
        verdict=_verdict(found, low) if known else "inconclusive",
        accuracy=margins.accuracy,
        unusable=None if known else "low accuracy",
    )


def confident_suspect(found: Score) -> Suspect | None:
    """The suspect of a model with the verdict "backdoor"."""
    return found.suspect if found.verdict == "backdoor" else None


def _verdict(value: float, low: float) -> Verdict:
    if value >= LIKELY and low >= UNLIKELY:
        return "backdoor"
    return "no sign" if value < UNLIKELY else "inconclusive"


def _means(found: Sequence[Tensor]) -> Float[Tensor, " m"]:
    """Mean margins; the lowest of all for an aim without images."""
    means = torch.stack([each.double().mean() for each in found])
    return means.nan_to_num(nan=float(means.nan_to_num(nan=torch.inf).min()))


def _resampled(found: Sequence[Tensor], generator: torch.Generator) -> Float[Tensor, "b m"]:
    means = []
    for each in found:
        drawn = torch.randint(max(len(each), 1), (RESAMPLES, len(each)), generator=generator)
        means.append(each.double()[drawn].mean(dim=1))
    columns = torch.stack(means, dim=1)
    return torch.where(columns.isnan(), columns.nan_to_num(nan=torch.inf).amin(dim=1, keepdim=True), columns)


def _stand_out(features: Float[Tensor, "b m"], pixels: Float[Tensor, "b k"]) -> tuple[Tensor, Tensor, Tensor]:
    """For each row of mean margins: the value, the aim, and whether it is seen in pixels (1) or features (0)."""
    one, two = lead_of_class(features[:, :-2]), lead_of_class(pixels)
    aim, other = features[:, :-2].argmax(dim=1), pixels.argmax(dim=1)
    # "The next class" is judged by features alone: no perturbation of pixels turns each class into another one's.
    value, which = torch.stack([one, two, lead_of_next(features)], dim=1).max(dim=1)
    following = torch.full_like(aim, pixels.shape[1])
    return value, torch.stack([aim, other, following], dim=1).gather(1, which[:, None])[:, 0], (which == 1).long()
