"""Weights as other tools leave them: which of several sets is meant, what stands beside them, and their names."""

import argparse
import collections
import datetime
import pathlib
import uuid
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import saved
from torch import nn
from torch.nn.utils import prune

from neural_polarizer.errors import BadInputError
from neural_polarizer.model_files.check import check_takes
from neural_polarizer.model_files.checkpoints import read_checkpoint
from neural_polarizer.model_files.checkpoints.naming import fit_names, fits
from neural_polarizer.model_files.foreign import normalisation_inside
from neural_polarizer.model_files.load import load_model
from neural_polarizer.models.build import build
from neural_polarizer.models.definition import definition_of
from neural_polarizer.models.normalize import Normalized
from neural_polarizer.models.preact_resnet import PreActResNet18

ONE = torch.ones(1)
PIXELS = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def network(seed: int = 0) -> PreActResNet18:
    torch.manual_seed(seed)
    return PreActResNet18(4, 2).eval()


def load(path: Path, **options: Any) -> Any:
    return load_model(path, architecture="preactresnet18", profile=options.pop("profile", "none"), **options)


def same(loaded: Any, wanted: nn.Module) -> bool:
    with torch.no_grad():
        return torch.equal(loaded.model(PIXELS), wanted(PIXELS))


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


@pytest.mark.parametrize("form", ["safetensors", "torch", "lightning"])
def test_the_beginning_of_the_names_says_which_network_is_meant(tmp_path: Path, form: str) -> None:
    import safetensors.torch

    student, teacher = network(0), network(1)
    state = {f"student.{name}": value for name, value in student.state_dict().items()}
    state |= {f"teacher.backbone.{name}": value for name, value in teacher.state_dict().items()}
    path = tmp_path / "m"
    if form == "safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state if form == "torch" else {"state_dict": state, "epoch": 3}, path)
    assert same(load(path, weights="teacher"), teacher)
    assert same(load(path, weights="teacher.backbone"), teacher)
    loaded = load(path, weights="student")
    assert same(loaded, student)
    assert "of its weights only those behind student. were taken" in loaded.findings
    with pytest.raises(BadInputError, match="as in --weights student"):
        load(path)
    with pytest.raises(BadInputError, match="nobody"):
        load(path, weights="nobody")


def test_the_model_without_a_prefix_counts_beside_copies_of_it_behind_prefixes(tmp_path: Path) -> None:
    net, average = network(0), network(1)
    state = {**net.state_dict(), **{f"ema.{name}": value for name, value in average.state_dict().items()}}
    path = saved(tmp_path / "m.pt", state)
    loaded = load(path)
    assert same(loaded, net)
    assert any("left out: ema.conv1.weight" in remark for remark in loaded.findings)
    assert same(load(path, weights="ema"), average)


@pytest.mark.parametrize("top", [list, tuple, lambda sets: dict(enumerate(sets)), lambda sets: {"models": list(sets)}])
def test_networks_in_a_list_are_found_by_their_places(tmp_path: Path, top: Any) -> None:
    net, other = network(0), network(1)
    assert same(load(saved(tmp_path / "one.pt", top((net.state_dict(), {"epoch": 3})))), net)
    path = saved(tmp_path / "two.pt", top((net.state_dict(), other.state_dict())))
    with pytest.raises(BadInputError, match=r"several sets of weights \((models\.)?0, (models\.)?1\)") as refused:
        load(path)
    assert same(load(path, weights=str(refused.value).rpartition(" ")[2].replace("0", "1")), other)


def test_weights_that_lie_deeper_than_those_of_something_else_are_found(tmp_path: Path) -> None:
    net = network()
    top = {"criterion": {"weight": ONE}, "model": {"net": net.state_dict(), "step": 3}, "loops": {"a": {"b": ONE}}}
    loaded = load(saved(tmp_path / "m.pt", top))
    assert same(loaded, net)
    assert "the weights were taken from its entry model.net" in loaded.findings


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
    assert "its tensors were named as mmpretrain does; they were renamed" in loaded.findings


