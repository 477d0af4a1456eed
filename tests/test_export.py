"""Exported files, loaded as those would who do not have this package."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

import neural_polarizer
from neural_polarizer import BadInputError, ImageSet, Normalized, artifacts
from neural_polarizer.artifacts import ModelRecord, load_model, save_model
from neural_polarizer.data.images import to_pixels
from neural_polarizer.data.parquet import write_images
from neural_polarizer.errors import EnvironmentFaultError, WrongUsageError
from neural_polarizer.exporting import Exported, export_model, format_of, graphs, weights
from neural_polarizer.exporting.formats import FORMATS, FormatName
from neural_polarizer.models.build import build
from neural_polarizer.models.preact_resnet import PreActResNet18
from neural_polarizer.polarizer import Structure
from neural_polarizer.runs.purify import PURIFIED
from neural_polarizer.sites import features_at
from neural_polarizer.structures import make_polarizer
from neural_polarizer.surgery import PolarizedModule, Site, insert
from run_files import coloured, make_runs, run
from toys import TinyNet, assert_same, made, snapshot, tiny_images, tiny_model

pytest.importorskip("torchvision", reason="the networks are torchvision's and timm's")
timm = pytest.importorskip("timm", reason="the networks are torchvision's and timm's")

Capsys = pytest.CaptureFixture[str]
NAMES: tuple[FormatName, ...] = get_args(FormatName)
SUFFIX: Mapping[str, str] = {name: kind.suffixes[0] for name, kind in FORMATS.items()}
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
IMAGES = coloured(5, 0, (32, 32))


def needs(name: FormatName) -> None:
    if name == "onnx":
        for package in ("onnxscript", "onnxruntime"):
            pytest.importorskip(package, reason="the extra 'export' is not installed")


def pixels_of(images: ImageSet = IMAGES) -> Tensor:
    return to_pixels(images.images)


@torch.no_grad()
def logits(model: Callable[[Tensor], Tensor], images: ImageSet = IMAGES) -> Tensor:
    return model(pixels_of(images))


def record_of(architecture: str, site: str | None, width: int | None = None) -> ModelRecord:
    return ModelRecord(
        architecture=architecture, num_classes=3, width=width, mean=MEAN, std=STD, site=site, classes=IMAGES.classes
    )


def model_of(architecture: str, site: str | None, width: int | None = None, images: ImageSet = IMAGES) -> nn.Module:
    """A network whose weights are torch's own, with a polarizer that matters."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = Normalized(build(architecture, 3, width=width), MEAN, STD).eval()
    if site is None:
        return model
    return with_layer(model, site, "conv-bn", images)


def with_layer(model: nn.Module, site: str, structure: Structure, images: ImageSet = IMAGES) -> nn.Module:
    """``model`` with a layer of that structure, far from the identity."""
    place = Site.parse(site)
    layer = make_polarizer(structure, features_at(model, place, pixels_of(images)), torch.Generator())
    return insert(model, place, made(layer, 3))


def exported(model: nn.Module, folder: Path, name: FormatName, record: ModelRecord | None = None) -> Exported:
    return export_model(model, folder / f"exported{SUFFIX[name]}", name, IMAGES, record)


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


