import io

import pytest
import torch
from PIL import Image
from torch import Tensor, tensor
from torch.testing import assert_close

from neural_polarizer.errors import BadInputError
from neural_polarizer.report.pictures import amplify, contact_sheet


def pixels(png: bytes) -> Tensor:
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG"
    data = torch.frombuffer(bytearray(image.convert("RGBA").tobytes()), dtype=torch.uint8)
    return data.reshape(image.height, image.width, 4)


def flat(*levels: int) -> Tensor:
    """One image of 1 by 1 pixel per level."""
    return tensor(levels, dtype=torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 3, 1, 1)


def test_a_sheet_is_known_by_hand() -> None:
    got = pixels(contact_sheet([flat(10, 20), flat(30)], scale=2, gap=1))
    assert_close(
        got[..., 0],
        tensor(
            [
                [10, 10, 0, 20, 20],
                [10, 10, 0, 20, 20],
                [0, 0, 0, 0, 0],
                [30, 30, 0, 0, 0],
                [30, 30, 0, 0, 0],
            ],
            dtype=torch.uint8,
        ),
    )
    assert_close(got[..., 3], torch.where(got[..., 0] > 0, 255, 0).to(torch.uint8))


def test_channels_rows_and_columns_keep_their_places() -> None:
    image = torch.arange(18, dtype=torch.uint8).reshape(1, 3, 2, 3)
    got = pixels(contact_sheet([image], scale=1))
    assert_close(got[..., :3], image[0].permute(1, 2, 0))


@pytest.mark.parametrize(
    ("rows", "scale", "gap", "message"),
    [
        ([], 1, 2, "at least one row"),
        ([flat()], 1, 2, "an image in every row"),
        ([flat(1)], 0, 2, "scale must be at least 1"),
        ([flat(1)], 1, -1, "gap at least 0"),
        (
            [flat(1), torch.zeros(1, 3, 2, 1, dtype=torch.uint8)],
            1,
            2,
            r"one size, got \[\(1, 1\), \(2, 1\)\]",
        ),
    ],
)
def test_a_sheet_that_cannot_be_made_says_why(rows: list[Tensor], scale: int, gap: int, message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        contact_sheet(rows, scale=scale, gap=gap)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_amplified_values_are_known_by_hand(dtype: torch.dtype) -> None:
    difference = tensor([0.0, 0.25, -0.25, 0.125, -0.125, 0.0], dtype=dtype).reshape(1, 3, 1, 2)
    assert amplify(difference).flatten().tolist() == [128, 255, 0, 192, 64, 128]


def test_one_factor_serves_the_whole_batch() -> None:
    difference = torch.zeros(2, 3, 1, 1)
    difference[0] = 0.5
    difference[1] = -0.25
    assert amplify(difference)[:, 0, 0, 0].tolist() == [255, 64]


def test_no_difference_is_flat_grey() -> None:
    assert amplify(torch.zeros(2, 3, 2, 2)).flatten().tolist() == [128] * 24
    assert amplify(torch.zeros(0, 3, 2, 2)).shape == (0, 3, 2, 2)


def test_differences_that_are_not_numbers_are_refused() -> None:
    with pytest.raises(BadInputError, match="NaN or infinite values"):
        amplify(torch.full((1, 3, 1, 1), float("nan")))
