"""Weights that an object, a dict of another class or a tensor of another class holds."""

import argparse
import collections
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import Call, pickled, raw_tensor, saved, with_pickle
from torch import Tensor, nn

from neural_polarizer.errors import BadInputError
from neural_polarizer.model_files.checkpoints import Checkpoint, read_checkpoint

WEIGHTS = {"a.weight": torch.arange(3.0), "a.bias": torch.ones(2)}


class Attributes(dict[str, Any]):
    pass


class Ordered(collections.OrderedDict[str, Any]):
    pass


class Trainer:
    def __init__(self) -> None:
        self.net, self.optimizer = nn.Linear(2, 2), {"a.exp_avg": torch.ones(1), "b.exp_avg": torch.ones(1)}


@dataclass
class State:
    step: int
    model: dict[str, Tensor]


class Kind(Tensor):
    pass


Named = collections.namedtuple("Named", "step weights")


def default() -> Any:
    found = collections.defaultdict(list)  # type: ignore[var-annotated]
    found.update({"loss": [1.0], "state_dict": dict(WEIGHTS)})
    return found


def same(found: Checkpoint) -> bool:
    return found.tensors.keys() == WEIGHTS.keys() and all(
        torch.equal(found.tensors[one], WEIGHTS[one]) for one in WEIGHTS
    )


@pytest.mark.parametrize(
    ("top", "entry"),
    [
        (default, "state_dict"),
        (lambda: collections.defaultdict(None, WEIGHTS), ""),
        (lambda: Attributes(net=Attributes(WEIGHTS), epoch=3), "net"),
        (lambda: {"model": Ordered(WEIGHTS)}, "model"),
        (lambda: collections.UserDict(model=WEIGHTS), "data.model"),
        (lambda: argparse.Namespace(model=WEIGHTS, epoch=3), "model"),
        (lambda: [State(3, WEIGHTS)], "0.model"),
        (lambda: Named(3, WEIGHTS), "1"),
        (lambda: {"a": {"b": {"c": {"d": {"e": WEIGHTS}}}}}, "a.b.c.d.e"),
    ],
)
def test_weights_are_found_in_what_holds_them(tmp_path: Path, top: Any, entry: str) -> None:
    found = read_checkpoint(saved(tmp_path / "m.pt", top()))
    assert same(found)
    assert (f"the weights were taken from its entry {entry}" in found.findings) == bool(entry)


def test_a_module_is_found_in_an_object_and_optimizers_are_not(tmp_path: Path) -> None:
    found = read_checkpoint(saved(tmp_path / "m.pt", Trainer()))
    assert found.tensors.keys() == {"weight", "bias"}
    assert "the weights were taken from its entry net" in found.findings
    assert any("Trainer when it is loaded by torch.load" in each for each in found.threats)


def test_an_object_without_weights_is_told(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"no weights found in it: .* object made by argparse\.Namespace"):
        read_checkpoint(saved(tmp_path / "m.pt", argparse.Namespace(epoch=3)))


def test_an_ordered_dict_of_python_2_is_read(tmp_path: Path) -> None:
    pairs = [["a.weight", raw_tensor(0, (2,), (1,))], ["b.weight", raw_tensor(2, (2,), (1,))]]
    path = with_pickle(tmp_path / "m.pt", pickled({"state_dict": Call(collections.OrderedDict, pairs)}))
    assert read_checkpoint(path).tensors.keys() == {"a.weight", "b.weight"}


def marked(value: Tensor) -> Tensor:
    value.said = "so"  # type: ignore[attr-defined]
    return value


class OfTpu:
    def __init__(self, value: Tensor) -> None:
        self.value = value

    def __reduce__(self) -> Any:
        return torch._utils._rebuild_device_tensor_from_cpu_tensor, (self.value, torch.float32, "xla:0", False)


@pytest.mark.parametrize("change", [lambda value: value.as_subclass(Kind), marked, nn.Buffer, OfTpu])
def test_tensors_of_other_classes_hold_their_values(tmp_path: Path, change: Any) -> None:
    found = read_checkpoint(saved(tmp_path / "m.pt", {name: change(one.clone()) for name, one in WEIGHTS.items()}))
    assert same(found)
    assert not any("run" in each for each in found.threats)


def test_a_call_of_anything_else_as_a_tensor_is_told_and_not_made(tmp_path: Path) -> None:
    for inner in (torch.hub.load, torch._utils._rebuild_qtensor):
        bad = Call(torch._tensor._rebuild_from_type_v2, inner, Tensor, (1,), {})
        with pytest.raises(BadInputError, match=r"cannot be read .*dense and with its values; this file tries to run"):
            read_checkpoint(saved(tmp_path / "m.pt", {"a.weight": bad, "b.weight": torch.ones(1)}))
