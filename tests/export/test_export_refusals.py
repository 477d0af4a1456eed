"""What cannot be exported is refused in words and leaves nothing behind."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from export_cases import IMAGES, SUFFIX, model_of, needs, record_of
from torch import Tensor, nn

import neural_polarizer
from neural_polarizer import BadInputError
from neural_polarizer.errors import WrongUsageError
from neural_polarizer.exporting import formats
from neural_polarizer.exporting.export import export_model, format_of
from neural_polarizer.exporting.formats import FormatName
from neural_polarizer.exporting.portable import Portable
from neural_polarizer.model_files import save
from toys import TinyNet, tiny_images, tiny_model


def spoil(monkeypatch: pytest.MonkeyPatch, value: Callable[[Tensor], Tensor]) -> None:
    """Let the writer of weights write a wrong head."""
    right = save.network_tensors

    def wrong(network: nn.Module) -> dict[str, Tensor]:
        tensors = right(network)
        return tensors | {"linear.bias": value(tensors["linear.bias"])}

    for module in (save, formats):
        monkeypatch.setattr(module, "network_tensors", wrong)


class Flowing(TinyNet):
    """Its way depends on the pixels, so that no graph holds it."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images if images.mean() > 0.4 else images + 1)


@pytest.mark.long
def test_a_network_without_a_graph_is_refused_without_the_log_of_torch(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(BadInputError, match=r"cannot be captured as a graph \(GuardOnDataDependentSymNode"):
        neural_polarizer.export(Flowing().eval(), tmp_path / "a.pt2", tiny_images())
    assert capfd.readouterr() == ("", "")


@pytest.mark.long
def test_what_onnx_lacks_is_named_without_colours(tmp_path: Path) -> None:
    needs("onnx")
    model = TinyNet().eval()
    nn.utils.parametrizations.orthogonal(model.head)  # in place
    with pytest.raises(BadInputError, match=r"\(DispatchError: No ONNX function found for .*householder"):
        neural_polarizer.export(model, tmp_path / "a.onnx", tiny_images())


@pytest.mark.parametrize("name", ["safetensors", "state-dict"])
def test_a_file_with_other_logits_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: FormatName
) -> None:
    model, record = model_of("preactresnet18", None, 2), record_of("preactresnet18", None, 2)
    path = tmp_path / f"a{SUFFIX[name]}"
    export_model(model, path, name, IMAGES, record)
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    spoil(monkeypatch, lambda bias: bias + 2e-4)
    with pytest.raises(BadInputError, match=r"not kept, as its logits differ from the model's by 0\.0002 where"):
        export_model(model, path, name, IMAGES, record)
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before
    assert export_model(model, path, name, IMAGES, record, tolerance=3e-4).deviation == pytest.approx(2e-4, rel=0.1)


def test_a_file_that_cannot_be_read_back_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, lambda bias: bias[:2])
    with pytest.raises(
        BadInputError, match=r"a\.pt: not kept, as it cannot be read back and run .*linear\.bias"
    ) as told:
        export_model(
            model_of("preactresnet18", None, 2),
            tmp_path / "a.pt",
            "state-dict",
            IMAGES,
            record_of("preactresnet18", None, 2),
        )
    assert ".part" not in str(told.value)
    assert list(tmp_path.iterdir()) == []


def test_a_long_path_is_given_in_full_where_a_file_cannot_be_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(path: Path, _portable: Portable) -> Callable[[Tensor], Tensor]:
        raise RuntimeError(f"{path}: no model" + " at all" * 50)

    spoiled = replace(formats.FORMATS["safetensors"], reader=read)
    monkeypatch.setattr("neural_polarizer.exporting.export.FORMATS", {**formats.FORMATS, "safetensors": spoiled})
    least = len(str(tmp_path / ".a.safetensors.part"))
    path = tmp_path / ("x" * max(202 - least, 1)) / "a.safetensors"  # a text that ends within the temporary name
    path.parent.mkdir()
    with pytest.raises(BadInputError, match=r"cannot be read back and run \(RuntimeError: ") as told:
        export_model(tiny_model(), path, "safetensors", tiny_images(1))
    assert ".part" not in str(told.value)
    assert f".{path.name}" not in str(told.value)


class Wild(nn.Module):
    """Logits that are no numbers."""

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels.mean(dim=(2, 3)) / 0.0 * torch.zeros(3)


class OneBatchSize(nn.Module):
    """Takes two images at once and no others."""

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels.reshape(2, 3, -1).mean(dim=2)


class SpecialCase(nn.Module):
    """Does something else with one image alone."""

    def forward(self, pixels: Tensor) -> Tensor:
        return (pixels + 1 if len(pixels) == 1 else pixels).mean(dim=(2, 3))


class Undecided(TinyNet):
    """Looks at its data in plain Python, which no graph can hold."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images if images.mean() < 2 else images / 255)


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (Wild, r"differ from the model's by nan"),
        (OneBatchSize, r"the network cannot be captured as a graph \(\w+: .*\); export its weights"),
        (SpecialCase, r"a\.pt2: not kept|the network cannot be captured as a graph"),
        (Undecided, r"the network cannot be captured as a graph"),
    ],
)
def test_a_network_that_is_no_graph_is_refused_in_words(tmp_path: Path, network: type[nn.Module], reason: str) -> None:
    with pytest.raises(BadInputError, match=reason):
        export_model(network().eval(), tmp_path / "a.pt2", "pt2", tiny_images(2))
    assert list(tmp_path.iterdir()) == []


def test_the_ending_tells_the_format(tmp_path: Path) -> None:
    assert [format_of(Path(f"a{suffix}")) for suffix in (".safetensors", ".pt", ".pth", ".onnx", ".pt2")] == [
        *("safetensors", "state-dict", "state-dict", "onnx", "pt2")
    ]
    assert format_of(Path("a.pth"), "state-dict") == "state-dict"
    with pytest.raises(WrongUsageError, match=r"a\.bin: its ending tells no format; choose one of \.safetensors, \.pt"):
        neural_polarizer.export(tiny_model(), tmp_path / "a.bin", tiny_images(1))
    with pytest.raises(WrongUsageError, match=r"a\.pt: a file of format pt2 must end in \.pt2"):
        neural_polarizer.export(tiny_model(), tmp_path / "a.pt", tiny_images(1), to="pt2")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
@pytest.mark.parametrize("package", ["onnxscript", "onnxruntime"])
def test_a_missing_package_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    needs("onnx")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(BadInputError, match=rf"^{package} is not installed: pip install 'neural-polarizer\[export\]'$"):
        neural_polarizer.export(tiny_model(), tmp_path / "a.onnx", tiny_images(1))
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_no_onnx_file_can_hold_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("onnx")
    monkeypatch.setattr(formats, "_ONNX_LIMIT", 1000)
    with pytest.raises(BadInputError, match=r"[\d,]+ bytes of weights do not fit into one ONNX file; export to pt2"):
        export_model(tiny_model(), tmp_path / "a.onnx", "onnx", tiny_images(1))
    assert list(tmp_path.iterdir()) == []


def test_images_are_needed_and_a_folder_to_write_to(tmp_path: Path) -> None:
    empty = tiny_images(2).select(torch.zeros(2, dtype=torch.bool))
    with pytest.raises(BadInputError, match="needs at least one image"):
        export_model(tiny_model(), tmp_path / "a.pt", "state-dict", empty)
    with pytest.raises(BadInputError, match=r"cannot write .*nowhere/a\.pt: its folder is not there"):
        export_model(tiny_model(), tmp_path / "nowhere" / "a.pt", "state-dict", tiny_images(1))
