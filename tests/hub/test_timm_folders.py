"""Folders that timm pushes to a hub: ``config.json`` with an ``architecture``, beside the weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_files import PIXELS, changed, inner, logits
from safetensors.torch import load_file, save_file

from neural_polarizer.errors import BadInputError
from neural_polarizer.model_files.load import LoadedModel, load_model
from neural_polarizer.model_files.save import save_model
from neural_polarizer.models.build import build
from run_files import states_equal
from toys import made

NET = "timm:test_resnet"
PRETRAINED = {
    "mean": [0.5, 0.4, 0.3],
    "std": [0.2, 0.2, 0.2],
    "input_size": [3, 16, 16],
    "interpolation": "bicubic",
    "crop_pct": 0.95,
    "num_classes": 3,
}
CONFIG = {"architecture": "test_resnet", "num_classes": 3, "num_features": 384, "global_pool": "avg"}
NAMES = ["ant", "bee", "cat"]

pytestmark = pytest.mark.usefixtures("no_network")


@pytest.fixture(autouse=True)
def _timm() -> None:
    pytest.importorskip("timm")


def pushed(folder: Path, name: str = NET, /, **more: Any) -> Path:
    network = made(build(name, 3))
    folder.mkdir(exist_ok=True)
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**CONFIG, "pretrained_cfg": PRETRAINED, **more}))
    return folder


def states(loaded: LoadedModel) -> dict[str, torch.Tensor]:
    return inner(loaded).state_dict()


def test_the_folder_says_all_that_is_needed(tmp_path: Path) -> None:
    folder = pushed(tmp_path / "hub", label_names=NAMES)
    loaded = load_model(folder)
    record = loaded.record
    assert states_equal(states(loaded), load_file(folder / "model.safetensors"))
    assert (record.architecture, record.num_classes, record.classes) == (NET, 3, tuple(NAMES))
    assert (record.mean, record.std, record.image_size) == ((0.5, 0.4, 0.3), (0.2, 0.2, 0.2), (16, 16))
    assert any("that of its config.json was taken" in remark for remark in loaded.findings)
    save_model(tmp_path / "ours.safetensors", loaded.model, record)
    again = load_model(tmp_path / "ours.safetensors")
    assert again.record == record
    assert torch.equal(logits(again.model), logits(loaded.model))
    assert load_model(folder, profile="0.5/0.5").record.mean == (0.5,) * 3


def test_weights_of_older_folders_and_of_the_wrapper_of_transformers(tmp_path: Path) -> None:
    folder = pushed(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save({f"timm_model.{name}": value for name, value in tensors.items()}, folder / "pytorch_model.bin")
    changed(folder, architectures=["TimmWrapperForImageClassification"], model_type="timm_wrapper", label_names=["a"])
    loaded = load_model(folder)
    assert states_equal(states(loaded), tensors)
    assert loaded.record.classes is None  # one name for three logits is none


def test_statistics_that_stand_beside_the_architecture_as_in_old_folders(tmp_path: Path) -> None:
    folder = pushed(tmp_path)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **PRETRAINED}))
    assert load_model(folder).record.mean == (0.5, 0.4, 0.3)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    loaded = load_model(folder)
    assert (loaded.record.mean, loaded.record.image_size) == ((0.0,) * 3, None)


def test_arguments_of_the_network_become_options(tmp_path: Path) -> None:
    name = "timm:vit_tiny_patch16_224?depth=1&embed_dim=24&img_size=16&patch_size=4"
    arguments = {"img_size": [16, 16], "patch_size": 4, "embed_dim": 24, "depth": 1, "drop_rate": 0.1, "in_chans": 3}
    folder = pushed(tmp_path / "a", name, architecture="vit_tiny_patch16_224", model_args=arguments)
    loaded = load_model(folder)
    assert loaded.record.architecture == name
    assert loaded.model(PIXELS).shape == (3, 3)
    sized = {"mean": [0.5] * 3, "std": [0.2] * 3, "input_size": [3, 224, 224]}
    loaded = load_model(
        pushed(tmp_path / "c", name, architecture="vit_tiny_patch16_224", model_args=arguments, **sized)
    )
    assert loaded.record.image_size == (16, 16)  # what the network was made for
    untold = pushed(tmp_path / "b", name, architecture="vit_tiny_patch16_224")
    with pytest.raises(BadInputError, match=r"another form of this network: --arch 'timm:vit_tiny"):
        load_model(untold)
    assert load_model(untold, architecture=name).record.architecture == name
    with pytest.raises(BadInputError, match="leave --arch out"):
        load_model(untold, architecture=NET)


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"architecture": "hf-hub:x/y"}, "'architecture' is no name of timm's"),
        ({"architecture": "no_such_net"}, "timm has no model 'no_such_net'"),
        ({"model_args": {"act_layer": "x"}}, "'model_args' change 'act_layer'.*--arch FILE.py:NAME"),
        ({"model_args": {"global_pool": "max"}}, "'model_args' change 'global_pool'"),
        ({"model_args": [1]}, "'model_args' are no arguments"),
        ({"pretrained_cfg": {"mean": [0.5], "std": [0.0]}}, "mean, std or input_size cannot be used"),
        ({"pretrained_cfg": {"mean": [0.5] * 3, "std": [1] * 3, "input_size": [3, 9**9, 1]}}, "cannot be used"),
        ({"pretrained_cfg": {"mean": "abc", "std": [1] * 3}}, "cannot be used"),
    ],
)
def test_what_cannot_be_used_is_told(tmp_path: Path, more: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadInputError, match=reason) as caught:
        load_model(pushed(tmp_path, **more))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(("name", "pool"), [("test_resnet", "avg"), ("test_vit", "token"), ("test_convnext", "avg")])
def test_arguments_that_change_nothing_are_no_change(tmp_path: Path, name: str, pool: str) -> None:
    folder = pushed(tmp_path, f"timm:{name}", architecture=name, model_args={"global_pool": pool, "num_classes": 3})
    assert load_model(folder).record.architecture == f"timm:{name}"


def test_a_damaged_configuration_is_called_damaged(tmp_path: Path) -> None:
    (pushed(tmp_path) / "config.json").write_text('{"architecture": ')
    weights = next(path for path in tmp_path.iterdir() if path.name != "config.json")
    with pytest.raises(BadInputError, match=r"config\.json: cannot be read"):
        load_model(weights)


def test_a_folder_without_weights_is_told(tmp_path: Path) -> None:
    folder = pushed(tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(BadInputError, match=r"holds none of model\.safetensors"):
        load_model(folder)
