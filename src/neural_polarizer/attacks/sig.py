"""SIG (Barni et al., 2019): a faint sinusoid over images of the target class, whose labels stay true."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from neural_polarizer.attacks.base import NOTHING, Attack, Category, TriggerState
from neural_polarizer.attacks.stamping import truncated
from neural_polarizer.data.images import ByteImages
from neural_polarizer.errors import BadInputError


@dataclass(frozen=True, kw_only=True)
class SIG(Attack):
    """``x' = x + delta sin(2 pi f j / W)`` in column j of W, clipped and truncated to 8 bits; only class T is poisoned.

    Source: Barni et al., "A New Backdoor Attack in CNNs by Training Set Corruption without Label Poisoning", ICIP 2019;
    delta and f as in BackdoorBench, the same in training and test.
    Departures: none.

    Args:
        delta: amplitude, in grey levels of 255.
        frequency: f, periods across the image.
    """

    title: ClassVar[str] = "SIG"
    category: ClassVar[Category] = Category("additive", "global", "visible", "agnostic")
    clean_label: ClassVar[bool] = True

    delta: float = 40.0
    frequency: float = 6.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.delta <= 255 or not self.frequency > 0:
            raise BadInputError(
                f"SIG needs a delta in (0, 255] and a positive frequency, got {self.delta}, {self.frequency}"
            )

    def stamp(self, images: ByteImages, state: TriggerState = NOTHING) -> ByteImages:
        """Add the sinusoid; the sum is truncated."""
        columns = torch.arange(images.shape[3], dtype=torch.float64, device=images.device)
        wave = self.delta * torch.sin(2 * math.pi * self.frequency * columns / images.shape[3])
        return truncated(images.double() + wave)
