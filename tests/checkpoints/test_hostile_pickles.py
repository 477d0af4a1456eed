"""A pickle may say anything; none of it happens, and what it tried is reported."""

import os
import pickle
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import Call, pickled, saved, small_net, with_pickle

from neural_polarizer.errors import BadInputError
from neural_polarizer.model_files.checkpoints import pickle_walk, read_checkpoint


def _refuse(path: Path, message: str) -> None:
    started = time.process_time()
    with pytest.raises(BadInputError, match=message) as caught:
        read_checkpoint(path)
    assert str(caught.value).isprintable()
    assert time.process_time() - started < 2


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(("function", "name"), [(os.system, "posix.system"), (exec, "exec")])
def test_code_beside_the_weights_is_reported_and_not_run(
    tmp_path: Path, function: Any, name: str, protocol: int
) -> None:
    canary = tmp_path / "canary"
    order = f"open({str(canary)!r}, 'w')" if function is exec else f"touch {canary}"
    path = saved(tmp_path / "m.pt", {"model": {"w": torch.ones(1)}, "x": Call(function, order)}, protocol)
    found = read_checkpoint(path)
    assert found.tensors["w"].tolist() == [1.0]
    assert f"{name} when it is loaded by torch.load" in found.threats[0]
    assert "tries to run" in found.threats[0]
    assert not canary.exists()


def test_code_instead_of_weights_is_refused_and_named(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    path = saved(tmp_path / "m.pt", Call(os.system, f"touch {canary}"))
    _refuse(path, r"made by posix\.system; .*; this file tries to run posix\.system when it is loaded")
    assert not canary.exists()


def test_a_chain_of_getattr_is_reported_link_by_link(tmp_path: Path) -> None:
    chain = b"\x80\x02cbuiltins\ngetattr\ncbuiltins\n__import__\nU\x02os\x85RU\x06system\x86RU\x04true\x85R."
    _refuse(
        with_pickle(tmp_path / "m.pt", chain),
        r"run builtins\.getattr .*run builtins\.__import__ .*run the result of builtins\.getattr ",
    )


def test_an_import_alone_is_reported(tmp_path: Path) -> None:
    path = saved(
        tmp_path / "m.pt",
        {"model": {"w": torch.ones(1)}, "relu": torch.nn.functional.softmax, "x": os.getcwd},
    )
    found = read_checkpoint(path)
    assert found.threats[0] == "this file tries to import posix.getcwd when it is loaded by torch.load"
    assert "softmax" not in "".join(found.threats)


def test_harmful_functions_of_torch_itself_are_reported(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.pt", {"model": {"w": torch.ones(1)}, "x": Call(torch.hub.load, "a/b", "c")})
    assert read_checkpoint(path).threats[0].startswith("this file tries to run torch.hub.load ")


def test_many_and_ugly_names_stay_short_and_printable(tmp_path: Path) -> None:
    names = b"".join(b"cm%d\n\x1b[31mx\n" % number for number in range(30))
    data = b"\x80\x02(" + names + b"t0" + pickled([1])[2:]
    _refuse(with_pickle(tmp_path / "m.pt", data), r"a list; .*import m0\.\\x1b\[31mx when")


@pytest.mark.parametrize(
    ("value", "top"),
    [
        ([1], "a list"),
        (None, "a NoneType"),
        ("text", "a str"),
        (torch.ones(1), "a single tensor"),
        ({}, "an empty dict"),
        ({"epoch": 3, "\x1b": 1}, r"a dict with the entries epoch, \\x1b"),
        ({0: torch.ones(1)}, "a dict with the entries 0"),
        ({"optimizer": {"w": torch.ones(1)}}, "a dict with the entries optimizer"),
    ],
)
def test_what_is_no_model_at_the_top_is_named(tmp_path: Path, value: Any, top: str) -> None:
    _refuse(
        saved(tmp_path / "m.pt", value),
        f"no weights found in it: its top is {top}; save the state_dict alone",
    )


@pytest.mark.parametrize("names", [("state_dict", "ema"), ("model", "net"), ("netC", "netG")])
def test_twins_are_refused_by_name(tmp_path: Path, names: tuple[str, str]) -> None:
    twins = {names[0]: {"w": torch.ones(1)}, names[1]: {"module.w": torch.zeros(1)}}
    _refuse(
        saved(tmp_path / "m.pt", twins),
        rf"several sets of weights \({names[0]}, {names[1]}\); name the one you mean, as in --weights {names[0]}",
    )


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: torch.ones(2).to_sparse(), "_rebuild_sparse_tensor"),
        (lambda: torch.ones(2, device="meta"), "_rebuild_meta_tensor_no_storage"),
        (lambda: torch.ones(2, dtype=torch.complex64).conj(), "_rebuild_tensor_v2"),
        (lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "_rebuild_qtensor"),
    ],
)
def test_unusual_tensors_are_refused_by_name(tmp_path: Path, make: Any, kind: str) -> None:
    path = saved(tmp_path / "m.pt", {"a": torch.ones(1), "b": make()})
    _refuse(path, rf"tensor b is of a kind that cannot be read \(torch\._utils\.{kind}\)")


