"""Files of honest people are read bit for bit as torch reads them."""

import argparse
import hashlib
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from checkpoint_files import members_of, same, saved, small_net, zipped
from torch import nn

from neural_polarizer.model_files.checkpoints import read_checkpoint

_BASE = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
TENSORS = {
    "float": _BASE,
    "transposed": _BASE.t(),
    "part": _BASE[1:3, ::2],
    "scalar": torch.tensor(2.5),
    "empty": torch.empty(0, 3),
    "nan": torch.tensor([float("nan"), float("-inf")]),
    **{
        str(dtype): torch.tensor([[0, 1], [2, 3]]).to(dtype)
        for dtype in (
            *(torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn),
            *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.bool),
            torch.complex64,
        )
    },
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_kind_of_tensor_is_read_as_torch_reads_it(tmp_path: Path, protocol: int) -> None:
    path = saved(tmp_path / "model.pt", TENSORS, protocol)
    found = read_checkpoint(path)
    assert same(found.tensors, torch.load(path, weights_only=False))
    assert (found.format, found.findings) == ("torch-zip", ())
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_numbers_survive_a_foreign_byte_order(tmp_path: Path) -> None:
    members = members_of({"w": torch.tensor([1.0, -2.5])})
    members["archive/byteorder"] = b"big"
    members["archive/data/0"] = torch.tensor([1.0, -2.5]).numpy().astype(">f4").tobytes()
    found = read_checkpoint(zipped(tmp_path / "m.pt", members))
    assert found.tensors["w"].tolist() == [1.0, -2.5]


@pytest.mark.parametrize(
    ("wrap", "entry"),
    [
        (lambda sd: sd, None),
        (lambda sd: {"state_dict": sd, "epoch": 3}, "state_dict"),
        (
            lambda sd: {"model_state_dict": sd, "optimizer": {"state": {"w": torch.ones(1)}}},
            "model_state_dict",
        ),
        (lambda sd: {"net": {"model": sd}, "acc": torch.tensor(0.9)}, "net.model"),
        (lambda sd: {"model": sd, "trigger": {"mask": torch.ones(2)}}, "model"),
        (lambda sd: {"whatever": sd}, "whatever"),
        (lambda sd: {"optimal_state_dict": sd, "optimizer_state": {"w": torch.ones(1)}}, "optimal_state_dict"),
        (lambda sd: {"model_optimized": sd, "lr_scheduler": {"w": torch.ones(1)}}, "model_optimized"),
        (lambda sd: {"model": sd, "state_dict": sd}, "model"),
    ],
)
def test_the_state_dict_is_found(tmp_path: Path, wrap: Any, entry: str | None) -> None:
    weights = small_net().state_dict()
    found = read_checkpoint(saved(tmp_path / "m.pt", wrap(weights)))
    assert same(found.tensors, weights)
    assert found.findings[:1] == ((f"the weights were taken from its entry {entry}",) if entry else ())
    assert found.threats == ()


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("form", ["torch-zip", "safetensors"])
def test_prefixes_of_wrappers_are_removed(tmp_path: Path, prefix: str, form: str) -> None:
    weights = small_net().state_dict()
    wrapped = {prefix + name: tensor for name, tensor in weights.items()}
    path = tmp_path / "m"
    if form == "safetensors":
        safetensors.torch.save_file(wrapped, path)
    else:
        saved(path, wrapped)
    found = read_checkpoint(path)
    assert same(found.tensors, weights)
    assert (found.format, found.findings) == (form, (f"the prefix {prefix} was removed from all names",))


def test_a_prefix_that_only_some_names_have_stays(tmp_path: Path) -> None:
    weights = {"module.a": torch.ones(1), "b": torch.ones(1)}
    assert same(read_checkpoint(saved(tmp_path / "m.pt", weights)).tensors, weights)


def test_a_backdoorbench_result_is_read(tmp_path: Path) -> None:
    weights = small_net().state_dict()
    result = {
        "model_name": "preactresnet18",
        "num_classes": 10,
        "model": weights,
        "data_path": "../data",
        "img_size": [32, 32, 3],
        "clean_data": "cifar10",
        "bd_train": {"bd_data_container": {"data_dict": {0: {"path": "x.png", "other_info": [1, 2]}}}},
    }
    found = read_checkpoint(saved(tmp_path / "attack_result.pt", result))
    assert same(found.tensors, weights)
    assert found.metadata == {
        "model_name": "preactresnet18",
        "num_classes": "10",
        "data_path": "../data",
        "clean_data": "cifar10",
        "img_size": "32,32,3",
    }


class _Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kept", torch.ones(2))
        self.register_buffer("hidden", torch.ones(2), persistent=False)
        self.register_parameter("none", None)
        self.inner = small_net()
        self.tied = self.inner[3]


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickled_module_gives_its_weights_and_its_name(tmp_path: Path, protocol: int) -> None:
    module = nn.DataParallel(_Odd())
    found = read_checkpoint(saved(tmp_path / "m.pt", {"model": module}, protocol))
    assert same(found.tensors, module.module.state_dict())
    odd = f"{_Odd.__module__}._Odd"
    parallel = "torch.nn.parallel.data_parallel.DataParallel"
    assert found.threats == (
        f"this file tries to build {parallel} when it is loaded by torch.load",
        f"this file tries to build {odd} when it is loaded by torch.load",
    )
    assert found.findings == (
        "the weights were taken from its entry model",
        f"a whole pickled module of class {parallel}; only its weights were read",
        "the prefix module. was removed from all names",
    )


def test_shared_storages_stay_shared(tmp_path: Path) -> None:
    base = torch.arange(6.0)
    found = read_checkpoint(saved(tmp_path / "m.pt", OrderedDict(a=base, b=base, c=base[2:4]))).tensors
    assert found["a"].data_ptr() == found["b"].data_ptr()
    assert found["c"].tolist() == [2.0, 3.0]


def test_safetensors_are_read_whatever_the_extension(tmp_path: Path) -> None:
    weights = {"w": torch.randn(2, 3), "half": torch.ones(3).bfloat16()}
    path = tmp_path / "model.pt"
    safetensors.torch.save_file(weights, path, metadata={"arch": "resnet"})
    found = read_checkpoint(path)
    assert same(found.tensors, weights)
    assert (found.format, found.metadata) == ("safetensors", {"arch": "resnet"})
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_foreign_objects_beside_the_weights_are_remarked_upon(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.pt", {"model": {"w": torch.ones(1)}, "args": argparse.Namespace(lr=0.1)})
    found = read_checkpoint(path)
    assert found.findings[0] == "it also holds plain data of other kinds, which were not read: argparse.Namespace"
