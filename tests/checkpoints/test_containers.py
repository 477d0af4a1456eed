"""Weights as other tools leave them: which of several sets is meant, and what stands beside them."""

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
from loading_cases import ONE, load, network, same
from torch import nn
from torch.nn.utils import prune

from neural_polarizer.errors import BadInputError
from neural_polarizer.model_files.check import check_takes
from neural_polarizer.model_files.checkpoints import read_checkpoint
from neural_polarizer.model_files.load import load_model
from neural_polarizer.models.definition import definition_of


@pytest.mark.long
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


@pytest.mark.parametrize("form", ["safetensors", "torch", "entry"])
def test_the_beginning_of_the_names_may_have_what_wraps_all_of_them(tmp_path: Path, form: str) -> None:
    import safetensors.torch

    query, key = network(0), network(1)
    state = {f"module.encoder_q.{name}": value for name, value in query.state_dict().items()}
    state |= {f"module.encoder_k.{name}": value for name, value in key.state_dict().items()}
    path = tmp_path / "m"
    if form == "safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state if form == "torch" else {"state_dict": state}, path)
    for entry in ("encoder_q", "module.encoder_q", *(["state_dict.module.encoder_q"] if form == "entry" else [])):
        assert same(load(path, weights=entry), query)


def test_a_state_dict_counts_before_the_module_that_it_is_for(tmp_path: Path) -> None:
    net = network(0)
    loaded = load(saved(tmp_path / "m.pt", {"model": network(1), "state_dict": net.state_dict(), "epoch": 3}))
    assert same(loaded, net)
    assert any("it holds other weights, too: model" in each for each in loaded.findings)
    path = saved(tmp_path / "n.pt", {"model_state": net.state_dict(), "ema_state": network(1).state_dict()})
    assert same(load(path), net)


def test_the_model_without_a_prefix_counts_beside_copies_of_it_behind_prefixes(tmp_path: Path) -> None:
    net, average = network(0), network(1)
    state = {**net.state_dict(), **{f"ema.{name}": value for name, value in average.state_dict().items()}}
    path = saved(tmp_path / "m.pt", state)
    loaded = load(path)
    assert same(loaded, net)
    assert any("left out: ema.conv1.weight" in remark for remark in loaded.findings)
    assert same(load(path, weights="ema"), average)


@pytest.mark.long
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


def test_the_set_that_fits_is_taken_and_the_others_are_named(tmp_path: Path) -> None:
    net = network()
    sets = {"netC": net.state_dict(), "netG": {"conv.weight": ONE}, "netM": {"conv.weight": ONE}}
    loaded = load(saved(tmp_path / "iad.pth.tar", {**sets, "epoch_current": 9}))
    assert same(loaded, net)
    assert "it holds other weights, too: netG, netM; --weights takes those of another entry" in loaded.findings


@pytest.mark.long
@pytest.mark.parametrize("head", [{"weight": "weight", "bias": "bias"}, {"weight": "fc.weight", "bias": "fc.bias"}])
def test_a_body_and_a_head_in_two_entries_are_one_network(tmp_path: Path, head: dict[str, str]) -> None:
    net = network()
    body = {name: value for name, value in net.state_dict().items() if not name.startswith("linear.")}
    parts = {"encoder": body, "head": {head[name]: value for name, value in net.linear.state_dict().items()}}
    for top in (parts, {"epoch": 3, "model": parts, "optimizer": {"state": {0: {"m": ONE}}}}):
        loaded = load(saved(tmp_path / "m.pt", {**top, "decoder": {"weight": ONE}} if top is parts else top))
        assert same(loaded, net)
    assert "the weights were taken from its entries model.encoder and model.head" in loaded.findings
    two = {**parts, "other_head": dict(parts["head"])}
    with pytest.raises(BadInputError, match="several sets of weights"):
        load(saved(tmp_path / "two.pt", two))


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


@pytest.mark.parametrize("shape", [(2,), (1, 7, 3, 3, 3)])
def test_a_pruning_mask_of_another_shape_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """Two thin tensors, one of each, would make a large one."""
    state = network().state_dict()
    name = next(name for name, value in state.items() if value.ndim == 4)
    state[f"{name}_orig"], state[f"{name}_mask"] = state.pop(name), torch.ones(shape)
    with pytest.raises(BadInputError, match="a pruning mask and its weight differ in shape"):
        load(saved(tmp_path / "m.pt", state))


def test_a_quantised_model_is_refused_by_name(tmp_path: Path) -> None:
    state = {**network().state_dict(), "linear._packed_params._packed_params": (ONE, None)}
    with pytest.raises(BadInputError, match=r"quantised model, by its entries linear\._packed_params.*float model"):
        load(saved(tmp_path / "m.pt", state))


@pytest.mark.parametrize("entry", ["linear.SCB", "linear.qweight", "linear.weight_fake_quant.zero_point"])
def test_a_model_for_fewer_bits_is_refused_by_name(tmp_path: Path, entry: str) -> None:
    with pytest.raises(BadInputError, match=f"quantised model, by its entries {entry}.*float model"):
        load(saved(tmp_path / "m.pt", {**network().state_dict(), entry: ONE}))


@pytest.mark.filterwarnings("ignore:.*quant")
def test_a_quantised_module_is_refused_by_name(tmp_path: Path) -> None:
    net = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Flatten(), nn.Linear(3, 3)), {nn.Linear})
    with pytest.raises(BadInputError, match=r"quantised model, by its torch\..*\.Linear 1\..*float model"):
        load(saved(tmp_path / "m.pt", net))


@pytest.mark.parametrize("wrap", [nn.utils.parametrizations.weight_norm, nn.utils.spectral_norm])
def test_weights_under_a_parametrization_are_refused_with_the_remedy(tmp_path: Path, wrap: Any) -> None:
    net = network()
    wrap(net.linear)
    with pytest.raises(BadInputError, match=r"under weight_norm, spectral_norm .*linear\..*take that off"):
        load(saved(tmp_path / "m.pt", net.state_dict()))


@pytest.mark.parametrize("name", ["linear.lora_A", "base_model.model.linear.lora_B.default.weight"])
def test_a_network_with_lora_is_refused_with_the_remedy(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadInputError, match=rf"LoRA .*\({name}\); take that off before saving .*merge_and_unload"):
        load(saved(tmp_path / "m.pt", {**network().state_dict(), name: ONE}))


def test_code_that_has_the_parametrization_takes_its_weights(tmp_path: Path) -> None:
    def made() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(192, 4)))

    net = made().eval()
    state = {f"model.{name}": value for name, value in net.state_dict().items()}
    path = saved(tmp_path / "m.pt", state)
    assert same(load_model(path, architecture=definition_of(made), profile="none", num_classes=4), net)


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


def test_an_option_that_is_not_needed_is_told_so(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.pt", network().state_dict())
    loaded = load_model(path, architecture="preactresnet18", profile="none", output="0")
    with pytest.raises(BadInputError, match=r"m\.pt: the network gives no output '0'; it gives .*or leave it out$"):
        check_takes(loaded, (16, 16))
    with pytest.raises(BadInputError, match=r"first convolution takes 3 channels, not 1; leave --channels out"):
        load_model(path, architecture="preactresnet18", channels=1)


def test_arrays_in_place_of_tensors_are_told_as_such(tmp_path: Path) -> None:
    for top in ({"w": ONE.numpy()}, {"w": {"conv1.weight": ONE.numpy()}}):
        path = saved(tmp_path / "m.pt", top)
        with pytest.raises(BadInputError, match=r"with the entries w \(NumPy arrays; torch\.from_numpy makes tensors"):
            read_checkpoint(path)