def _nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {"w": torch.ones(1)}
    for _ in range(depth):
        value = {"model": value}
    return value


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x80\x02" + b"]" * 5000 + b"a" * 4999 + b".", "its top is a list"),
        (b"\x80\x02)" + b"\x85" * 5000 + b".", "its top is a tuple"),
        (b"\x80\x02" + b"(" * 5000 + b"t" * 5000 + b".", "nested more than 500 deep"),
        (
            b"\x80\x02}" + b"U\x05model}" * 5000 + b"s" * 5000 + b".",
            "its top is a dict with the entries model",
        ),
        (b"\x80\x04" + b"]" * 5000 + b"a" * 4999 + b"\x8c\x01x\x93.", "its pickle is damaged"),
        (b"\x80\x02\x8a\x09" + b"\xff" * 8 + b"\x01.", "its top is an object made by builtins.int"),
        (b"\x80\x02\x8b\xff\xff\xff\x7f", "its pickle is damaged"),
        (b"\x80\x02I1\n.", "its pickle uses INT, which torch.save never writes"),
        (b"\x80\x02\xff.", "its pickle is damaged"),
        (b"\x80\x02}", "its pickle is damaged"),
        (b"\x80\x02h\x07.", "its pickle is damaged"),
        (b"\x80\x02R.", "its pickle is damaged"),
        (b"\x80\x02}(K\x01u.", "its pickle is damaged"),
        (b"\x80\x02K\x01Q.", "refers to something that is no tensor storage"),
        (b"", "its pickle is damaged"),
    ],
)
def test_pickles_made_by_hand(tmp_path: Path, data: bytes, message: str) -> None:
    _refuse(with_pickle(tmp_path / "m.pt", data), message)


def test_a_pickle_of_endless_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickle_walk, "MAX_OPCODES", 1000)
    _refuse(with_pickle(tmp_path / "m.pt", b"\x80\x02" + b"N0" * 600 + b"N."), "more than 1,000 opcodes")


def test_a_module_that_holds_itself(tmp_path: Path) -> None:
    # q\x01: remember the module; h\x01: it is its own child
    state = b"}(U\x0b_parameters}U\x08_buffers}U\x08_modules}U\x01xh\x01su"
    module = b"ctorch.nn.modules.container\nSequential\n)\x81q\x01" + state + b"b."
    _refuse(with_pickle(tmp_path / "m.pt", b"\x80\x02" + module), "its module contains itself")


def test_dicts_within_dicts_many_times_over_take_no_time(tmp_path: Path) -> None:
    value: dict[str, Any] = {"x": {}}
    for _ in range(4):
        value = {f"k{number}": value for number in range(500)}  # 500 ** 4 paths, 4 dicts
    _refuse(saved(tmp_path / "m.pt", value), "no weights found in it")


def test_many_entries_beside_the_weights_take_no_time(tmp_path: Path) -> None:
    beside = {f"k{number}": None for number in range(20_000)}
    path = saved(tmp_path / "m.pt", {"a.w": torch.ones(1), "b.w": torch.ones(1), **beside})
    started = time.process_time()
    assert list(read_checkpoint(path).tensors) == ["a.w", "b.w"]
    assert time.process_time() - started < 5


def test_a_long_name_is_not_put_together_again_and_again(tmp_path: Path) -> None:
    long = b"X\x00\x00\x10\x00" + b"a" * (1 << 20) + b"q\x000"  # a megabyte, remembered
    data = b"\x80\x04" + long + b"h\x00h\x00\x93" * 1000 + b"."
    _refuse(with_pickle(tmp_path / "m.pt", data), "its pickle is damaged")


def test_numbers_that_are_keys_do_not_collide() -> None:
    chosen = [1, 2**61, 2.0**61]
    assert len({hash(key) for key in chosen}) == 1
    found = pickle_walk.walk(pickle.dumps([{key: None} for key in chosen], 2)).value
    assert len({hash(key) for each in found for key in each}) == 3
    assert [str(key) for each in found for key in each] == [str(key) for key in chosen]


def test_a_name_that_is_nothing_but_prefixes_is_not_peeled_for_ever(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.pt", {"module." * 9 + "w": torch.ones(1)})
    assert list(read_checkpoint(path).tensors) == ["module.w"]


def test_a_module_with_a_foreign_child_is_refused(tmp_path: Path) -> None:
    net = small_net()
    net._modules["3"] = OrderedDict()  # type: ignore[assignment]
    _refuse(saved(tmp_path / "m.pt", net), r"its module 3\. is not a plain torch module")


def test_the_walker_reads_every_protocol_alike() -> None:
    value = {
        "a": [1, 2.5, (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
        "b": b"x",
        3: {
            True,
        },
        None: "é",
        "big": 2**40,
        "neg": -1,
    }
    expected = {str(key): item for key, item in value.items()} | {"3": [True]}
    for protocol in (2, 4, 5):
        found = {str(key): item for key, item in pickle_walk.walk(pickle.dumps(value, protocol)).value.items()}
        found["b"] = b"x" if protocol == 2 else found["b"]  # protocol 2 writes bytes as a call
        assert found == expected
