"""Exported files give the purified model's logits, loaded as those would who do not have this package."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from export_cases import (
    IMAGES,
    MEAN,
    NAMES,
    STD,
    SUFFIX,
    exported,
    logits,
    model_of,
    needs,
    pixels_of,
    record_of,
    with_layer,
)
from safetensors.torch import load_file
from torch import Tensor, nn

import neural_polarizer
from neural_polarizer import Normalized
from neural_polarizer.exporting.export import export_model
from neural_polarizer.exporting.formats import FORMATS, FormatName
from neural_polarizer.layer.polarizer import Structure
from neural_polarizer.layer.surgery import PolarizedModule, Site, insert
from neural_polarizer.model_files.load import load_model
from neural_polarizer.model_files.save import save_model
from neural_polarizer.models.build import build
from toys import TinyNet, assert_same, made, snapshot, tiny_images, tiny_model

pytest.importorskip("torchvision", reason="the networks are torchvision's and timm's")
pytest.importorskip("timm", reason="the networks are torchvision's and timm's")

Case = tuple[str, str | None, int | None]
CASES: dict[str, Case] = {
    "preactresnet18": ("preactresnet18", "after:layer4", 4),
    "torchvision resnet18": ("torchvision:resnet18", "after:layer4", None),
    "torchvision mobilenet": ("torchvision:mobilenet_v3_small", "after:features.11", None),
    "timm resnet": ("timm:test_resnet", "after:layer4", None),
    "timm vit, tokens": ("timm:test_vit?img_size=32", "before:blocks.1.mlp.fc1", None),
    "timm vit, flat features": ("timm:test_vit?img_size=32", "before:head", None),
    "no layer": ("timm:test_efficientnet", None, None),
    "a border term": ("preactresnet18", "before:layer4.1.conv1", 4),
    "a layer of its own": ("timm:test_convnext", "after:stages.2", None),
}
STRICT = ("preactresnet18", *(name for name in CASES if name.startswith("torchvision")), "timm resnet", "no layer")
CHANGED = ("a border term", "a layer of its own")
# Capturing a graph takes seconds; benchmarks/export_round_trips.py does so with more networks.
PAIRS = [(case, name) for case in CASES for name in NAMES if not FORMATS[name].is_graph] + [
    (case, name)
    for case in ("preactresnet18", "timm vit, tokens", "a layer of its own")
    for name in NAMES
    if FORMATS[name].is_graph
]


@pytest.mark.long
@pytest.mark.parametrize(("case", "name"), PAIRS)
def test_a_file_gives_the_purified_models_logits(tmp_path: Path, case: str, name: FormatName) -> None:
    needs(name)
    architecture, site, width = CASES[case]
    model = model_of(architecture, site, width)
    done = exported(model, tmp_path, name, record_of(architecture, site, width))
    assert done.deviation < 1e-5
    assert done.largest_logit == pytest.approx(float(logits(model).abs().max()))
    assert done.n_images == 5
    assert (done.layer is None) == (site is None)
    if name in ("onnx", "pt2"):
        assert done.obstacle is None
        return
    if done.obstacle is not None:
        assert case not in STRICT
        return
    assert case not in CHANGED
    network = build(architecture, 3, width=width)
    tensors = load_file(done.path) if name == "safetensors" else torch.load(done.path, weights_only=True)
    network.load_state_dict(tensors, strict=True)
    torch.testing.assert_close(logits(Normalized(network, MEAN, STD).eval()), logits(model), rtol=0.0, atol=1e-5)
    if site is not None:
        without = model_of(architecture, None, width)
        assert float((logits(without) - logits(model)).abs().max()) > 1e-3, "the layer would not be missed"


def test_a_state_dict_knows_the_versions_of_its_modules(tmp_path: Path) -> None:
    """MNASNet refuses one that does not."""
    model = model_of("torchvision:mnasnet0_5", None)
    done = exported(model, tmp_path, "state-dict", record_of("torchvision:mnasnet0_5", None))
    network = build("torchvision:mnasnet0_5", 3)
    network.load_state_dict(torch.load(done.path, weights_only=True), strict=True)
    torch.testing.assert_close(logits(Normalized(network, MEAN, STD).eval()), logits(model), rtol=0.0, atol=1e-5)


FRESH = """
import json, sys
import numpy, onnxruntime, timm, torch, torchvision
from safetensors import safe_open

folder = sys.argv[1]
pixels = torch.from_numpy(numpy.load(f"{folder}/pixels.npy"))
torch.set_num_threads(1)