def test_the_set_that_fits_is_taken_and_the_others_are_named(tmp_path: Path) -> None:
    net = network()
    sets = {"netC": net.state_dict(), "netG": {"conv.weight": ONE}, "netM": {"conv.weight": ONE}}
    loaded = load(saved(tmp_path / "iad.pth.tar", {**sets, "epoch_current": 9}))
    assert same(loaded, net)
    assert "it holds other weights, too: netG, netM; --weights takes those of another entry" in loaded.findings


def test_an_average_beside_the_model_is_taken_on_demand(tmp_path: Path) -> None:
    net, average = network(0), network(1)
    path = saved(tmp_path / "m.pth", {"state_dict": net.state_dict(), "state_dict_ema": average.state_dict()})
    assert same(load(path), net)
    assert same(load(path, weights="state_dict_ema"), average)
    with pytest.raises(BadInputError, match="has no weights 'ema'; --weights takes one of state_dict, state_dict_ema"):
        load(path, weights="ema")
    twins = saved(tmp_path / "n.pth", {"one": net.state_dict(), "two": average.state_dict()})
    with pytest.raises(BadInputError, match=r"several sets of weights \(one, two\); name the one you mean"):
        load(twins)


@pytest.mark.parametrize("place", [("model_ema", "module"), ("callbacks", "EMA", "weights")])
def test_an_average_that_lies_deeper_is_named_too(tmp_path: Path, place: tuple[str, ...]) -> None:
    net, average = network(0), network(1)
    beside: Any = average.state_dict()
    for key in reversed(place):
        beside = {key: beside, "decay": 0.99}
    path = saved(tmp_path / "m.pth", {"model": net.state_dict(), **beside})
    loaded, name = load(path), ".".join(place)
    assert same(loaded, net)
    assert f"it holds other weights, too: {name}; --weights takes those of another entry" in loaded.findings
    assert same(load(path, weights=name), average)


