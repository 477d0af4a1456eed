"""Clean images made harder, as a network that was trained on them knows them too well to judge by."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from neural_polarizer.defenses.stand_ins.settings import Copies


def harder(pixels: Float[Tensor, "n c h w"], copies: Copies, generator: torch.Generator) -> Float[Tensor, "n c h w"]:
    """Each image moved, with another contrast and brightness, and partly covered; all in [0, 1].

    Nothing is resampled: that would make warps, which some backdoors answer to. The generator (on the CPU) draws.
    """
    count, _, height, width = pixels.shape

    def within(most: float) -> Tensor:
        drawn = (2 * torch.rand(count, 1, 1, 1, generator=generator) - 1) * most
        return drawn.to(pixels.device)

    mean = pixels.mean(dim=(1, 2, 3), keepdim=True)
    pixels = ((pixels - mean) * (1 + within(copies.contrast)) + mean + within(copies.brightness)).clamp(0, 1)
    by = [max(1, int(copies.moved * side)) for side in (height, width)]
    padded = F.pad(pixels, (by[1], by[1], by[0], by[0]), mode="replicate")
    cover = [max(1, int(copies.covered * side)) for side in (height, width)]
    found = []
    for image in padded:
        top, left, down, right = (
            int(torch.randint(0, most + 1, (1,), generator=generator))
            for most in (2 * by[0], 2 * by[1], height - cover[0], width - cover[1])
        )
        view = image[:, top : top + height, left : left + width].clone()
        view[:, down : down + cover[0], right : right + cover[1]] = view.mean(dim=(1, 2))[:, None, None]
        found.append(view)
    return torch.stack(found)