def normalised(told):
    mean, std = (torch.tensor(told[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    return (pixels - mean) / std


with torch.no_grad():
    resnet = torchvision.models.resnet18(num_classes=3)
    resnet.load_state_dict(torch.load(f"{folder}/resnet.pt", weights_only=True), strict=True)
    with open(f"{folder}/resnet.pt.json") as file:
        of_torchvision = resnet.eval()(normalised(json.load(file)))

    with safe_open(f"{folder}/timm.safetensors", framework="pt") as file:
        told = {name: json.loads(file.metadata()[name]) for name in ("mean", "std")}
    network = timm.create_model("test_resnet", num_classes=3, checkpoint_path=f"{folder}/timm.safetensors")
    of_timm = network.eval()(normalised(told))

    session = onnxruntime.InferenceSession(f"{folder}/timm.onnx", providers=["CPUExecutionProvider"])
    of_onnx = session.run(["logits"], {"pixels": pixels.numpy()})[0]

    files = {"model.json": ""}
    of_pt2 = torch.export.load(f"{folder}/timm.pt2", extra_files=files).module()(pixels)

assert not [name for name in sys.modules if name.startswith("neural_polarizer")]
numpy.savez(f"{folder}/logits.npz", torchvision=of_torchvision, timm=of_timm, onnx=of_onnx, pt2=of_pt2)
"""


@pytest.mark.process
def test_files_load_in_a_fresh_process_without_this_package(tmp_path: Path) -> None:
    needs("onnx")
    resnet, small = (CASES[name] for name in ("torchvision resnet18", "timm resnet"))
    models = {resnet: model_of(*resnet), small: model_of(*small)}
    wanted: tuple[tuple[Case, str, FormatName], ...] = (
        (resnet, "resnet", "state-dict"),
        (small, "timm", "safetensors"),
        (small, "timm", "onnx"),
        (small, "timm", "pt2"),
    )
    for case, stem, name in wanted:
        path = tmp_path / f"{stem}{SUFFIX[name]}"
        export_model(models[case], path, name, IMAGES, record_of(case[0], case[1]))
    np.save(tmp_path / "pixels.npy", pixels_of().numpy())
    done = subprocess.run(
        [sys.executable, "-I", "-W", "ignore", "-c", FRESH, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = np.load(tmp_path / "logits.npz")
    for key in found:
        expected = logits(models[resnet if key == "torchvision" else small]).numpy()
        assert float(np.abs(found[key] - expected).max()) < 1e-5, key


@pytest.mark.long
def test_transformers_loads_the_file_in_the_place_of_its_own(tmp_path: Path, transformers: Any) -> None:
    transformers.utils.logging.disable_progress_bar()
    size = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    config = transformers.ViTConfig(**size, image_size=32, patch_size=8, num_labels=3)
    hub = tmp_path / "hub"
    original: Any = transformers.ViTForImageClassification(config)
    original.save_pretrained(hub)
    loaded = load_model(hub, profile="none")
    made(loaded.model, 7)  # as a defense without a layer may do
    done = export_model(loaded.model, hub / "model.safetensors", "safetensors", IMAGES, loaded.record)
    assert done.obstacle is None
    theirs: Any
    theirs, told = transformers.ViTForImageClassification.from_pretrained(hub, output_loading_info=True)
    assert not any(told[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        found = theirs.eval()(pixel_values=pixels_of()).logits
    torch.testing.assert_close(found, logits(loaded.model), rtol=0.0, atol=1e-5)


@pytest.mark.long
def test_this_package_loads_an_exported_safetensors_file_again(tmp_path: Path) -> None:
    for site in ("after:layer4", "before:layer4.1.conv1", "before:layer4"):
        model, record = model_of("preactresnet18", site, 4), record_of("preactresnet18", site, 4)
        done = exported(model, tmp_path, "safetensors", record)
        loaded = load_model(done.path)
        assert loaded.record.site is None
        assert not any(isinstance(module, PolarizedModule) for module in loaded.model.modules())
        torch.testing.assert_close(logits(loaded.model), logits(model), rtol=0.0, atol=1e-5)
        assert (loaded.record.changes == ()) == (done.obstacle is None)


def test_a_changed_layer_is_named(tmp_path: Path) -> None:
    site = "before:layer4.1.conv1"
    done = exported(model_of("preactresnet18", site, 4), tmp_path, "state-dict", record_of("preactresnet18", site, 4))
    assert done.obstacle == "folding has changed the form of layer4.1.conv1 (border)"


def test_what_has_been_folded_already_is_left_so(tmp_path: Path) -> None:
    site, model = "before:layer4", model_of("preactresnet18", None, 4)
    kept = insert(model, Site.parse(site), made(nn.Conv2d(16, 16, 1)))
    save_model(tmp_path / "folded.safetensors", kept, record_of("preactresnet18", site, 4))
    done = neural_polarizer.export(tmp_path / "folded.safetensors", tmp_path / "a.safetensors", IMAGES)
    assert done.layer == "folded already, into one layer at its own site, which stays"
    assert done.obstacle is not None
    torch.testing.assert_close(logits(neural_polarizer.load(tmp_path / "a.safetensors")), logits(kept))


class InPlace(TinyNet):
    """Changes what it is given."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.mul_(0.5))


def test_a_network_of_ones_own_is_exported_from_memory(tmp_path: Path) -> None:
    images = tiny_images(16)
    fast: dict[str, Any] = {"epochs": 1, "batch_size": 8, "precision": "fp32", "device": "cpu", "force": True}
    purified = neural_polarizer.purify(tiny_model(), images, "npd", site="after:features", **fast)
    before = snapshot(purified.model)
    for suffix in (".pt", ".safetensors", ".pt2"):
        done = neural_polarizer.export(purified, tmp_path / f"a{suffix}", images)
        assert done.deviation < 1e-5
        assert done.obstacle is None
        assert done.layer is not None
        assert done.layer.startswith("folded into head")
    assert_same(snapshot(purified.model)[0], before[0])
    assert snapshot(purified.model)[1:] == before[1:]
    network = TinyNet()
    network.load_state_dict(torch.load(tmp_path / "a.pt", weights_only=True))
    expected = logits(purified.model, images)
    torch.testing.assert_close(logits(Normalized(network, MEAN, STD).eval(), images), expected, rtol=0.0, atol=1e-5)
    told = json.loads((tmp_path / "a.pt.json").read_text())
    assert (told["architecture"], told["num_classes"], told["classes"]) == ("toys:TinyNet", 4, list(images.classes))
    assert (told["mean"], told["std"]) == ([0.5, 0.4, 0.3], [0.2, 0.25, 0.3])
    loaded = neural_polarizer.load(tmp_path / "a.safetensors", arch=TinyNet)
    torch.testing.assert_close(logits(loaded, images), expected, rtol=0.0, atol=1e-5)


class Local(TinyNet):
    """Has a name of its own that files of ours could have used."""

    def __init__(self) -> None:
        super().__init__()
        self.origin = nn.Buffer(torch.ones(1))

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images * self.origin)


def test_what_a_network_calls_its_own_is_left_to_it(tmp_path: Path) -> None:
    images = tiny_images(4)
    model = with_layer(made(Local()), "after:features.0", "conv-bn", images)
    folded = neural_polarizer.fold(model, images).model
    torch.testing.assert_close(logits(folded, images), logits(model, images), rtol=0.0, atol=1e-5)
    neural_polarizer.export(made(Local()), tmp_path / "a.pt", images)
    assert json.loads((tmp_path / "a.pt.json").read_text())["classes"] == list(images.classes)


@pytest.mark.parametrize("from_memory", [True, False])
@pytest.mark.parametrize(
    ("site", "structure"), [("before:features.3", "conv-bn"), ("after:features.0", "linear-light")]
)
def test_weights_that_the_architecture_does_not_take_are_loaded_by_their_record(
    tmp_path: Path, site: str, structure: Structure, from_memory: bool
) -> None:
    images = tiny_images(4)
    model = with_layer(tiny_model(), site, structure, images)
    if not from_memory:
        neural_polarizer.save(model, tmp_path / "saved.safetensors")
        model = neural_polarizer.load(tmp_path / "saved.safetensors", arch=TinyNet)
    done = neural_polarizer.export(model, tmp_path / "a.safetensors", images)
    assert done.obstacle is not None
    loaded = neural_polarizer.load(done.path, arch=TinyNet)
    torch.testing.assert_close(logits(loaded, images), logits(model, images), rtol=0.0, atol=1e-5)
    neural_polarizer.export(model, tmp_path / "a.pt", images)
    with pytest.raises(neural_polarizer.BadInputError, match=r"a\.pt: holds .*; export the model to safetensors"):
        neural_polarizer.load(tmp_path / "a.pt", arch=TinyNet)


def test_odd_models_from_memory(tmp_path: Path) -> None:
    images = tiny_images(4)
    double = tiny_model().double().train()
    assert neural_polarizer.export(double, tmp_path / "a.pt2", images).deviation < 1e-5
    assert double.training
    assert neural_polarizer.export(made(InPlace()), tmp_path / "b.pt2", images).deviation < 1e-5
    layered = with_layer(made(TinyNet()), "after:features.0", "conv", images)
    done = neural_polarizer.export(layered, tmp_path / "c.safetensors", images)
    assert done.obstacle is not None
    assert {"features.0.weight", "polarizer.mix.weight"} < load_file(tmp_path / "c.safetensors").keys()