def test_a_file_of_one_set_needs_no_name_of_it(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.pt", network().state_dict())
    with pytest.raises(BadInputError, match="it has no weights 'ema'; it has one set of weights: leave --weights out"):
        load(path, weights="ema")


def test_a_safetensors_file_has_one_set(tmp_path: Path) -> None:
    import safetensors.torch

    safetensors.torch.save_file({"w": ONE}, tmp_path / "m.safetensors")
    with pytest.raises(BadInputError, match=r"has one set of weights.*begins with x\.; leave --weights out"):
        read_checkpoint(tmp_path / "m.safetensors", weights="x")


def test_numbers_beside_weights_and_counters_are_left_out(tmp_path: Path) -> None:
    net = network()
    state = {**net.state_dict(), "epoch": 3, "arch": "x", "total_ops": ONE, "layer1.0.conv1.total_params": ONE}
    loaded = load(saved(tmp_path / "m.pt", state))
    assert same(loaded, net)
    assert "entries beside the weights that are no tensors were left out: epoch, arch" in loaded.findings
    assert any("total_ops, layer1.0.conv1.total_params" in remark for remark in loaded.findings)


@pytest.mark.parametrize(
    "beside",
    [
        {"config": {"lr": 0.1}},
        {"classes": ["a", "b"]},
        {"args": argparse.Namespace(lr=0.1)},
        {"optimizer": {"state": {}}},
        {"layer1.0._extra_state": b"anything"},
    ],
)
def test_anything_may_stand_beside_weights(tmp_path: Path, beside: dict[str, Any]) -> None:
    net = network()
    loaded = load(saved(tmp_path / "m.pt", {**net.state_dict(), **beside}))
    assert same(loaded, net)
    assert f"entries beside the weights that are no tensors were left out: {next(iter(beside))}" in loaded.findings


def test_numbers_that_are_tensors_are_left_out_too(tmp_path: Path) -> None:
    net = network()
    loaded = load(saved(tmp_path / "m.pt", {**net.state_dict(), "epoch": torch.tensor(3), "best": torch.tensor(0.9)}))
    assert same(loaded, net)
    assert "numbers beside the weights were left out: epoch, best" in loaded.findings
    with pytest.raises(BadInputError, match=r"2 unexpected: table, linear\.scale"):
        load(saved(tmp_path / "n.pt", {**net.state_dict(), "table": ONE, "linear.scale": torch.tensor(2.0)}))


def test_pruning_masks_are_applied(tmp_path: Path) -> None:
    net = network()
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            prune.l1_unstructured(module, "weight", amount=0.5)
    loaded = load(saved(tmp_path / "m.pt", net.state_dict()))
    assert same(loaded, net)
    assert any(remark.startswith("its pruning masks were applied to ") for remark in loaded.findings)


def test_a_quantised_model_is_refused_by_name(tmp_path: Path) -> None:
    state = {**network().state_dict(), "linear._packed_params._packed_params": (ONE, None)}
    with pytest.raises(BadInputError, match=r"quantised model, by its entries linear\._packed_params.*float model"):
        load(saved(tmp_path / "m.pt", state))


@pytest.mark.parametrize("entry", ["linear.SCB", "linear.qweight", "linear.weight_fake_quant.zero_point"])
def test_a_model_for_fewer_bits_is_refused_by_name(tmp_path: Path, entry: str) -> None:
    with pytest.raises(BadInputError, match=f"quantised model, by its entries {entry}.*float model"):
        load(saved(tmp_path / "m.pt", {**network().state_dict(), entry: ONE}))


@pytest.mark.parametrize("wrap", [nn.utils.parametrizations.weight_norm, nn.utils.spectral_norm])
def test_weights_under_a_parametrization_are_refused_with_the_remedy(tmp_path: Path, wrap: Any) -> None:
    net = network()
    wrap(net.linear)
    with pytest.raises(BadInputError, match=r"under weight_norm, spectral_norm .*linear\..*take that off"):
        load(saved(tmp_path / "m.pt", net.state_dict()))


def test_code_that_has_the_parametrization_takes_its_weights(tmp_path: Path) -> None:
    def made() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(192, 4)))

    net = made().eval()
    state = {f"model.{name}": value for name, value in net.state_dict().items()}
    path = saved(tmp_path / "m.pt", state)
    assert same(load_model(path, architecture=definition_of(made), profile="none", num_classes=4), net)


def test_a_normalisation_in_front_is_taken(tmp_path: Path) -> None:
    net = network()
    inside = {"0.mean": torch.tensor([0.5, 0.25, 0.1]).view(1, 3, 1, 1), "0.std": torch.tensor([0.5])}
    state = inside | {f"1.{name}": value for name, value in net.state_dict().items()}
    path = saved(tmp_path / "m.pt", state)
    loaded = load(path, profile=None)
    assert (loaded.record.mean, loaded.record.std) == ((0.5, 0.25, 0.1), (0.5, 0.5, 0.5))
    assert any("the normalisation in the file was taken" in remark for remark in loaded.findings)
    assert not any("left out" in remark for remark in loaded.findings)
    assert load(path, profile="0.1/0.2").record.mean == (0.1, 0.1, 0.1)


@pytest.mark.parametrize("whole", [False, True])
def test_what_normalized_saves_is_read_with_its_statistics(tmp_path: Path, whole: bool) -> None:
    model = Normalized(network(), (0.5, 0.25, 0.1), (0.5, 0.3, 0.2)).eval()
    loaded = load(saved(tmp_path / "m.pt", model if whole else model.state_dict()), profile=None)
    assert same(loaded, model)
    assert (loaded.record.mean, loaded.record.std) == ((0.5, 0.25, 0.1), (0.5, 0.3, 0.2))


@pytest.mark.parametrize("std", [torch.zeros(3), torch.full((3,), float("nan")), torch.ones(4), torch.ones(3).long()])
def test_a_normalisation_that_is_none_is_not_taken(std: torch.Tensor) -> None:
    assert normalisation_inside({"0.mean": torch.zeros(3), "0.std": std}, ()) is None
    assert normalisation_inside({"mean": torch.zeros(3), "std": torch.ones(3)}, ("mean", "std")) is None


