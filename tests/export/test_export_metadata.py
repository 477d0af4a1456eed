"""What exported files say about themselves: what they want, give and hold."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from export_cases import SUFFIX, exported, logits, model_of, needs, pixels_of, record_of, with_layer
from safetensors import safe_open
from safetensors.torch import load_file

import neural_polarizer
from neural_polarizer.exporting.export import export_model
from neural_polarizer.exporting.formats import FormatName
from neural_polarizer.layer.polarizer import Structure
from neural_polarizer.models.normalize import Converted
from toys import tiny_images, tiny_model


def values(told: Mapping[str, Any], *names: str) -> list[Any]:
    """The entries, which formats whose metadata are texts hold as JSON."""
    return [json.loads(told[name]) if isinstance(told[name], str) else told[name] for name in names]


def told_by(path: Path, name: FormatName) -> dict[str, Any]:
    """What the file says about itself, in the form in which its format has it."""
    if name == "safetensors":
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata())
    if name == "state-dict":
        return json.loads(path.with_name(f"{path.name}.json").read_text())
    if name == "pt2":
        files = {"model.json": ""}
        torch.export.load(path, extra_files=files)
        return json.loads(files["model.json"])
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return dict(session.get_modelmeta().custom_metadata_map)


@pytest.mark.parametrize("name", ["safetensors", "state-dict"])
def test_weights_say_what_they_want(tmp_path: Path, name: FormatName) -> None:
    record = record_of("preactresnet18", "after:layer4", 4)
    done = exported(model_of("preactresnet18", "after:layer4", 4), tmp_path, name, record)
    told = told_by(done.path, name)
    assert told["input"] == "(x - mean) / std, where x is float32 pixels in [0, 1], N x 3 x 32 x 32"
    assert (told["output"], told["architecture"]) == ("logits, N x 3", "preactresnet18")
    assert told["polarizer"].startswith("folded into linear: exact, of the original architecture")
    assert values(told, "mean", "std") == [[0.5, 0.4, 0.3], [0.2, 0.25, 0.3]]
    assert values(told, "image_size", "classes", "num_classes", "width") == [[32, 32], ["red", "green", "blue"], 3, 4]
    assert values(told, "versions")[0]["torch"] == torch.__version__
    assert not {"site", "changes", "structure"} & told.keys()
    assert done.beside == (tmp_path / "exported.pt.json" if name == "state-dict" else None)
    assert len(list(tmp_path.iterdir())) == (2 if name == "state-dict" else 1)


@pytest.mark.long
@pytest.mark.parametrize("name", ["onnx", "pt2"])
def test_a_graph_says_what_it_wants_takes_any_number_and_keeps_ours_to_itself(tmp_path: Path, name: FormatName) -> None:
    needs(name)
    images = tiny_images(3)
    model = with_layer(tiny_model(), "after:features.0", "linear-light", images)
    done = export_model(model, tmp_path / f"a{SUFFIX[name]}", name, images)
    assert done.layer is not None
    assert done.layer.startswith("not folded, the layer stays in the model: a layer of structure linear-light")
    assert (done.obstacle, done.beside, list(tmp_path.iterdir())) == (None, None, [done.path])
    told = told_by(done.path, name)
    assert told["input"] == "float32 pixels in [0, 1], N x 3 x 8 x 8; normalised inside the model"
    assert (told["output"], told["architecture"], told["structure"]) == (
        "logits, N x 4",
        "toys:TinyNet",
        "linear-light",
    )
    assert told["polarizer"] == done.layer
    assert values(told, "mean", "std") == [[0.5, 0.4, 0.3], [0.2, 0.25, 0.3]]
    assert values(told, "image_size", "classes") == [[8, 8], list(images.classes)]
    many = tiny_images(70, seed=5)
    if name == "pt2":
        with torch.no_grad():
            found = torch.export.load(done.path).module()(pixels_of(many))
    else:
        import onnxruntime

        session = onnxruntime.InferenceSession(done.path, providers=["CPUExecutionProvider"])
        ((given,), (back,)) = session.get_inputs(), session.get_outputs()
        assert (given.name, given.shape, given.type) == ("pixels", ["batch", 3, 8, 8], "tensor(float)")
        assert (back.name, back.shape) == ("logits", ["batch", 4])
        found = torch.from_numpy(session.run(None, {"pixels": pixels_of(many).numpy()})[0])
    torch.testing.assert_close(found, logits(model, many), rtol=0.0, atol=1e-5)
    data = done.path.read_bytes()
    assert str(Path(__file__).parent).encode() not in data
    assert str(Path(torch.__file__).parent).encode() not in data
    assert pixels_of(images)[0, 0, 0].numpy().tobytes() not in data
    for word in (b"class_hierarchy", b"ExportedProgram"):  # the words of the converter, longer than the network
        assert name == "pt2" or word not in data


@pytest.mark.long
def test_a_graph_of_a_grey_network_declares_any_number_of_images(tmp_path: Path) -> None:
    needs("onnx")
    import onnxruntime

    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Flatten(), torch.nn.Linear(72, 4))
    model = Converted(network, (0.5,) * 3, (0.2,) * 3, grey=True).eval()  # its mean of channels, and its buffer "mean"
    done = export_model(model, tmp_path / "a.onnx", "onnx", tiny_images(3))
    (back,) = onnxruntime.InferenceSession(done.path, providers=["CPUExecutionProvider"]).get_outputs()
    assert back.shape == ["batch", 4]


STRUCTURES: tuple[Structure, ...] = ("conv-bn-x2", "linear-light")


@pytest.mark.long
@pytest.mark.parametrize("name", ["safetensors", "state-dict"])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_layer_that_cannot_be_folded_stays_in_the_weights(
    tmp_path: Path, structure: Structure, name: FormatName
) -> None:
    site = "after:layer4"
    model = with_layer(model_of("preactresnet18", None, 2), site, structure)
    done = exported(model, tmp_path, name, record_of("preactresnet18", site, 2))
    assert done.layer is not None
    assert done.layer.startswith("not folded, the layer stays in the model: a layer of structure")
    assert done.deviation < 1e-5
    told = told_by(done.path, name)
    assert (told["site"], told["structure"], told["polarizer"]) == (site, structure, done.layer)
    assert done.obstacle == "the layer is still in the network (its tensors begin with polarizer.)"
    if name == "safetensors":
        assert any(key.startswith("polarizer.") for key in load_file(done.path))
        torch.testing.assert_close(logits(neural_polarizer.load(done.path)), logits(model))
