"""The file of a layer alone: it goes into the model that it was learned for, and is no model itself."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import neural_polarizer as npz
from module_cases import CLEAN, purified
from neural_polarizer import BadInputError, Normalized
from neural_polarizer.data.images import to_pixels
from neural_polarizer.layer.polarizer import Polarizer
from neural_polarizer.model_files.record import ModelRecord
from neural_polarizer.model_files.save import save_polarizer
from run_files import run
from toys import TinyNet, made, snapshot, tiny_model


class Tokens(nn.Module):
    """Features of the layout N x L x C under the name of TinyNet's."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Linear(3, 6)
        self.head = nn.Linear(6, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(images.flatten(2).transpose(1, 2)).mean(dim=1))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    purified(tiny_model()).save(tmp_path / "run")
    return tmp_path / "run"


OTHERS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "wider": (
        lambda: Normalized(TinyNet(width=8), (0.5,) * 3, (0.2,) * 3),
        r"other features than those at after:features, which are NCHW 8x4x4 \(.*to have 6 channels, but got 8",
    ),
    "of another layout": (Tokens, r"other features than those at after:features, which are NLC 64x6$"),
    "of other names": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), "'after:features': no such module"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_a_layer_for_another_model_is_refused(folder: Path, kind: str) -> None:
    build, reason = OTHERS[kind]
    with pytest.raises(BadInputError, match=rf"polarizer\.safetensors: does not fit the model: .*{reason}") as told:
        npz.load_polarizer(made(build()), folder / "polarizer.safetensors")
    assert "\n" not in str(told.value)


def test_a_layer_that_fits_leaves_the_model_as_it_was(folder: Path) -> None:
    model = made(TinyNet(), 5).bfloat16().train()  # other weights, type and mode
    before = snapshot(model)
    layered = npz.load_polarizer(model, folder / "polarizer.safetensors")
    assert all(part.training for part in layered.modules())
    assert layered(to_pixels(CLEAN.images).bfloat16()).dtype == torch.bfloat16
    after = snapshot(model)
    assert all(torch.equal(after[0][name], value) for name, value in before[0].items())
    assert after[1:] == before[1:]


def test_a_layer_without_a_size_of_images_is_taken_as_it_is(tmp_path: Path) -> None:
    record = ModelRecord(architecture="any", num_classes=4, site="after:features")
    save_polarizer(tmp_path / "a.safetensors", Polarizer(6), record)
    pixels = to_pixels(CLEAN.images)
    with torch.no_grad():
        found = npz.load_polarizer(tiny_model(), tmp_path / "a.safetensors")(pixels)
        torch.testing.assert_close(found, tiny_model()(pixels), rtol=1e-3, atol=1e-3)
    with pytest.raises(BadInputError, match="'after:features': no such module"):
        npz.load_polarizer(nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), tmp_path / "a.safetensors")


def test_a_layer_is_no_model_and_a_model_no_layer(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layer = folder / "polarizer.safetensors"
    only = (
        r"polarizer\.safetensors: is only the layer of a purified model; the model is purified\.safetensors beside it"
    )
    for arch in (None, TinyNet):
        with pytest.raises(BadInputError, match=only):
            npz.load(layer, arch=arch)
    done = run(capsys, "export", layer, "--to", "pt2")
    assert (done.code, "is only the layer of a purified model" in " ".join(done.err.split())) == (3, True)
    with pytest.raises(BadInputError, match="holds a whole model, and not its layer; purify writes the layer as polar"):
        npz.load_polarizer(tiny_model(), folder / "purified.safetensors")


def test_export_says_how_a_saved_model_of_own_code_is_exported(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"in Python, use what neural_polarizer\.load\(\.\.\., arch=\.\.\.\) gives"):
        npz.export(folder, tmp_path / "a.pt2", CLEAN)
    assert npz.export(npz.load(folder, arch=TinyNet), tmp_path / "a.pt", CLEAN).deviation < 1e-5
