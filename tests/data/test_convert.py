"""Data sets, loaders, pictures and arrays from Python as one image set."""

import itertools
from typing import Any

import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader, TensorDataset

from neural_polarizer import BadInputError
from neural_polarizer.data import convert
from neural_polarizer.data.convert import as_image_set
from toys import tiny_images

CLEAN = tiny_images(16)
FLOATS = CLEAN.images.float() / 255


def test_a_stream_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "MOST_BYTES", 1 << 20)
    endless = itertools.repeat((FLOATS[0], 1))
    with pytest.raises(BadInputError, match=r"images, perhaps without end; give the first ones, as in itertools"):
        as_image_set(endless)
    assert len(as_image_set(itertools.islice(endless, 500))) == 500
    assert len(as_image_set([(FLOATS[0], 1)] * 2_000)) == 2_000


class Named(TensorDataset):
    """As a data set of torchvision: it knows its classes' names."""

    classes = ("ant", "bee")


def test_the_class_names_of_data_sets_that_are_joined_count() -> None:
    part = Named(FLOATS[:2], torch.tensor([0, 1]))
    joined: ConcatDataset[Any] = ConcatDataset([part, part])
    assert as_image_set(DataLoader(joined, batch_size=2), classes=["bee", "ant"]).labels.tolist() == [1, 0, 1, 0]
    other = Named(FLOATS[:2], torch.tensor([0, 1]))
    other.classes = ("fox", "bee")  # in one list of labels these cannot be told apart
    mixed: ConcatDataset[Any] = ConcatDataset([part, other])
    assert as_image_set(mixed).classes == ("0", "1")


def test_more_classes_than_the_labels_have_can_be_named() -> None:
    found = as_image_set([(torch.zeros(3, 2, 2), 1)], classes=list("abcdefg"))
    assert found.classes == tuple("abcdefg")
    assert as_image_set([(torch.zeros(3, 2, 2), 1)]).num_classes == 2


def test_an_image_in_a_batch_of_one_has_one_label() -> None:
    assert as_image_set([(torch.ones(1, 3, 2, 2), 1), (torch.ones(1, 3, 2, 2), 0)]).labels.tolist() == [1, 0]
    with pytest.raises(BadInputError, match="one class number an image"):
        as_image_set([(torch.zeros(2, 3, 2, 2), 1)])


@pytest.mark.parametrize("size", [1, 3, 5, 16])
@pytest.mark.parametrize("grey", [CLEAN.images[:, 0], FLOATS[:, 0], CLEAN.images[:, 0].numpy()])
def test_batches_of_grey_images_need_no_channels(grey: Any, size: int) -> None:
    batches = [(grey[i : i + size], CLEAN.labels[i : i + size]) for i in range(0, 16, size)]
    found = as_image_set(batches)
    assert found.labels.tolist() == CLEAN.labels.tolist()
    assert torch.equal(found.images, CLEAN.images[:, :1])


def test_an_image_beside_a_row_for_its_class_is_no_batch_of_grey_ones() -> None:
    rows = torch.eye(8, dtype=torch.int64)
    assert as_image_set([(CLEAN.images[0], rows[1, :3])]).images.shape == (1, 3, 8, 8)
    assert as_image_set([(CLEAN.images[0].permute(1, 2, 0).numpy(), rows[1])]).images.shape == (1, 3, 8, 8)


@pytest.mark.parametrize("images", [FLOATS / 255, FLOATS.byte(), CLEAN.images // 200])
def test_pixels_of_the_wrong_range_that_pass_for_black_are_refused(images: torch.Tensor) -> None:
    with pytest.raises(BadInputError, match="no pixel is brighter than 1 of 255"):
        as_image_set(TensorDataset(images, CLEAN.labels))


def test_an_error_in_the_users_own_code_is_named_and_kept() -> None:
    pictures: Any = [(Image.new("RGB", (8, 8)), 0)] * 4
    loader = DataLoader(pictures, batch_size=4)
    with pytest.raises(BadInputError, match=r"DataLoader: cannot be read \(TypeError: .*PIL") as caught:
        as_image_set(loader)
    assert isinstance(caught.value.__cause__, TypeError)


def test_float_images_are_rounded_not_cut() -> None:
    (image,) = as_image_set([(torch.full((1, 1, 1), 99.6 / 255), 0)]).images
    assert image.item() == 100


def test_images_that_are_handed_in_stay_as_they_are() -> None:
    images = FLOATS.clone()
    as_image_set(TensorDataset(images, CLEAN.labels))
    assert torch.equal(images, FLOATS)
