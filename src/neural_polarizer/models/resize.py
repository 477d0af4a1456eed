"""Resizing as a part of a network."""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class Resize(nn.Module):
    """Images of any size to squares of ``side`` pixels, bilinearly and averaging where they shrink.

    Shape: float ``(n, c, h, w)`` to ``(n, c, side, side)``.
    """

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, images: Float[Tensor, "n c h w"]) -> Tensor:
        return F.interpolate(images, size=(self.side, self.side), mode="bilinear", antialias=True)
