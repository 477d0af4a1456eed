"""Networks of one channel and of one logit: what is saved, folded and exported of them is what they are."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import neural_polarizer as npz
from neural_polarizer import ImageSet, Normalized
from neural_polarizer.data.images import to_pixels
from neural_polarizer.model_files.check import check_takes
from neural_polarizer.model_files.load import load_model
from neural_polarizer.models.definition import definition_of
from toys import made, tiny_images

COLOURED = tiny_images(16)
GREY = ImageSet(COLOURED.images[:, :1].contiguous(), COLOURED.labels, COLOURED.classes, "grey")
QUICK = npz.NPD(epochs=1, batch_size=8)
ONE: dict[str, Any] = {"device": "cpu", "force": True}


class Net(nn.Module):
    def __init__(self, num_classes: int = 4, channels: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(channels, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1))
        self.head = nn.Linear(6, num_classes)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.body(pixels).relu().mean(dim=(2, 3)))


def flat(num_classes: int = 4) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, num_classes))


GREY_MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[..., nn.Module]]] = {
    "normalised": (lambda: Normalized(Net(), (0.3,), (0.2,)), Net),
    "bare": (Net, Net),
    "without convolutions": (flat, flat),
}


@torch.no_grad()
@pytest.mark.parametrize("kind", GREY_MODELS)
def test_a_model_of_one_channel_comes_back_for_grey_and_for_coloured_images(tmp_path: Path, kind: str) -> None:
    build, arch = GREY_MODELS[kind]
    model = made(build())
    found = npz.purify(model, GREY, QUICK, **ONE)
    found.save(tmp_path)
    pixels = torch.rand(3, 1, 8, 8)
    loaded = npz.load(tmp_path, arch=arch)
    for same in (loaded, npz.load_polarizer(model, tmp_path / "polarizer.safetensors")):
        torch.testing.assert_close(same(pixels), found.model(pixels))
    torch.testing.assert_close(loaded(pixels.expand(3, 3, 8, 8)), found.model(pixels))
    check_takes(load_model(tmp_path, architecture=definition_of(arch)), (8, 8))  # as the commands do
    if kind != "without convolutions":
        npz.save(found.model, tmp_path / "a.safetensors")
        torch.testing.assert_close(npz.load(tmp_path / "a.safetensors", arch=arch)(pixels), found.model(pixels))


@torch.no_grad()
def test_one_number_is_the_normalisation_of_all_three_channels_of_coloured_images(tmp_path: Path) -> None:
    model = made(Normalized(Net(channels=3), (0.3,), (0.2,)))
    npz.save(model, tmp_path / "a.safetensors")
    pixels = torch.rand(3, 3, 8, 8)
    assert torch.equal(npz.load(tmp_path / "a.safetensors", arch=lambda: Net(channels=3))(pixels), model(pixels))


@torch.no_grad()
def test_grey_pictures_are_folded_and_exported_with_as_many_channels_as_the_model_takes(tmp_path: Path) -> None:
    labels = GREY.labels.tolist()
    pictures = [(Image.fromarray(grey.numpy()), label) for (grey,), label in zip(GREY.images, labels, strict=True)]
    found = npz.purify(made(Normalized(Net(), (0.3,), (0.2,))), pictures, QUICK, **ONE)
    folded = npz.fold(found, pictures)
    pixels = to_pixels(GREY.images)
    torch.testing.assert_close(folded.model(pixels), found.model(pixels))
    assert npz.export(found, tmp_path / "a.pt2", pictures).n_images == 16
    graph = torch.export.load(tmp_path / "a.pt2").module()
    torch.testing.assert_close(graph(pixels), found.model(pixels))
    with pytest.raises(npz.BadInputError, match="the model cannot take images N x 3 x 8 x 8"):
        npz.fold(found, COLOURED)


class YesNo(Net):
    """One logit, with or without an axis for it."""

    def __init__(self, flat: bool = False) -> None:
        super().__init__(1, channels=3)
        self.flat = flat

    def forward(self, pixels: Tensor) -> Tensor:
        logit = super().forward(pixels)
        return logit[:, 0] if self.flat else logit


HALVES = replace(COLOURED, labels=COLOURED.labels % 2, classes=("no", "yes"))


@torch.no_grad()
@pytest.mark.parametrize("flat", [False, True])
def test_a_model_of_one_logit_is_folded_and_has_sites(tmp_path: Path, flat: bool) -> None:
    model = made(YesNo(flat))
    assert "before:body" in [str(each.site) for each in npz.sites(model, 8)]
    found = npz.purify(model, HALVES, QUICK, **ONE)
    folded = npz.fold(found, HALVES)
    pixels = to_pixels(HALVES.images)
    assert folded.model(pixels).shape == model(pixels).shape
    npz.save(folded.model, tmp_path / "a.safetensors")
    assert load_model(tmp_path / "a.safetensors", architecture=definition_of(model)).record.num_classes == 2