def test_transformers_loads_the_file_in_the_place_of_its_own(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
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
    assert (told["output"], told["architecture"], told["structure"]) == ("logits, N x 4", "TinyNet", "linear-light")
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


STRUCTURES: tuple[Structure, ...] = ("conv-bn-x2", "linear-light")


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


def spoil(monkeypatch: pytest.MonkeyPatch, value: Callable[[Tensor], Tensor]) -> None:
    """Let the writer of weights write a wrong head."""
    right = artifacts.network_tensors

    def wrong(network: nn.Module) -> dict[str, Tensor]:
        tensors = right(network)
        return tensors | {"linear.bias": value(tensors["linear.bias"])}

    for module in (artifacts, weights):
        monkeypatch.setattr(module, "network_tensors", wrong)


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


class InPlace(TinyNet):
    """Changes what it is given."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.mul_(0.5))


def test_a_network_of_ones_own_is_exported_from_memory(tmp_path: Path) -> None:
    images = tiny_images(16)
    fast: dict[str, Any] = {"epochs": 1, "batch_size": 8, "precision": "fp32", "device": "cpu"}
    purified = neural_polarizer.purify(tiny_model(), images, site="after:features", **fast)
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
    assert (told["architecture"], told["num_classes"], told["classes"]) == ("TinyNet", 4, list(images.classes))
    assert (told["mean"], told["std"]) == ([0.5, 0.4, 0.3], [0.2, 0.25, 0.3])
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        assert "neural_polarizer" not in file.metadata()  # no loader could build a TinyNet


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
    monkeypatch.setattr(graphs, "_ONNX_LIMIT", 1000)
    with pytest.raises(BadInputError, match=r"[\d,]+ bytes of weights do not fit into one ONNX file; export to pt2"):
        export_model(tiny_model(), tmp_path / "a.onnx", "onnx", tiny_images(1))
    assert list(tmp_path.iterdir()) == []


def test_images_are_needed_and_a_folder_to_write_to(tmp_path: Path) -> None:
    empty = tiny_images(2).select(torch.zeros(2, dtype=torch.bool))
    with pytest.raises(BadInputError, match="needs at least one image"):
        export_model(tiny_model(), tmp_path / "a.pt", "state-dict", empty)
    with pytest.raises(EnvironmentFaultError, match=r"cannot write .*nowhere/a\.pt"):
        export_model(tiny_model(), tmp_path / "nowhere" / "a.pt", "state-dict", tiny_images(1))


@pytest.fixture(scope="module")
def purified(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_runs(tmp_path_factory) / "purified"


@pytest.fixture
def folder(purified: Path, tmp_path: Path) -> Path:
    """A purification of one's own to write into; its record names clean images elsewhere."""
    for name in (PURIFIED, "run.json"):
        (tmp_path / name).write_bytes((purified / name).read_bytes())
    return tmp_path


@pytest.mark.parametrize("name", ["safetensors", "state-dict", "pt2"])
def test_the_command_writes_beside_the_model_and_compares_on_the_runs_images(
    purified: Path, folder: Path, capsys: Capsys, name: FormatName
) -> None:
    done = run(capsys, "export", folder, "--to", name)
    assert (done.code, done.err) == (0, "")
    clean = purified.parent / "train.parquet"
    printed = done.out.splitlines()
    layers = "layer4.0.conv2 and into layer4.0.shortcut.0 and its constant into layer4.1.bn1, linear"
    assert printed[0].startswith(f"polarizer: folded into {layers}: exact, of the original architecture")
    path = folder / f"exported{SUFFIX[name]}"
    beside = f", {path}.json" if name == "state-dict" else ""
    assert printed[1] == f"written: {path}{beside}"
    assert printed[-1].startswith(f"checked: read back and run on 48 images ({clean}): logits differ by at most ")
    assert path.is_file()
    assert len(printed) == 3  # no word on an obstacle: the original architecture takes the weights
    if name == "state-dict":
        PreActResNet18(3, 2).load_state_dict(torch.load(path, weights_only=True), strict=True)


def test_the_command_compares_on_what_it_is_given_or_on_random_pixels(
    purified: Path, folder: Path, capsys: Capsys
) -> None:
    test = purified.parent / "test.parquet"
    words = ("export", folder, "--to", "state-dict")
    assert f"21 images ({test})" in run(capsys, *words, "--images", test).out
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(record | {"data": {"clean": "gone.parquet"}}))
    shown = run(capsys, *words).out
    assert "16 images (random pixels, without --images; gone.parquet: no such file" in shown
    (folder / "run.json").write_text(json.dumps(record | {"data": {"clean": "hf:someone/something"}}))
    assert "names no clean images on this machine" in run(capsys, *words).out
    (folder / "run.json").write_text(json.dumps(record | {"data": "all"}))
    assert "names no clean images on this machine" in run(capsys, *words).out
    (folder / "run.json").unlink()
    assert "(random pixels, without --images; " in run(capsys, *words).out
    quiet = run(capsys, *words, "--quiet", "--out", folder / "b.pth")
    assert (quiet.code, quiet.out, quiet.err) == (0, "", "")
    assert (folder / "b.pth").is_file()


