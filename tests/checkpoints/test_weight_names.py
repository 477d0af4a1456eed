"""Names as other tools have them, of weights and of networks."""

import re
from pathlib import Path

import pytest
import torch
from checkpoint_files import saved
from loading_cases import ONE, load, network, same
from torch import nn

from neural_polarizer.errors import BadInputError
from neural_polarizer.model_files.checkpoints import read_checkpoint
from neural_polarizer.model_files.checkpoints.naming import fit_names, fits
from neural_polarizer.model_files.load import load_model
from neural_polarizer.models.build import build
from neural_polarizer.models.definition import definition_of


@pytest.mark.parametrize("prefix", ["model.", "network.", "encoder.net.", "module.model.", "1."])
def test_a_prefix_before_all_names_of_the_network_is_removed(tmp_path: Path, prefix: str) -> None:
    net = network()
    state = {prefix + name: value for name, value in net.state_dict().items()}
    loaded = load(saved(tmp_path / "m.ckpt", {"state_dict": state | {"criterion.weight": ONE}, "epoch": 1}))
    assert same(loaded, net)
    assert f"the prefix {prefix} was removed from all names" in loaded.findings
    assert "tensors that the network has no use for were left out: criterion.weight" in loaded.findings


def test_no_prefix_is_removed_where_more_than_the_network_stands_behind_it() -> None:
    names = {"model.a": 1, "model.b": 2, "model.more": 3}
    assert fit_names(names, ("a", "b")) == (names, ())
    assert not fits(names, ("a", "b"))


def test_a_network_behind_two_prefixes_is_not_guessed() -> None:
    names = {"student.a": 1, "teacher.a": 2}
    with pytest.raises(BadInputError, match=r"behind the prefixes student\., teacher\.; .*, as in --weights student"):
        fit_names(names, ("a",))
    assert not fits(names, ("a",))


def test_of_two_prefixes_a_usual_one_counts() -> None:
    found, remarks = fit_names({"model.a": 1, "ema_model.module.a": 2, "n_averaged": 3}, ("a",))
    assert found == {"a": 1}
    assert "left out: ema_model.module.a" in remarks[-1]


@pytest.mark.long
@pytest.mark.parametrize("wrapper", ["_orig_mod.", "module.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module."])
@pytest.mark.parametrize("prefix", ["", "module.", "_fsdp_wrapped_module."])
def test_what_wraps_a_part_of_a_network_goes_from_names(tmp_path: Path, wrapper: str, prefix: str) -> None:
    net = network()
    named = {name.replace("layer4.0.", f"layer4.0.{wrapper}"): value for name, value in net.state_dict().items()}
    loaded = load(saved(tmp_path / "m.pt", {prefix + name: value for name, value in named.items()}))
    assert same(loaded, net)
    assert any(f"{wrapper} was removed from names" in remark for remark in loaded.findings)
    twice = {f"a.{wrapper}w": 1, "a.w": 2}
    assert fit_names(twice, ("a.w",)) == (twice, ())  # two tensors would get one name
    assert fit_names({f"a.{wrapper}w": 1}, (f"a.{wrapper}w",)) == ({f"a.{wrapper}w": 1}, ())


def test_a_network_in_a_dataparallel_of_its_own_takes_names_without_it(tmp_path: Path) -> None:
    net = nn.DataParallel(network()).eval()
    for name, state in (("with", net), ("without", net.module)):
        path = saved(tmp_path / f"{name}.pt", state.state_dict())
        loaded = load_model(path, architecture=definition_of(net), profile="none")
        assert same(loaded, net.module)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("layer2.0.shortcut.0.weight", "layer2.0.downsample.0.weight"),
        ("backbone.conv1.weight", "conv1.weight"),
        ("fc.1.weight", "fc.weight"),
        ("classifier.4.bias", "classifier.bias"),
        ("classifier.1.1.weight", "classifier.1.weight"),
        ("head.dense.weight", "head.weight"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "net.", "module.model."])
def test_names_of_other_tools_are_known(theirs: str, ours: str, prefix: str) -> None:
    found, remarks = fit_names({prefix + theirs: 1, f"{prefix}body.weight": 2}, (ours, "body.weight"))
    assert found == {ours: 1, "body.weight": 2}
    assert "renamed" in remarks[-1]


@pytest.mark.long
@pytest.mark.parametrize("body", ["", "backbone.", "encoder.net.", "trunk._feature_blocks."])
@pytest.mark.parametrize("head", ["fc", "last_linear", "classifier.1", "heads.0.clf.0", "model.head.fc"])
def test_a_head_of_another_name_and_a_body_behind_a_prefix_are_known(tmp_path: Path, body: str, head: str) -> None:
    net = network()
    state = {
        name.replace("linear", head) if "linear" in name else body + name: value
        for name, value in net.state_dict().items()
    }
    loaded = load(saved(tmp_path / "m.pt", {"state_dict": state}))
    assert same(loaded, net)
    assert f"its layer {head} was taken for linear and renamed" in loaded.findings
    assert any(f"the prefix {body} was removed" in each for each in loaded.findings) == bool(body)


@pytest.mark.parametrize(
    "more", [{"other.weight": ONE}, {"head.2.bias": ONE}, {"head.2.weight": ONE, "head.3.bias": ONE}]
)
def test_a_layer_is_renamed_only_where_it_is_the_only_one_left(more: dict[str, torch.Tensor]) -> None:
    for names in ({"body.weight": ONE, "head.1.weight": ONE} | more, {"body.weight": ONE} | more):
        assert fit_names(names, ("body.weight", "fc.weight", "fc.bias")) == (names, ())
    assert fit_names({"proj.weight": ONE}, ("fc.weight",)) == ({"proj.weight": ONE}, ())


