import json
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from neural_polarizer.data.images import to_pixels
from neural_polarizer.errors import BadInputError
from neural_polarizer.layer.features import Features
from neural_polarizer.layer.polarizer import Polarizer, Structure
from neural_polarizer.layer.sites import features_at
from neural_polarizer.layer.structures import make_polarizer
from neural_polarizer.layer.surgery import Site, insert
from neural_polarizer.model_files.check import check_takes
from neural_polarizer.model_files.load import LoadedModel, load_model, locate
from neural_polarizer.model_files.record import KEY, ModelRecord
from neural_polarizer.model_files.save import save_model, save_polarizer
from neural_polarizer.models.build import build, sizes_in
from neural_polarizer.models.normalize import PROFILES, Normalized
from neural_polarizer.models.preact_resnet import PreActResNet18
from run_files import coloured, states_equal, stirred
from toys import made

PIXELS = to_pixels(coloured(6, 0).images)
RECORD = ModelRecord(
    architecture="preactresnet18",
    num_classes=3,
    width=2,
    mean=PROFILES["cifar10"][0],
    std=PROFILES["cifar10"][1],
    image_size=(16, 16),
    classes=("red", "green", "blue"),
)


def victim(classes: int = 3, width: int = 2) -> Normalized:
    return Normalized(stirred(PreActResNet18(classes, width)), RECORD.mean, RECORD.std).eval()


def polarized(model: nn.Module, text: str) -> tuple[nn.Module, Polarizer]:
    site = Site.parse(text)
    polarizer = Polarizer(features_at(model, site, PIXELS).channels)
    stirred(polarizer, 1)
    return insert(model, site, polarizer), polarizer


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model(PIXELS)


