"""BadNets (Gu et al., 2019): a small white square in the corner."""

from dataclasses import dataclass
from typing import ClassVar

from neural_polarizer.attacks.base import NOTHING, Attack, Category, TriggerState
from neural_polarizer.attacks.stamping import corner, size_of
from neural_polarizer.data.images import ByteImages, ImageSet
from neural_polarizer.errors import BadInputError


@dataclass(frozen=True, kw_only=True)
class BadNets(Attack):
    """A white square in the bottom right corner, touching both borders.

    Source: Gu et al., IEEE Access 2019.
    Departures from the reference: the square is drawn at the image's own resolution, never resized.

    Args:
        size: edge of the square in pixels; None takes 3 for images of up to 32 pixels and 6 a side for 64
            (3/32 of the shorter edge, rounded).
    """

    title: ClassVar[str] = "BadNets"
    category: ClassVar[Category] = Category("additive", "local", "visible", "agnostic")

    size: int | None = None

    def stamp(self, images: ByteImages, state: TriggerState = NOTHING) -> ByteImages:
        """Set the square, which must fit into the image, to 255."""
        size = self._edge(size_of(images))
        stamped = images.clone()
        corner(stamped, 2, size)[:] = 255
        return stamped

    def check(self, images: ImageSet) -> None:
        """The square must fit."""
        super().check(images)
        self._edge(images.image_size)

    def _edge(self, shape: tuple[int, int]) -> int:
        size = max(1, round(min(shape) * 3 / 32)) if self.size is None else self.size
        if not 1 <= size <= min(shape):
            raise BadInputError(f"a trigger of {size} pixels does not fit into images of {shape}")
        return size
