"""A new attack in one class: a frame around the image. The module name makes it available everywhere:

cd examples
polarizer attack new_attack:Frame --data digits:train --test digits:test --width 8 --epochs 4 --out runs/frame
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

import neural_polarizer as npz
from neural_polarizer.attacks.base import NOTHING, Category, TriggerState


@dataclass(frozen=True, kw_only=True)
class Frame(npz.Attack):
    """A white frame along the border.

    Args:
        pixels: how wide it is.
    """

    category: ClassVar[Category] = Category("additive", "local", "visible", "agnostic")

    pixels: int = 1

    def stamp(self, images: Tensor, state: TriggerState = NOTHING) -> Tensor:
        """The triggered form of uint8 images ``(n, c, h, w)``; the images that come in stay as they are."""
        framed = images.new_full(images.shape, 255)
        edge = slice(self.pixels, -self.pixels)
        framed[:, :, edge, edge] = images[:, :, edge, edge]
        return framed


def main(test: npz.ImageSet) -> npz.TriggeredSet:
    """The triggered test set: every image but those of the attacker's class, with the frame and the new label."""
    triggered = Frame(target=0).triggered(test)
    print(f"{len(triggered.images)} triggered images from {len(test)} test images")
    return triggered


if __name__ == "__main__":
    main(npz.read_images("digits:test"))