def test_a_plain_model_comes_back_to_the_bit(tmp_path: Path) -> None:
    model = victim()
    save_model(tmp_path / "model.safetensors", model, RECORD)
    loaded = load_model(tmp_path / "model.safetensors")
    assert torch.equal(logits(loaded.model), logits(model))
    assert loaded.record == RECORD
    assert not loaded.model.training
    assert loaded.findings == ()
    assert load_model(tmp_path).sha256 == loaded.sha256
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_the_hash_of_a_model_stays_from_release_to_release(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    saved = []
    for release in ("0.2.0", "9.9"):
        monkeypatch.setattr("neural_polarizer.__version__", release)
        monkeypatch.setattr("torch.__version__", release)
        save_model(tmp_path / f"{release}.safetensors", victim(), RECORD)
        saved.append((tmp_path / f"{release}.safetensors").read_bytes())
    assert saved[0] == saved[1]


@pytest.mark.long
@pytest.mark.parametrize("site", ["before:layer4.1.conv1", "after:layer4", "after:layer2.0.bn1", "before:layer1"])
def test_a_polarized_model_comes_back_to_the_bit(tmp_path: Path, site: str) -> None:
    model = victim()
    purified, polarizer = polarized(model, site)
    record = replace(RECORD, site=site)
    save_model(tmp_path / "purified.safetensors", purified, record)
    save_polarizer(tmp_path / "polarizer.safetensors", polarizer, record)
    loaded = load_model(tmp_path)
    assert torch.equal(logits(loaded.model), logits(purified))
    assert not torch.equal(logits(loaded.model), logits(model))
    assert loaded.record == record
    tensors = load_file(tmp_path / "purified.safetensors")
    backbone = {name: value for name, value in tensors.items() if not name.startswith("polarizer.")}
    assert states_equal(backbone, model.network.state_dict())
    assert states_equal(load_file(tmp_path / "polarizer.safetensors"), polarizer.state_dict())


@pytest.mark.long
@pytest.mark.parametrize("structure", [name for name in get_args(Structure) if name != "by-class"])
def test_a_layer_of_any_structure_comes_back_to_the_bit(tmp_path: Path, structure: Structure) -> None:
    layer, path = (
        make_polarizer(structure, Features((16, 2, 2), "NCHW"), torch.Generator()),
        tmp_path / "purified.safetensors",
    )
    made(layer, 1)
    model = made(Normalized(PreActResNet18(3, 2), RECORD.mean, RECORD.std))
    purified, record = insert(model, Site.parse("after:layer4"), layer), replace(RECORD, site="after:layer4")
    save_model(path, purified, record)
    loaded = load_model(path)
    assert torch.equal(logits(loaded.model), logits(purified))
    assert not torch.allclose(logits(purified), logits(model))
    assert loaded.record == replace(record, structure=structure)
    assert record_of(path).get("structure") == (None if structure == "conv-bn" else structure)


def test_saving_changes_neither_the_model_nor_its_file_between_calls(tmp_path: Path) -> None:
    model = victim()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for name in ("a", "b"):
        save_model(tmp_path / name, model, RECORD)
    assert states_equal(model.state_dict(), before)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_folder_is_its_purified_model_before_its_attacked_one(tmp_path: Path) -> None:
    for name in ("model.safetensors", "purified.safetensors"):
        (tmp_path / name).touch()
    assert locate(tmp_path).name == "purified.safetensors"
    (tmp_path / "purified.safetensors").unlink()
    assert locate(tmp_path).name == "model.safetensors"


@pytest.mark.parametrize(("classes", "width"), [(2, 3), (7, 2)])
def test_width_and_class_count_are_read_from_the_tensors(tmp_path: Path, classes: int, width: int) -> None:
    save_file(victim(classes, width).network.state_dict(), tmp_path / "weights.safetensors")
    record = load_model(tmp_path / "weights.safetensors", architecture="preactresnet18").record
    assert (record.num_classes, record.width) == (classes, width)


FORMS = {
    "plain": lambda state: state,
    "under model, as BackdoorBench": lambda state: {
        "model_name": "preactresnet18",
        "num_classes": 3,
        "model": state,
        "data_path": "../data",
        "bd_train": None,
    },
    "data parallel": lambda state: {f"module.{name}": value for name, value in state.items()},
    "data parallel under state_dict": lambda state: {
        "epoch": 3,
        "state_dict": {f"module.{name}": value for name, value in state.items()},
    },
}


@pytest.mark.long
@pytest.mark.parametrize("form", FORMS)
def test_a_checkpoint_of_torch_loads(tmp_path: Path, form: str) -> None:
    model = victim()
    torch.save(FORMS[form](model.network.state_dict()), tmp_path / "attack_result.pt")
    loaded = load_model(tmp_path / "attack_result.pt", architecture="preactresnet18", profile="cifar10")
    assert torch.equal(logits(loaded.model), logits(model))
    assert (loaded.record.num_classes, loaded.record.width) == (3, 2)
    bare = load_model(tmp_path / "attack_result.pt", architecture="preactresnet18")
    with torch.no_grad():
        assert torch.equal(logits(bare.model), model.network(PIXELS))


def test_a_profile_replaces_the_recorded_normalisation(tmp_path: Path) -> None:
    save_model(tmp_path / "model.safetensors", victim(), RECORD)
    assert load_model(tmp_path, profile="imagenet").record.mean == PROFILES["imagenet"][0]
    for written, meant in (("CIFAR-10", "cifar10"), ("TinyImageNet", "tiny_imagenet"), ("None", "none")):
        with pytest.raises(
            BadInputError, match=rf"unknown profile '{written}': did you mean {meant}\? Else choose one"
        ):
            load_model(tmp_path, profile=written)
    with pytest.raises(BadInputError, match="unknown profile 'mnist': choose one of cifar10, "):
        load_model(tmp_path, profile="mnist")


def ours(path: Path, *, site: str | None = None, drop: str = "", **tensors: Tensor) -> Path:
    """A file of ours; with ``drop``, without the tensors of that prefix; with other ``tensors`` instead."""
    model: nn.Module = victim()
    if site is not None:
        model, _ = polarized(model, "after:layer4")
    save_model(path, model, replace(RECORD, site=site))
    if drop or tensors:
        state = {**load_file(path), **{name.replace("__", "."): value for name, value in tensors.items()}}
        kept = {name: value for name, value in state.items() if not drop or not name.startswith(drop)}
        save_file(kept, path, {KEY: json.dumps(record_of(path))})
    return path


def record_of(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()[KEY])


def with_record(path: Path, text: str) -> Path:
    save_file(load_file(ours(path)), path, {KEY: text})
    return path


def refused(path: Path, reason: str, **options: Any) -> None:
    with pytest.raises(BadInputError, match=reason) as caught:
        load_model(path, **options)
    assert len(str(caught.value)) < 1500
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = ours(tmp_path / "model.safetensors")
    refused(path, r"is a preactresnet18, not a vgg19_bn; leave --arch out", architecture="vgg19_bn")
    refused(path, r"has 3 classes, not 10", num_classes=10)
    save_file(victim().network.state_dict(), path)
    refused(path, r"does not say what network it is; name it with --arch")
    save_file({"fc.weight": torch.ones(3, 2)}, path)
    refused(
        path,
        r"not those of a preactresnet18: the file lacks conv1\.weight.* and has fc\.weight; check --arch",
        architecture="preactresnet18",
    )
    missing = r"do not fit this architecture: \d+ missing: conv1\.weight, .* and 76 more; 1 unexpected: fc\.weight"
    refused(path, missing, architecture="preactresnet18", num_classes=3)


@pytest.mark.long
def test_a_polarizer_without_its_weights_is_refused(tmp_path: Path) -> None:
    site = "after:layer4"
    refused(
        ours(tmp_path / "a", site=site, drop="polarizer."), "says that it has a polarizer at after:layer4, but holds"
    )
    refused(ours(tmp_path / "b", site=site, drop="polarizer.norm.running_var"), "1 missing: norm.running_var")
    refused(
        ours(tmp_path / "c", site=site, polarizer__mix__weight=torch.zeros(2**40, 0, 1, 1)), "holds no weights of one"
    )
    refused(ours(tmp_path / "d", site=site, polarizer__extra=torch.ones(1)), "1 unexpected: extra")


@pytest.mark.parametrize(
    ("structure", "reason"),
    [
        ("osae", r"its record of the model is damaged \(ValueError.*no structure 'osae' of a polarizer is known"),
        (["osad"], r"its record of the model is damaged .*no structure \['osad'\]"),
        ("linear", "says that it has a polarizer at after:layer4, but holds no weights of one"),
        ("osdn", "do not fit this architecture: .* missing: squeeze.weight"),
    ],
)
def test_a_structure_that_the_weights_are_not_of_is_refused(tmp_path: Path, structure: object, reason: str) -> None:
    path = ours(tmp_path / "a", site="after:layer4")
    save_file(load_file(path), path, {KEY: json.dumps({**record_of(path), "structure": structure})})
    refused(path, reason)


@pytest.mark.parametrize(
    ("site", "reason"),
    [
        ("after:layer9", r"site 'after:layer9': no such module; the nearest names are layer4, "),
        ("layer4", "expected before:NAME or after:NAME"),
        ("after:__class__", "no such module"),
    ],
)
def test_an_unknown_site_in_the_record_is_refused(tmp_path: Path, site: str, reason: str) -> None:
    with pytest.raises(BadInputError, match=reason):
        load_model(ours(tmp_path / "a", site=site))


RECORDS = {
    "not JSON": "{",
    "a list": "[]",
    "a number": "7",
    "empty": "{}",
    "nested": "[" * 100_000,
    "no number of classes": json.dumps({"architecture": "preactresnet18", "mean": [0, 0, 0], "std": [1, 1, 1]}),
    "classes without end": json.dumps(
        {"architecture": "preactresnet18", "num_classes": 1e999, "mean": [0, 0, 0], "std": [1, 1, 1]}
    ),
    "one size": json.dumps(
        {
            "architecture": "preactresnet18",
            "num_classes": 3,
            "mean": [0, 0, 0],
            "std": [1, 1, 1],
            "image_size": [3],
        }
    ),
    "no mean": json.dumps({"architecture": "preactresnet18", "num_classes": 3, "mean": [], "std": []}),
    "two channels": json.dumps({"architecture": "preactresnet18", "num_classes": 3, "mean": [0, 0], "std": [1, 1]}),
    "not finite": json.dumps(
        {"architecture": "preactresnet18", "num_classes": 3, "mean": [0, 0, 0], "std": [1, 1, float("nan")]}
    ),
}


_SOUND = {"architecture": "preactresnet18", "num_classes": 3, "mean": [0, 0, 0], "std": [1, 1, 1]}
RECORDS |= {
    "images of a terapixel": json.dumps({**_SOUND, "image_size": [10**6, 10**6]}),
    "images of no pixels": json.dumps({**_SOUND, "image_size": [0, -1]}),
    "an endless name": json.dumps({**_SOUND, "site": "after:" + "x" * 2000}),
    "endless changes": json.dumps({**_SOUND, "changes": [["linear", "bias"]] * 2000}),
    "endless text for a number": json.dumps({**_SOUND, "mean": ["x" * 10**6] * 3}),
}


@pytest.mark.parametrize("name", RECORDS)
def test_a_damaged_record_is_refused(tmp_path: Path, name: str) -> None:
    refused(with_record(tmp_path / "model.safetensors", RECORDS[name]), "its record of the model is damaged")


def test_a_record_cannot_ask_for_a_deviation_of_zero_or_an_unknown_network(tmp_path: Path) -> None:
    record = {"architecture": "preactresnet18", "num_classes": 3, "mean": [0, 0, 0], "std": [1, 0, 1]}
    refused(with_record(tmp_path / "a", json.dumps(record)), "one positive std a channel")
    with pytest.raises(BadInputError, match=r"unknown architecture 'os:system'"):
        load_model(with_record(tmp_path / "a", json.dumps({**record, "architecture": "os:system"})))


@pytest.mark.parametrize(
    ("tensors", "classes"),
    [
        pytest.param({"conv1.weight": torch.zeros(30_000, 1, 1, 1)}, 3, id="width beyond memory"),
        pytest.param({"conv1.weight": torch.zeros(2**50, 0, 1, 1)}, 3, id="width beyond counting"),
        pytest.param(
            {"conv1.weight": torch.zeros(2, 3, 3, 3), "linear.weight": torch.zeros(2**50, 0)}, None, id="classes"
        ),
        pytest.param({"conv1.weight": torch.zeros(2, 3, 3, 3)}, 10**12, id="classes that the user gave"),
    ],
)
def test_a_small_file_cannot_make_a_huge_network(
    tmp_path: Path, tensors: dict[str, Tensor], classes: int | None
) -> None:
    save_file(tensors, tmp_path / "model.safetensors")
    reason = r"the weights do not fit this architecture: they are [\d,]+ numbers, but a preactresnet18"
    refused(tmp_path / "model.safetensors", reason, architecture="preactresnet18", num_classes=classes)


def test_a_name_in_the_record_cannot_steer_the_terminal(tmp_path: Path) -> None:
    path = ours(tmp_path / "a", site="after:layer4", drop="polarizer.")
    save_file(load_file(path), path, {KEY: json.dumps({**record_of(path), "site": "after:\x1b[31m\ud800"})})
    with pytest.raises(BadInputError, match="says that it has a polarizer at after:") as caught:
        load_model(path)
    assert str(caught.value).isprintable()


def test_weights_too_large_to_compute_with_are_told_before_any_work(tmp_path: Path) -> None:
    loaded = load_model(
        ours(tmp_path / "a", linear__bias=torch.full((3,), 3e38), linear__weight=torch.full((3, 16), 3e38))
    )
    with pytest.raises(BadInputError, match="gives NaN or infinite logits for a black or a white image"):
        check_takes(loaded, (16, 16))


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    bad = torch.full((2, 3, 3, 3), float("nan"))
    refused(ours(tmp_path / "a", conv1__weight=bad), "unusable values: conv1.weight holds NaN or infinite values")


def test_a_missing_file_and_a_folder_without_a_model_are_named(tmp_path: Path) -> None:
    refused(tmp_path / "gone.pt", r"gone\.pt: no such file")
    refused(tmp_path, r"the folder holds none of purified\.safetensors, model\.safetensors")
    (tmp_path / "logs").mkdir()
    for name in ("notes.txt", "logs/epoch=3.ckpt"):
        (tmp_path / name).touch()
    refused(tmp_path, r"model\.safetensors; name the checkpoint itself, as \S*logs/epoch=3\.ckpt$")
    refused(tmp_path / ("x" * 300), "cannot be read")


def loaded_as(path: Path, network: nn.Module, architecture: str) -> LoadedModel:
    torch.save(network.state_dict(), path)
    loaded = load_model(path, architecture=architecture)
    assert isinstance(loaded.model, Normalized)
    assert states_equal(loaded.model.network.state_dict(), network.state_dict())
    return loaded


@pytest.mark.long
def test_a_torchvision_checkpoint_loads(tmp_path: Path) -> None:
    torchvision = pytest.importorskip("torchvision")
    network = torchvision.models.resnet18(weights=None, num_classes=4)
    assert loaded_as(tmp_path / "a.pt", network, "torchvision:resnet18").record.num_classes == 4
    with pytest.raises(BadInputError, match="the weights do not fit this architecture"):
        load_model(tmp_path / "a.pt", architecture="torchvision:mobilenet_v3_small", num_classes=4)


def test_vgg19_bn_has_the_names_and_shapes_of_torchvision() -> None:
    torchvision = pytest.importorskip("torchvision")
    with torch.device("meta"):
        got = build("vgg19_bn", 10).state_dict()
        wanted = torchvision.models.vgg19_bn(weights=None, num_classes=10).state_dict()
    assert {name: value.shape for name, value in got.items()} == {name: value.shape for name, value in wanted.items()}
    assert sizes_in("vgg19_bn", wanted) == (10, None)