@pytest.mark.parametrize("body", ["", "features."])
def test_a_resnet_in_a_sequential_of_its_layers_is_known(body: str) -> None:
    torchvision = pytest.importorskip("torchvision")
    net = torchvision.models.resnet18(num_classes=4)
    layers = nn.Sequential(*[*net.children()][:-1]).state_dict()
    state = {body + name: value for name, value in layers.items()} | {"head.weight": ONE, "head.bias": ONE}
    found, remarks = fit_names(state, net.state_dict())
    assert found.keys() == net.state_dict().keys()
    assert found["layer4.1.bn2.bias"] is layers["7.1.bn2.bias"]
    assert "its tensors were named by their places among the layers of a ResNet; they were renamed" in remarks


def test_the_names_of_an_early_densenet_are_known() -> None:
    pytest.importorskip("torchvision")
    wanted = build("torchvision:densenet121", 4).state_dict()
    theirs = {re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", name): value for name, value in wanted.items()}
    found, remarks = fit_names(theirs, wanted)
    assert found.keys() == wanted.keys()
    assert remarks == ("its tensors were named as torchvision once named a DenseNet; they were renamed",)


def test_a_head_of_two_layers_stays_as_it_is() -> None:
    names = {"body.weight": 1, "fc.0.weight": 2, "fc.2.weight": 3}
    assert fit_names(names, ("body.weight", "fc.weight")) == (names, ())


def test_the_resnet_of_pytorch_cifar_loads(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    torch.manual_seed(0)
    net = build("torchvision:resnet18?stem=3", 4).eval()
    renamed = {
        name.replace("downsample", "shortcut").replace("fc.", "linear."): v for name, v in net.state_dict().items()
    }
    path = saved(tmp_path / "ckpt.pth", {"net": renamed, "acc": 95.1, "epoch": 200})
    loaded = load_model(path, architecture="torchvision:resnet18?stem=3", profile="none")
    assert same(loaded, net)
    assert "its tensors were named as pytorch-cifar names a ResNet; they were renamed" in loaded.findings


@pytest.mark.long
def test_a_file_of_mmpretrain_loads_with_its_normalisation(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    torch.manual_seed(0)
    net = build("torchvision:resnet18", 4).eval()
    state = {f"{'head.' if name[:2] == 'fc' else 'backbone.'}{name}": value for name, value in net.state_dict().items()}
    state |= {"data_preprocessor.mean": torch.tensor([127.5, 51, 102]).view(3, 1, 1)}
    state |= {"data_preprocessor.std": torch.tensor([51, 51, 25.5]).view(3, 1, 1)}
    path = saved(tmp_path / "epoch_3.pth", {"meta": {"epoch": 3}, "state_dict": state})
    loaded = load_model(path, architecture="torchvision:resnet18")
    assert (loaded.record.mean, loaded.record.std) == ((0.5, 0.2, 0.4), (0.2, 0.2, 0.1))
    plain = load_model(path, architecture="torchvision:resnet18", profile="none")
    assert same(plain, net)
    assert any("in the file was not taken, as --profile says another" in remark for remark in plain.findings)
    assert "the prefix backbone. was removed from the names that have it" in loaded.findings
    assert "its layer head.fc was taken for fc and renamed" in loaded.findings


def test_the_library_of_a_bare_name_is_proposed() -> None:
    pytest.importorskip("torchvision")
    with pytest.raises(BadInputError, match=r"did you mean torchvision:resnet18"):
        build("resnet18", 10)
    with pytest.raises(BadInputError, match=r"did you mean preactresnet18\?"):
        build("PreActResNet18", 10)


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("resnet-18", r"did you mean torchvision:resnet18"),
        ("torchvision.models.resnet18", r"did you mean torchvision:resnet18"),
        ("timm/resnet18", r"did you mean torchvision:resnet18 or timm:resnet18"),
        ("torchvision:resnet_18", r"has no image classifier 'resnet_18'.*did you mean torchvision:resnet18"),
        ("PreAct_ResNet18", r"did you mean preactresnet18\?"),
        ("nets.py", r"name the class in your file, as nets\.py:NAME"),
        ("nothing-like-it", r"timm:NAME$"),
        ("", r"timm:NAME$"),
    ],
)
def test_a_name_that_is_written_otherwise_is_proposed(written: str, told: str) -> None:
    pytest.importorskip("torchvision")
    with pytest.raises(BadInputError, match=told):
        build(written, 10)


def test_names_that_are_no_text_are_not_shown_as_ours(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.pt", {name.encode(): ONE for name in ("a", "b")})
    with pytest.raises(BadInputError, match=r"with the entries \(names that are no text\); save"):
        read_checkpoint(path)


def test_what_is_not_the_networks_is_told_by_name(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    network = build("torchvision:resnet18", 4)
    network.fc = nn.Sequential(nn.Linear(512, 8), nn.ReLU(), nn.Linear(8, 4))
    path = saved(tmp_path / "m.pt", network.state_dict())
    with pytest.raises(BadInputError, match=r"its head is not that of .*: it has fc\.0\.weight.*--arch FILE\.py:NAME"):
        load_model(path, architecture="torchvision:resnet18")
    with pytest.raises(BadInputError, match=r"not those of a vgg19: the file lacks features\.0.* and has conv1"):
        load_model(path, architecture="vgg19")
