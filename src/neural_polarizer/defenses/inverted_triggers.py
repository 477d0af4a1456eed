"""What an inversion of triggers has found: the masks' sizes, which of them are outliers, and pictures."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from neural_polarizer.data.images import to_bytes, to_pixels
from neural_polarizer.defenses.result import Audit, Exhibit

TINY = 1e-7
SHOWN = 10


@dataclass(frozen=True, eq=False)
class Inversion:
    """What the inversion found."""

    masks: Tensor  # how much each pixel belongs to the trigger, ``(k, 1, h, w)`` in [0, 1]
    patterns: Tensor  # its colours, ``(k, 3, h, w)`` in [0, 1]
    reached: Tensor  # which classes were reached at the wanted rate
    anomaly: Tensor  # index of each class; more than 2 is suspicious where the mask is smaller than the median
    flagged: tuple[int, ...]  # the suspicious classes

    @property
    def sizes(self) -> Float[Tensor, " k"]:
        """The sum of each mask, in pixels."""
        return self.masks.flatten(1).sum(dim=1)

    @property
    def suspect(self) -> int | None:
        """The flagged class that stands out most."""
        return max(self.flagged, key=lambda label: float(self.anomaly[label]), default=None)

    def audit(self, classes: Sequence[str]) -> Audit:
        """The numbers of all classes, and pictures of the smallest triggers."""
        names = [
            f"{label} ({classes[label]})" if label < len(classes) else f"{label}" for label in range(len(self.masks))
        ]
        flagged = ", ".join(names[label] for label in self.flagged)
        shown = self.sizes.argsort()[:SHOWN]
        order = ", ".join(names[label] for label in shown.tolist())
        masks, patterns = self.masks[shown], self.patterns[shown]
        return Audit(
            f"Inverted a trigger for each of {len(names)} classes; "
            + (f"suspiciously small: {flagged}." if flagged else "none is suspiciously small."),
            {
                "mask_size": self.sizes.tolist(),
                "reached": self.reached.tolist(),
                "anomaly_index": [value if math.isfinite(value) else None for value in self.anomaly.tolist()],
                "flagged": [label in self.flagged for label in range(len(names))],
            },
            (
                Exhibit(
                    "Inverted triggers",
                    "Rows: how much each pixel belongs to the trigger, and its colours there. From left to right the "
                    f"classes with the smallest masks: {order}.",
                    (to_bytes(masks.expand(-1, 3, -1, -1)), to_bytes(masks * patterns)),
                ),
            ),
        )


def squash(raw: Tensor) -> Tensor:
    """``tanh(raw) / 2 + 0.5``, in (0, 1)."""
    return raw.tanh() / (2 + TINY) + 0.5


def stamp(
    images: UInt8[Tensor, "n c h w"], mask: Float[Tensor, "1 h w"], pattern: Float[Tensor, "c h w"]
) -> UInt8[Tensor, "n c h w"]:
    """The images with an inverted trigger."""
    mixed = (1 - mask) * to_pixels(images) + mask * pattern
    return to_bytes(mixed)


def anomalies(
    sizes: Float[Tensor, " k"], reached: Tensor, threshold: float
) -> tuple[Float[Tensor, " k"], tuple[int, ...]]:
    """``|l - median| / MAD`` of the masks' sizes, and the classes below the median that exceed ``threshold``.

    Classes that were not reached have the index 0. Where the MAD is 0, a size other than the median is infinitely
    anomalous.
    """
    index = torch.zeros_like(sizes)
    known = sizes[reached]
    if len(known) < 3:
        return index, ()
    median = known.quantile(0.5)
    deviation = 1.4826 * (known - median).abs().quantile(0.5)
    gap = (sizes - median).abs()
    index = torch.where(reached & (gap > 0), gap / deviation, 0.0)
    flagged = reached & (sizes <= median) & (index > threshold)
    return index, tuple(flagged.nonzero()[:, 0].tolist())