def test_one_image_and_many_are_few(folder: Path, tmp_path: Path, capsys: Capsys) -> None:
    write_images(tmp_path / "one.parquet", coloured(1, 3))
    write_images(tmp_path / "many.parquet", coloured(70, 3))
    words = ("export", folder, "--to", "safetensors", "--images")
    # One image has one class alone, so its file must name all three.
    assert "run on 1 image (" in run(capsys, *words, tmp_path / "one.parquet").out
    assert "run on 64 images (" in run(capsys, *words, tmp_path / "many.parquet").out


def test_a_foreign_file_needs_to_be_told_what_it_is(tmp_path: Path, capsys: Capsys) -> None:
    state = {
        key.removeprefix("network."): value for key, value in model_of("preactresnet18", None, 2).state_dict().items()
    }
    torch.save({f"module.{key}": value for key, value in state.items()}, tmp_path / "theirs.pt")
    words = ("export", tmp_path / "theirs.pt", "--to", "safetensors", "--arch", "preactresnet18")
    done = run(capsys, *words, "--profile", "cifar10")
    assert (done.code, done.out) == (3, "")
    assert "theirs.pt: does not say for what size of images it is; give --images or --size" in done.err
    done = run(capsys, *words, "--profile", "cifar10", "--size", "24x16")
    assert (done.code, done.err) == (0, "")
    assert not any(line.startswith("polarizer:") for line in done.out.splitlines())
    assert "note: the prefix module. was removed from all names" in done.out
    found = load_model(tmp_path / "exported.safetensors")
    assert found.record.mean == (0.4914, 0.4822, 0.4465)
    assert_same(load_file(tmp_path / "exported.safetensors"), state)


def test_images_of_a_wrong_size_are_refused_in_words(tmp_path: Path, capsys: Capsys) -> None:
    architecture = "timm:vit_tiny_patch16_224?depth=1&embed_dim=24&img_size=32&patch_size=8"
    save_model(tmp_path / "model.safetensors", model_of(architecture, None), record_of(architecture, None))
    done = run(capsys, "export", tmp_path, "--to", "state-dict", "--size", 16)
    assert (done.code, done.out) == (3, "")
    assert f"a {architecture} cannot take images of 16x16 pixels" in done.err


@pytest.mark.parametrize(
    ("words", "code", "reason"),
    [
        (("--to", "safetensors", "--out", PURIFIED), 3, "is the model itself; choose another --out"),
        (("--to", "onnx", "--out", "a.pt"), 2, "a file of format onnx must end in .onnx"),
        (("--to", "state-dict", "--out", "no/a.pt"), 4, "cannot write no/a.pt: No such file or directory"),
        (("--to", "keras"), 2, "'keras' is not one of 'safetensors', 'state-dict', 'onnx', 'pt2'"),
        (("--to", "pt2", "--tolerance", -1), 2, "'--tolerance'"),
        (("--to", "state-dict", "--tolerance", "nan"), 2, "'--tolerance'"),
        (("--to", "state-dict", "--tolerance", 0), 3, "and 0 is allowed"),
        (("--to", "state-dict", "--images", "gone"), 3, "gone: no such file or folder"),
        (("--to", "state-dict", "--images", "wrong.parquet"), 3, "has 4 classes, but 3 are expected"),
    ],
)
def test_bad_input_to_the_command_leaves_nothing_behind(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capsys, words: tuple[object, ...], code: int, reason: str
) -> None:
    write_images(folder / "wrong.parquet", tiny_images(8, size=16))
    before = {path: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.chdir(folder)
    done = run(capsys, "export", folder, *words)
    assert (done.code, done.out) == (code, "")
    assert reason in " ".join(done.err.replace("│", " ").split())
    assert "Traceback" not in done.err
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