@pytest.mark.parametrize(
    "names",
    [
        *[("mean", "std"), ("mu", "sigma"), ("norm._mean", "norm._std"), ("normalizer.new_mean", "normalizer.new_std")],
        *[("MEAN", "STD"), ("mean", "sigma"), ("mu", "std"), ("0.mean", "0.stdev"), ("rgb_mean", "rgb_stddev")],
        *[("pixel_mean", "pixel_std"), ("0.means", "0.stds"), ("pre.mean_tensor", "pre.std_tensor")],
    ],
)
def test_a_normalisation_goes_by_several_names_and_units(names: tuple[str, str]) -> None:
    mean, std = torch.tensor([0.5, 0.25, 0.125]).view(3, 1, 1), torch.tensor([0.5])
    for scale in (1, 255):
        found = normalisation_inside({names[0]: scale * mean, names[1]: scale * std, "w": ONE}, ("w",))
        assert found is not None
        assert (found.mean, found.std, found.names) == ((0.5, 0.25, 0.125), (0.5, 0.5, 0.5), frozenset(names))
    twice = {names[0]: mean, names[1]: std, f"a.{names[0]}": mean, f"a.{names[1]}": std}
    assert normalisation_inside(twice, ()) is not None
    assert normalisation_inside({**twice, f"a.{names[1]}": 2 * std}, ()) is None


@pytest.mark.parametrize("mean", [[0.5, 0.25, 0.125], (0.5, 0.25, 0.125)])
def test_a_normalisation_beside_the_weights_is_proposed(tmp_path: Path, mean: Any) -> None:
    path = saved(tmp_path / "m.pt", {"state_dict": network().state_dict(), "mean": mean, "std": [0.5]})
    remarks = load_model(path, architecture="preactresnet18").findings
    assert any("has another beside its weights: --profile 0.5,0.25,0.125/0.5,0.5,0.5" in each for each in remarks)
    odd = saved(tmp_path / "n.pt", {"state_dict": network().state_dict(), "mean": "0\n", "std": [0.5, "x"]})
    assert not any("beside its weights" in each for each in load_model(odd, architecture="preactresnet18").findings)


def test_plain_data_are_noted_calmly(tmp_path: Path) -> None:
    beside = {"args": argparse.Namespace(lr=0.1), "out": pathlib.PurePosixPath("a"), "at": datetime.date(2020, 1, 1)}
    beside |= {"last": collections.deque((1,)), "rows": range(3), "run": uuid.UUID(int=2**127)}
    findings = read_checkpoint(saved(tmp_path / "m.pt", {"model": {"w": ONE}, **beside})).findings
    assert findings[0].startswith("it also holds plain data of other kinds, which were not read: ")
    assert not any("tries to" in finding for finding in findings)


def test_random_generators_of_large_numbers_may_lie_beside_weights(tmp_path: Path) -> None:
    net = network()
    path = saved(tmp_path / "m.pt", {"model": net.state_dict(), "rng": {"state": 2**127, "inc": -(2**100)}})
    assert same(load(path), net)


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


def test_an_option_that_is_not_needed_is_told_so(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.pt", network().state_dict())
    loaded = load_model(path, architecture="preactresnet18", profile="none", output="0")
    with pytest.raises(BadInputError, match=r"m\.pt: the network gives no output '0'; it gives .*or leave it out$"):
        check_takes(loaded, (16, 16))
    with pytest.raises(BadInputError, match=r"first convolution takes 3 channels, not 1; leave --channels out"):
        load_model(path, architecture="preactresnet18", channels=1)


def test_names_that_are_no_text_are_not_shown_as_ours(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.pt", {name.encode(): ONE for name in ("a", "b")})
    with pytest.raises(BadInputError, match=r"with the entries \(names that are no text\); save"):
        read_checkpoint(path)


def test_arrays_in_place_of_tensors_are_told_as_such(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.pt", {"w": ONE.numpy()})
    with pytest.raises(BadInputError, match=r"with the entries w \(NumPy arrays; torch\.from_numpy makes tensors"):
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
