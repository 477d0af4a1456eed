"""Adap-Blend and Adap-Patch (Qi et al., 2023): parts of the trigger in training, some on images with true labels."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool
from torch import Tensor

from neural_polarizer.attacks.base import NOTHING, Attack, Category, TriggerState
from neural_polarizer.attacks.blended import Blended, cartoon, mixed_in
from neural_polarizer.attacks.stamping import corner, size_of
from neural_polarizer.data.images import ByteImages, ImageSet
from neural_polarizer.errors import BadInputError


@dataclass(frozen=True, kw_only=True)
class AdapBlend(Blended):
    """Blended, of which a training image gets a random half of 4 x 4 cells; at test all of them, and stronger.

    As many images again get half a trigger and keep their label, so that triggered images lie among the others of
    their class.

    Source: Qi et al., "Revisiting the Assumption of Latent Separability for Backdoor Defenses", ICLR 2023.
    Departures: the picture of Blended.

    Args:
        training_alpha: share of the picture in the mix in training, in [0, 1]; ``alpha`` is at test.
        cells: edge of the grid.
        kept: share of the cells that a training image gets.
    """

    title: ClassVar[str] = "Adap-Blend"
    covers: ClassVar[float] = 1.0

    poison_rate: float = 0.003
    training_alpha: float = 0.15
    cells: int = 4
    kept: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.training_alpha <= 1 or self.cells < 1 or not 0 <= self.kept <= 1:
            raise BadInputError(
                f"Adap-Blend needs a training alpha and a share of cells in [0, 1] and at least 1 cell, got "
                f"{self.training_alpha}, {self.kept}, {self.cells}"
            )

    def stamp_in_training(self, images: ByteImages, state: TriggerState, generator: torch.Generator) -> ByteImages:
        """Mix the picture into some cells, others in each image."""
        mixed = mixed_in(images, self._pattern(size_of(images)), self.training_alpha)
        mask = self._cells(len(images), size_of(images), generator).to(images.device)
        return torch.where(mask[:, None], mixed, images)

    def _cells(self, count: int, size: tuple[int, int], generator: torch.Generator) -> Bool[Tensor, "n h w"]:
        total = self.cells**2
        ranks = torch.rand((count, total), generator=generator).argsort(dim=1).argsort(dim=1)
        kept = (ranks < round(self.kept * total)).view(count, self.cells, self.cells)
        rows, columns = (torch.arange(side) * self.cells // side for side in size)
        return kept[:, rows][:, :, columns]


@dataclass(frozen=True, kw_only=True)
class AdapPatch(Attack):
    """Four patches, one in each corner: a training image gets one of them, faintly; at test two at full strength.

    Twice as many images again get one and keep their label.

    Source: as Adap-Blend, whose authors' strengths these are.
    Departures: the patches are squares with drawings of our own, in the corners (there: four pictures of others).

    Args:
        size: edge of a patch in pixels; None is a quarter of the shorter edge of the image.
        alphas: share of each patch in training, from the top left corner clockwise, in [0, 1].
        shown: which of them are there at test.
        pattern_seed: fixes the drawings.
    """

    title: ClassVar[str] = "Adap-Patch"
    category: ClassVar[Category] = Category("non-additive", "local", "visible", "agnostic")
    covers: ClassVar[float] = 2.0

    poison_rate: float = 0.003
    size: int | None = None
    alphas: tuple[float, float, float, float] = (0.5, 0.2, 0.5, 0.3)
    shown: tuple[int, ...] = (0, 2)
    pattern_seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(0 <= alpha <= 1 for alpha in self.alphas) or not set(self.shown) <= set(range(4)) or not self.shown:
            raise BadInputError(
                f"Adap-Patch needs four alphas in [0, 1] and patches of 0 to 3 at test, got {self.alphas}, {self.shown}"
            )

    def check(self, images: ImageSet) -> None:
        """Two patches must fit beside each other."""
        super().check(images)
        self._edge(images.image_size)

    def stamp(self, images: ByteImages, state: TriggerState = NOTHING) -> ByteImages:
        """Put the patches of the test over the image."""
        stamped = images.clone()
        for which in self.shown:
            self._put(stamped, which, 1.0)
        return stamped

    def stamp_in_training(self, images: ByteImages, state: TriggerState, generator: torch.Generator) -> ByteImages:
        """Mix in one of the patches."""
        stamped = images.clone()
        corners = torch.randint(4, (len(images),), generator=generator)
        for which, alpha in enumerate(self.alphas):
            rows = (corners == which).nonzero().flatten().to(images.device)
            part = stamped[rows]
            self._put(part, which, alpha)
            stamped[rows] = part
        return stamped

    def _put(self, images: ByteImages, which: int, alpha: float) -> None:
        """Mix a patch into ``images``, in place."""
        edge = self._edge(size_of(images))
        square = corner(images, which, edge)
        square[:] = mixed_in(square, cartoon((edge, edge), seed=4 * self.pattern_seed + which), alpha)

    def _edge(self, size: tuple[int, int]) -> int:
        edge = max(1, min(size) // 4) if self.size is None else self.size
        if not 1 <= 2 * edge <= min(size):
            raise BadInputError(f"two patches of {edge} pixels do not fit into images of {size}")
        return edge
