"""Pictures for reports: grids of images, and small differences made visible."""

import io
from collections.abc import Sequence

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from neural_polarizer.errors import BadInputError

_MID_GREY = 128


def contact_sheet(rows: Sequence[UInt8[Tensor, "_ 3 _ _"]], *, scale: int, gap: int = 2) -> bytes:
    """A PNG with one row of enlarged images per tensor; what no image covers is transparent.

    All images are of one size, ``(n, 3, h, w)``, where ``n`` may differ from row to row. Each of their pixels becomes a
    square of ``scale`` pixels a side; ``gap`` pixels lie between neighbouring images, none around the sheet.
    """
    height, width = _common_size(rows)
    if scale < 1 or gap < 0:
        raise BadInputError(f"scale must be at least 1 and gap at least 0, got scale={scale} and gap={gap}")
    step_down, step_right = height * scale + gap, width * scale + gap
    most = max(len(row) for row in rows)
    sheet = torch.zeros(len(rows) * step_down - gap, most * step_right - gap, 4, dtype=torch.uint8)
    for index, row in enumerate(rows):
        big = row.detach().cpu().repeat_interleave(scale, dim=2).repeat_interleave(scale, dim=3)
        for column, image in enumerate(big):
            top, left = index * step_down, column * step_right
            tile = sheet[top : top + height * scale, left : left + width * scale]
            tile[..., :3] = image.permute(1, 2, 0)
            tile[..., 3] = 255
    file = io.BytesIO()
    Image.fromarray(sheet.numpy()).save(file, format="PNG", optimize=True)
    return file.getvalue()


def amplify(difference: Float[Tensor, "n 3 h w"]) -> UInt8[Tensor, "n 3 h w"]:
    """Differences of images, in [-1, 1], as pictures: no change is mid grey, the batch's largest change is full range.

    One factor is used for the whole batch, so that its images compare. NaN and infinite values are refused.
    """
    values = difference.detach().float()
    if not values.isfinite().all():
        raise BadInputError("cannot picture a difference with NaN or infinite values; check how it was made")
    largest = values.abs().amax() if values.numel() else values.new_tensor(0.0)
    unit = values / largest if largest > 0 else torch.zeros_like(values)
    # 128 steps down but only 127 up, because 128 is not quite the middle of 0 to 255.
    return (_MID_GREY + torch.where(unit > 0, 127 * unit, 128 * unit)).round().to(torch.uint8)


def _common_size(rows: Sequence[Tensor]) -> tuple[int, int]:
    if not rows or any(len(row) == 0 for row in rows):
        raise BadInputError("a contact sheet needs at least one row, and an image in every row")
    sizes = sorted({(row.shape[2], row.shape[3]) for row in rows})
    if len(sizes) > 1:
        raise BadInputError(f"a contact sheet needs images of one size, got {sizes}; resize them first")
    return sizes[0]
