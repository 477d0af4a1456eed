"""BadNets (Gu et al., 2019): a small white square in the corner."""

from dataclasses import dataclass

from jaxtyping import UInt8
from torch import Tensor

from neural_polarizer.attacks.base import DataPoisoning
from neural_polarizer.errors import BadInputError


@dataclass(frozen=True, kw_only=True)
class BadNets(DataPoisoning):
    """A white square in the bottom right corner, touching both borders.

    Source: Gu et al., IEEE Access 2019; spec 2.1.
    Departures from the reference: the square is drawn at the image's own resolution, never resized.

    Args:
        size: edge of the square in pixels; None takes 3 for images of up to 32 pixels and 6 a side for 64
            (3/32 of the shorter edge, rounded).
    """

    size: int | None = None

    def stamp(self, images: UInt8[Tensor, "n c h w"]) -> UInt8[Tensor, "n c h w"]:
        """Set the square to 255.

        Raises:
            BadInputError: the square does not fit into the image.
        """
        shorter = min(images.shape[2:])
        size = max(1, round(shorter * 3 / 32)) if self.size is None else self.size
        if not 1 <= size <= shorter:
            raise BadInputError(f"a trigger of {size} pixels does not fit into images of {tuple(images.shape[2:])}")
        stamped = images.clone()
        stamped[:, :, -size:, -size:] = 255
        return stamped
