"""Files of BackdoorBench, TrojanZoo and TrojAI, in the layouts that these tools write."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from neural_polarizer.data.parquet import write_images
from neural_polarizer.errors import BadInputError
from neural_polarizer.model_files.checkpoints import read_checkpoint
from neural_polarizer.model_files.checkpoints.naming import fit_names
from neural_polarizer.model_files.foreign import BACKDOORBENCH, suggestion
from neural_polarizer.model_files.load import LoadedModel, load_model
from neural_polarizer.models.build import build, skeleton
from neural_polarizer.models.normalize import PROFILES, Normalized
from run_files import coloured, run, states_equal
from toys import made

PIXELS = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def same_logits(loaded: LoadedModel, network: Callable[[Tensor], Tensor]) -> bool:
    assert isinstance(loaded.model, Normalized)
    return torch.equal(loaded.model.network(PIXELS), network(PIXELS))


def first_version(weights: Mapping[str, Tensor], name: str) -> dict[str, Any]:
    """BackdoorBench in 2022: whole sets of images, as tensors, beside the weights."""
    images, labels = torch.rand(2, 3, 4, 4), torch.tensor([0, 1])
    return {
        "model_name": name,
        "num_classes": 4,
        "model": dict(weights),
        "data_path": "../data/cifar10",
        "img_size": (32, 32, 3),
        "clean_data": "cifar10",
        "bd_train": {"x": images, "y": labels, "original_index": np.array([3, 5])},
        "bd_test": {"x": images, "y": labels},
    }


def second_version(weights: Mapping[str, Tensor], name: str) -> dict[str, Any]:
    """BackdoorBench since 2023: names of image files, and arrays of numpy that say which images are poisoned."""

    def part(count: int) -> dict[str, Any]:
        images = {
            index: {"path": f"./record/x/bd_test_dataset/{index}.png", "other_info": (1, index, 1, 0)}
            for index in range(count)
        }
        return {
            "bd_data_container": {"data_dict": images, "save_folder_path": "./record/x/bd_test_dataset"},
            "getitem_all": True,
            "getitem_all_switch": False,
            "original_index_array": np.arange(count),
            "poison_indicator": np.ones(count),
            "save_folder_path": "./record/x/bd_test_dataset",
        }

    return {**first_version(weights, name), "bd_train": part(50), "bd_test": part(40)}


def defended(weights: Mapping[str, Tensor], name: str) -> dict[str, Any]:
    """A ``defense_result.pt``, trained on several GPUs."""
    state = {f"module.{key}": value for key, value in weights.items()}
    return {"model_name": name, "num_classes": 4, "model": state}


LAYOUTS = {"2022": first_version, "2023": second_version, "defended": defended}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_backdoorbench_result_of_every_layout_loads(tmp_path: Path, layout: str) -> None:
    network, path = made(build("preactresnet18", 4, width=3)), tmp_path / "attack_result.pt"
    torch.save(LAYOUTS[layout](network.state_dict(), "preactresnet18"), path)
    loaded = load_model(path, architecture="preactresnet18", profile="cifar10")
    assert same_logits(loaded, network)
    assert (loaded.record.num_classes, loaded.record.width, loaded.record.mean) == (4, 3, PROFILES["cifar10"][0])
    assert loaded.threats == ()


def test_the_architecture_is_proposed_but_never_taken_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "attack_result.pt"
    torch.save(second_version(build("preactresnet18", 4, width=2).state_dict(), "preactresnet18"), path)
    with pytest.raises(BadInputError) as caught:
        load_model(path)
    assert str(caught.value) == (
        f"{path}: does not say what network it is; name it with --arch (for example preactresnet18); if it is what its "
        "entry model_name says: --arch 'preactresnet18' --profile cifar10"
    )


def test_a_proposal_repeats_no_word_of_the_file() -> None:
    assert suggestion({}) == ""
    assert suggestion({"model_name": "x; rm -rf /", "clean_data": "cifar10"}) == ""
    assert suggestion({"model_name": "vgg19", "clean_data": "$(evil)"}).endswith(": --arch 'vgg19'")
    assert suggestion({"model_name": "vit_b_16", "clean_data": "tiny"}).endswith(
        ": --arch 'torchvision:vit_b_16?resize=224' --profile tiny_imagenet"
    )


def test_the_data_that_the_file_names_is_proposed_as_profile(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    path = tmp_path / "attack_result.pt"
    torch.save(second_version(build("torchvision:squeezenet1_1", 4).state_dict(), "squeezenet1_1"), path)
    loaded = load_model(path, architecture="torchvision:squeezenet1_1")
    assert loaded.record.mean == PROFILES["imagenet"][0]
    assert loaded.findings[-1].endswith("std 0.229 0.224 0.225); the file names its data: --profile cifar10")


def as_backdoorbench_builds_it(name: str) -> nn.Module:
    import torchvision

    if name == "preactresnet18":
        return build("preactresnet18", 7)
    more = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    network: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=7, **more)
    if name.startswith("vit"):
        return nn.Sequential(torchvision.transforms.Resize((224, 224)), network)
    return network


@pytest.mark.long
@pytest.mark.parametrize("name", BACKDOORBENCH)
def test_every_network_of_backdoorbench_has_the_tensors_of_its_files(name: str) -> None:
    """Also with the auxiliary heads that Inception-V3 and GoogLeNet have there."""
    pytest.importorskip("torchvision")
    with torch.device("meta"):
        theirs = as_backdoorbench_builds_it(name).state_dict()
    wanted = skeleton(BACKDOORBENCH[name], 7).state_dict()
    tensors, remarks = fit_names(theirs, wanted)
    assert {key: value.shape for key, value in tensors.items()} == {key: value.shape for key, value in wanted.items()}
    assert bool(remarks) is (name in ("googlenet", "inception_v3"))


def test_auxiliary_heads_are_left_out_and_named(tmp_path: Path) -> None:
    torchvision = pytest.importorskip("torchvision")
    network = made(torchvision.models.googlenet(weights=None, num_classes=4, init_weights=False))
    torch.save(network.state_dict(), tmp_path / "model.pt")
    loaded = load_model(tmp_path / "model.pt", architecture="torchvision:googlenet", profile="none")
    assert same_logits(loaded, network)
    assert loaded.findings[0].startswith(
        "tensors that the network has no use for were left out: aux1.conv.conv.weight, "
    )


def test_a_network_inside_a_sequential_loads_with_and_without_its_position(tmp_path: Path) -> None:
    torchvision = pytest.importorskip("torchvision")
    network = made(torchvision.models.squeezenet1_1(weights=None, num_classes=4))
    whole = nn.Sequential(torchvision.transforms.Resize((48, 48)), network)
    for name, state in (("a.pt", whole.state_dict()), ("b.pt", network.state_dict())):
        torch.save(state, tmp_path / name)
        loaded = load_model(tmp_path / name, architecture="torchvision:squeezenet1_1?resize=48", profile="none")
        assert isinstance(loaded.model, Normalized)
        with torch.no_grad():
            torch.testing.assert_close(loaded.model.network(PIXELS), whole(PIXELS))
        assert states_equal(loaded.model.network.state_dict(), whole.state_dict())


# --- TrojanZoo: ``features`` and ``classifier`` in one module, which normalises by itself ---


def trojanzoo_resnet(network: Any, *, small: bool) -> nn.Module:
    names = ["conv1", "bn1", "relu", *([] if small else ["maxpool"]), "layer1", "layer2", "layer3", "layer4"]
    features = nn.Sequential()
    for name in names:
        features.add_module(name, getattr(network, name))
    module, head = nn.Module(), nn.Sequential()
    head.add_module("fc", network.fc)
    module.features, module.pool, module.classifier = features, network.avgpool, head
    return module


@pytest.mark.long
@pytest.mark.parametrize(("small", "option"), [(False, ""), (True, "?stem=3")])
def test_a_resnet_of_trojanzoo_loads(tmp_path: Path, small: bool, option: str) -> None:
    torchvision = pytest.importorskip("torchvision")
    network = torchvision.models.resnet18(weights=None, num_classes=4)
    if small:  # "resnet18_comp", its network for small images
        network.conv1, network.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    made(network)
    state = trojanzoo_resnet(network, small=small).state_dict()
    assert "features.layer4.1.conv2.weight" in state
    torch.save(state, tmp_path / "resnet18.pth")
    loaded = load_model(tmp_path / "resnet18.pth", architecture=f"torchvision:resnet18{option}", profile="cifar10")
    assert same_logits(loaded, network)
    assert loaded.findings == (
        "the prefix features. was removed from the names that have it",
        "its layer classifier.fc was taken for fc and renamed",
    )
    if small:
        with pytest.raises(BadInputError, match=r"another form of this network: --arch 'torchvision:resnet18\?stem=3'"):
            load_model(tmp_path / "resnet18.pth", architecture="torchvision:resnet18")


def test_a_densenet_of_trojanzoo_is_recognised() -> None:
    pytest.importorskip("torchvision")
    wanted = skeleton("torchvision:densenet121", 7).state_dict()
    theirs = {name.replace("classifier.", "classifier.fc."): value for name, value in wanted.items()}
    assert states_named(fit_names(theirs, wanted)[0]) == states_named(wanted)


def states_named(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in state.items()}


# --- renaming in itself ---


def test_names_change_only_where_all_of_them_then_fit() -> None:
    value = torch.ones(1)
    wanted = ("conv1.weight", "fc.bias", "bn.num_batches_tracked")
    fits = {"features.conv1.weight": value, "classifier.fc.bias": value}
    assert set(fit_names(fits, wanted)[0]) == {"conv1.weight", "fc.bias"}
    for stays in (
        {"conv1.weight": value, "fc.bias": value},
        {"features.conv1.weight": value},
        {**fits, "extra": value},
        {**fits, "conv1.weight": value},  # two tensors would get one name
        {"features.conv1.weight": value, "classifier.fc.weight": value},
    ):
        assert fit_names(stays, wanted) == (stays, ())


def test_what_is_spare_stays_where_the_network_has_a_use_for_it() -> None:
    value = torch.ones(1)
    names = {"aux1.w": value, "block.relative_position_index": value, "w": value}
    assert fit_names(names, tuple(names)) == (names, ())
    kept, remarks = fit_names(names, ("w",))
    assert kept == {"w": value}
    assert remarks == ("tensors that the network has no use for were left out: aux1.w, block.relative_position_index",)
    assert fit_names(names, ("v",)) == (names, ())  # then the error had better show all of them


# --- TrojAI: whole pickled modules ---


@pytest.mark.long
def test_a_pickled_module_of_torchvision_loads(tmp_path: Path) -> None:
    torchvision = pytest.importorskip("torchvision")
    for name in ("squeezenet1_1", "shufflenet_v2_x0_5"):
        network = made(getattr(torchvision.models, name)(weights=None, num_classes=4))
        torch.save(network, tmp_path / "model.pt")
        loaded = load_model(tmp_path / "model.pt", architecture=f"torchvision:{name}", profile="none")
        assert same_logits(loaded, network)
        assert loaded.record.num_classes == 4
        assert any("a whole pickled module of class torchvision.models." in finding for finding in loaded.findings)


def test_a_pickled_vision_transformer_of_timm_loads(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    name = "timm:vit_tiny_patch16_224?depth=1&embed_dim=24&img_size=32&patch_size=8"
    network = made(build(name, 4))
    torch.save(nn.DataParallel(network), tmp_path / "model.pt")
    loaded = load_model(tmp_path / "model.pt", architecture=name, profile="none")
    assert same_logits(loaded, network)
    assert states_equal(read_checkpoint(tmp_path / "model.pt").tensors, network.state_dict())


# --- the command line ---


@pytest.mark.long
def test_an_attack_result_is_purified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torchvision")
    write_images(tmp_path / "train.parquet", coloured(12, 0, (32, 32)))
    path, name = tmp_path / "attack_result.pt", "torchvision:squeezenet1_0"
    torch.save(second_version(made(build(name, 3)).state_dict(), "squeezenet1_0"), path)
    words = (
        "purify",
        path,
        "--clean",
        tmp_path / "train.parquet",
        "--out",
        tmp_path / "out",
        "--method",
        "npd",
        "--epochs",
        1,
        "--force",
    )
    refused = run(capsys, *words)
    assert refused.code == 3
    assert f"--arch '{name}' --profile cifar10" in refused.err
    assert not (tmp_path / "out").exists()
    more = ("--arch", name, "--profile", "0.4/0.25", "--site", "after:features.7", "--device", "cpu")
    done = run(capsys, *words, *more, "--precision", "fp32")
    assert done.code == 0, done.err
    assert load_model(tmp_path / "out").record.std == (0.25, 0.25, 0.25)
    small = run(capsys, *words, *more, "--size", 4)
    assert small.code == 3
    assert "cannot take images of 4x4 pixels" in small.err
