"""Networks of one channel and of one logit: what is saved, folded and exported of them is what they are."""

import json
import math
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
from neural_polarizer.exporting.export import export_model
from neural_polarizer.exporting.formats import FormatName
from neural_polarizer.model_files.check import check_takes
from neural_polarizer.model_files.load import load_model
from neural_polarizer.model_files.record import ModelRecord
from neural_polarizer.model_files.save import save_model
from neural_polarizer.models.definition import definition_of
from neural_polarizer.models.preact_resnet import PreActResNet18
from toys import made, tiny_images

COLOURED = tiny_images(16)
GREY = ImageSet(COLOURED.images[:, :1].contiguous(), COLOURED.labels, COLOURED.classes, "grey")
QUICK = npz.NPD(epochs=1, batch_size=8)
ONE: dict[str, Any] = {"device": "cpu", "force": True}
TUNED: dict[str, Any] = {"schedule.epochs": 1, **ONE}


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
    npz.save(found.model, tmp_path / "a.safetensors")
    torch.testing.assert_close(npz.load(tmp_path / "a.safetensors", arch=arch)(pixels), found.model(pixels))


@torch.no_grad()
@pytest.mark.parametrize("normalised", [False, True])
def test_a_grey_network_without_convolutions_is_folded_and_exported_as_one(tmp_path: Path, normalised: bool) -> None:
    model = made(Normalized(flat(), (0.3,), (0.2,)) if normalised else flat())
    found = npz.purify(model, GREY, QUICK, **ONE)
    npz.save(npz.fold(found, GREY).model, tmp_path / "folded.safetensors")
    npz.export(found, tmp_path / "exported.safetensors", GREY)
    pixels = torch.rand(3, 1, 8, 8)
    for name in ("folded", "exported"):
        loaded = npz.load(tmp_path / f"{name}.safetensors", arch=flat)
        torch.testing.assert_close(loaded(pixels), found.model(pixels))


@torch.no_grad()
@pytest.mark.parametrize("shape", [(1, 20, 20), (1, 48, 48), (1, 20, 25), (3, 20, 20), (3, 5, 7)])
def test_a_network_without_convolutions_is_read_back_at_any_size(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    model = made(nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 4)))
    npz.save(model, tmp_path / "a.safetensors")
    pixels = torch.rand(2, *shape)
    torch.testing.assert_close(npz.load(tmp_path / "a.safetensors", arch=model)(pixels), model(pixels))


@torch.no_grad()
def test_the_answer_tells_whether_a_network_is_for_grey_images(tmp_path: Path) -> None:
    def digits() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, 4))

    class Greying(Net):  # its first convolution takes one channel, and it takes three
        def forward(self, pixels: Tensor) -> Tensor:
            return super().forward(0.3 * pixels[:, :1] + 0.6 * pixels[:, 1:2] + 0.1 * pixels[:, 2:])

    grey, coloured = made(digits()), made(Greying())
    npz.save(grey, tmp_path / "grey.safetensors")
    npz.save(coloured, tmp_path / "coloured.safetensors")
    pixels = torch.rand(3, 3, 28, 28)
    loaded = npz.load(tmp_path / "grey.safetensors", arch=digits)
    torch.testing.assert_close(loaded(pixels[:, :1]), grey(pixels[:, :1]))
    torch.testing.assert_close(npz.load(tmp_path / "coloured.safetensors", arch=Greying)(pixels), coloured(pixels))


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


@torch.no_grad()
@pytest.mark.parametrize("flat", [False, True])
def test_a_model_of_one_logit_keeps_its_form_in_files(tmp_path: Path, flat: bool) -> None:
    model = made(YesNo(flat))
    found = npz.purify(model, HALVES, QUICK, **ONE)
    pixels = to_pixels(HALVES.images)
    found.save(tmp_path / "run")
    npz.save(found.model, tmp_path / "a.safetensors")
    npz.export(found, tmp_path / "b.safetensors", HALVES)
    for path in ("run", "a.safetensors", "b.safetensors"):
        loaded = npz.load(tmp_path / path, arch=model)
        torch.testing.assert_close(loaded(pixels), found.model(pixels))
        assert npz.evaluate(loaded, HALVES).acc == npz.evaluate(found, HALVES).acc
        asked = load_model(tmp_path / path, architecture=definition_of(model))  # as the commands do
        assert (asked.model(pixels).shape, asked.record.num_classes) == ((16, 2), 2)


class Picky(YesNo):
    """Answers to images of one size only, and its last layer is not its head."""

    def __init__(self) -> None:
        super().__init__()
        self.aside = nn.Linear(6, 5)

    def forward(self, pixels: Tensor) -> Tensor:
        if pixels.shape[-1] != 8:
            raise ValueError("not 8 pixels")
        return super().forward(pixels)


def test_the_record_of_a_model_of_one_logit_knows_its_classes(tmp_path: Path) -> None:
    npz.export(made(Picky()), tmp_path / "a.safetensors", HALVES)
    loaded = load_model(tmp_path / "a.safetensors", architecture=definition_of(Picky))
    assert (loaded.record.num_classes, loaded.record.yes_no) == (2, True)


def test_a_loaded_model_of_one_logit_that_is_purified_still_says_what_it_is(tmp_path: Path) -> None:
    record = ModelRecord(architecture="preactresnet18", num_classes=2, width=2, yes_no=True, classes=("no", "yes"))
    save_model(tmp_path / "a.safetensors", made(PreActResNet18(1, 2)), record)
    model = npz.load(tmp_path / "a.safetensors")
    found = npz.purify(model, HALVES, "ft", **TUNED)
    npz.save(found.model, tmp_path / "b.safetensors")
    assert npz.load(tmp_path / "b.safetensors")(torch.rand(2, 3, 8, 8)).shape == (2, 1)
    assert load_model(tmp_path / "b.safetensors").record.classes == ("no", "yes")
    assert npz.export(found, tmp_path / "c.safetensors", HALVES).deviation < 1e-5
    done = npz.export(tmp_path / "b.safetensors", tmp_path / "c.pt2", HALVES)
    assert torch.export.load(done.path).module()(torch.rand(3, 3, 8, 8)).shape == (3, 1)


ONE_LOGIT = "one logit z for each image, which stands for the two logits (0, z)"


def told_by(path: Path) -> dict[str, Any]:
    if path.suffix == ".pt":
        return json.loads(path.with_name(f"{path.name}.json").read_text())
    files = {"model.json": ""}
    torch.export.load(path, extra_files=files)
    return json.loads(files["model.json"])


@pytest.mark.parametrize("in_command", [True, False])
def test_what_stands_beside_the_weights_of_a_grey_network_leads_to_its_logits(tmp_path: Path, in_command: bool) -> None:
    torch.save(made(Net()).state_dict(), tmp_path / "m.pt")
    loaded = load_model(tmp_path / "m.pt", architecture=definition_of(Net), profile="0.3/0.2")
    pixels = to_pixels(GREY.images)
    if in_command:
        export_model(loaded.model, tmp_path / "a.pt", "state-dict", COLOURED, loaded.record)
        done = export_model(loaded.model, tmp_path / "a.pt2", "pt2", COLOURED, loaded.record)
    else:
        npz.save(loaded.model, tmp_path / "m.safetensors")
        npz.export(npz.load(tmp_path / "m.safetensors", arch=Net), tmp_path / "a.pt", GREY)
        done = npz.export(npz.load(tmp_path / "m.safetensors", arch=Net), tmp_path / "a.pt2", COLOURED)
    told = told_by(tmp_path / "a.pt")
    assert told["input"] == "(x - mean) / std, where x is float32 pixels in [0, 1], N x 1 x 8 x 8"
    assert told_by(done.path)["input"] == "float32 pixels in [0, 1], N x 3 x 8 x 8; normalised inside the model"
    assert (told["grey"], told["output"]) == (True, "logits, N x 4")
    assert (told["mean"], told["std"]) == (pytest.approx([0.3]), pytest.approx([0.2]))
    network = Net().eval()
    network.load_state_dict(torch.load(tmp_path / "a.pt", weights_only=True))
    mean, std = (torch.tensor(told[name]).view(1, -1, 1, 1) for name in ("mean", "std"))  # as docs/how-to has it
    with torch.no_grad():
        torch.testing.assert_close(network((pixels - mean) / std), loaded.model(pixels))


@pytest.mark.parametrize(("flat", "rows"), [(False, "N x 1"), (True, "N")])
def test_an_export_says_that_there_is_one_logit(tmp_path: Path, flat: bool, rows: str) -> None:
    model = made(YesNo(flat))
    torch.save(model.state_dict(), tmp_path / "m.pt")
    loaded = load_model(tmp_path / "m.pt", architecture=definition_of(model), profile="none")
    export_model(loaded.model, tmp_path / "a.pt", "state-dict", HALVES, loaded.record)
    export_model(loaded.model, tmp_path / "a.pt2", "pt2", HALVES, loaded.record)
    npz.export(model, tmp_path / "b.pt", HALVES)
    npz.export(model, tmp_path / "b.pt2", HALVES)
    told = {name: told_by(tmp_path / name) for name in ("a.pt", "b.pt", "a.pt2", "b.pt2")}
    assert {name: each["output"] for name, each in told.items()} == {
        "a.pt": ONE_LOGIT,
        "b.pt": ONE_LOGIT,
        "a.pt2": "logits, N x 2",
        "b.pt2": f"logits, {rows}: {ONE_LOGIT}",
    }
    assert all((each["yes_no"], each["num_classes"]) == (True, 2) for each in told.values())


class Pair(Net):
    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return pixels, super().forward(pixels)


def test_an_export_says_which_output_the_logits_are(tmp_path: Path) -> None:
    model = made(Pair(channels=3))
    torch.save(model.state_dict(), tmp_path / "m.pt")
    loaded = load_model(tmp_path / "m.pt", architecture=definition_of(model), profile="none", output="1")
    formats: dict[str, FormatName] = {"a.pt": "state-dict", "a.pt2": "pt2"}
    for name, kind in formats.items():
        export_model(loaded.model, tmp_path / name, kind, COLOURED, loaded.record)
    weights, graph = told_by(tmp_path / "a.pt"), told_by(tmp_path / "a.pt2")
    assert weights["output"] == "logits, N x 4, as '1' of what the network gives"
    assert (graph["output"], weights["output_key"], graph["output_key"]) == ("logits, N x 4", "1", "1")
