"""Files in the format of torch.save before PyTorch 1.6: read as torch reads them, or refused; never run."""

import io
import os
import pickle
import random
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import Call, same, small_net
from test_checkpoint_honest_files import TENSORS

from neural_polarizer.errors import BadInputError
from neural_polarizer.model_files.checkpoints import legacy_reader, read_checkpoint

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
MACHINE = {"protocol_version": PROTOCOL, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
FOUR = (4).to_bytes(8, "little") + torch.ones(4).numpy().tobytes()


def legacy(path: Path, value: Any, protocol: int = 2) -> Path:
    torch.save(value, path, pickle_protocol=protocol, _use_new_zipfile_serialization=False)
    return path


class Storage:
    """Pickled as the reference to a storage of four floats that it claims to be."""

    def __init__(self, key: Any = "0", kind: Any = torch.FloatStorage, numel: Any = 4, view: Any = None) -> None:
        self.told = ("storage", kind, key, "cpu", numel, view)


class _Pickler(pickle.Pickler):
    def persistent_id(self, item: Any) -> Any:
        return item.told if isinstance(item, Storage) else None


def pickled(value: Any) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer, 2).dump(value)
    return buffer.getvalue()


def tensor(storage: Storage | None = None, shape: Any = (4,), stride: Any = (1,), offset: int = 0) -> Call:
    return Call(torch._utils._rebuild_tensor_v2, storage or Storage(), offset, shape, stride, False, {})


def made(
    path: Path,
    value: Any,
    *,
    keys: Any = ("0",),
    tail: bytes = FOUR,
    protocol: Any = PROTOCOL,
    machine: Any = MACHINE,
) -> Path:
    """A file with any object, list of keys and storages; as it is, one storage of four ones."""
    parts = (MAGIC, protocol, machine, value, list(keys) if isinstance(keys, tuple) else keys)
    path.write_bytes(b"".join(map(pickled, parts)) + tail)
    return path


def refuse(path: Path, message: str) -> None:
    started = time.process_time()
    with pytest.raises(BadInputError, match=message) as caught:
        read_checkpoint(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).isprintable()
    assert time.process_time() - started < 2


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_kind_of_tensor_is_read_bit_for_bit(tmp_path: Path, protocol: int) -> None:
    path = legacy(tmp_path / "m.pth.tar", {"state_dict": TENSORS, "epoch": 7}, protocol)
    found = read_checkpoint(path)
    assert same(found.tensors, TENSORS)  # torch.load itself fails on the types that came after the format
    assert (found.format, found.findings) == ("torch-legacy", ("the weights were taken from its entry state_dict",))
    assert found.metadata == {"epoch": "7"}


def test_what_lies_beside_the_weights_is_passed_over(tmp_path: Path) -> None:
    net = small_net()
    optimizer = torch.optim.Adam(net.parameters())
    torch.cat([parameter.flatten() for parameter in net.parameters()]).sum().backward()
    optimizer.step()
    tied = {"a": (weight := torch.arange(6.0)), "b": weight[2:], "c": weight.view(2, 3).t()}
    found = read_checkpoint(legacy(tmp_path / "m.pth", {"optimizer": optimizer.state_dict(), "net": tied}))
    assert {name: value.tolist() for name, value in found.tensors.items()} == {
        "a": [0, 1, 2, 3, 4, 5],
        "b": [2, 3, 4, 5],
        "c": [[0, 3], [1, 4], [2, 5]],
    }


def test_a_whole_module_gives_its_weights(tmp_path: Path) -> None:
    net = small_net()
    found = read_checkpoint(legacy(tmp_path / "m.pth", net))
    assert same(found.tensors, net.state_dict())


def test_a_class_with_its_source_and_a_tensor_of_torch_before_0_4(tmp_path: Path) -> None:
    old = Call(torch._utils._rebuild_tensor, Storage(), 0, (2, 2), (2, 1))
    source = Storage()
    source.told = ("module", small_net, "net.py", "import os; os.system('true')")  # type: ignore[assignment]
    found = read_checkpoint(made(tmp_path / "m.pth", {"model": {"w": old}, "class": source}))
    assert found.tensors["w"].tolist() == [[1, 1], [1, 1]]
    assert found.threats[0].startswith("this file tries to import checkpoint_files.small_net ")


def test_code_in_any_of_its_pickles_is_not_run(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    order = Call(os.system, f"touch {canary}")
    found = read_checkpoint(made(tmp_path / "m.pth", {"model": {"w": tensor()}, "x": order}))
    assert found.threats[0] == "this file tries to run posix.system when it is loaded by torch.load"
    refuse(
        made(tmp_path / "a.pth", order, keys=(), tail=b""),
        r"made by posix\.system; .*this file tries to run posix\.system",
    )
    refuse(made(tmp_path / "b.pth", {"w": tensor()}, machine=order), "damaged beginning")
    refuse(made(tmp_path / "c.pth", {"w": tensor()}, protocol=order), "damaged beginning")
    refuse(made(tmp_path / "d.pth", {"w": tensor()}, keys=order), "list of storages is damaged")
    assert not canary.exists()


def test_code_beside_the_object_is_told_too(tmp_path: Path) -> None:
    machine = {**MACHINE, "x": Call(os.system, "true")}
    found = read_checkpoint(made(tmp_path / "m.pth", {"w": tensor()}, machine=machine))
    assert found.threats == ("this file tries to run posix.system when it is loaded by torch.load",)


def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    whole = legacy(tmp_path / "m.pth", {"net": small_net().state_dict(), "epoch": 1}).read_bytes()
    cut = tmp_path / "cut.pth"
    for length in [*range(0, len(whole), 7), len(whole) - 1]:
        cut.write_bytes(whole[:length])
        refuse(cut, "; ")


def test_changed_bytes_are_read_or_refused(tmp_path: Path) -> None:
    whole, chance = legacy(tmp_path / "m.pth", small_net().state_dict()).read_bytes(), random.Random(0)
    path, refusals = tmp_path / "changed.pth", []
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(chance.choice((1, 2, 8))):
            data[chance.randrange(len(data))] = chance.randrange(256)
        path.write_bytes(data)
        try:
            read_checkpoint(path)
        except BadInputError as error:
            refusals.append(str(error))
    assert refusals
    assert all(map(str.isprintable, refusals))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (tensor(shape=(5,)), "claims more elements than its storage has"),
        (tensor(offset=1), "reaches outside its storage"),
        (tensor(shape=(2, 2), stride=(3, 1)), "reaches outside its storage"),
        (tensor(offset=-1), "negative"),
        (tensor(shape=(2**62, 2**62), stride=(0, 0)), "claims more elements"),
        (tensor(Storage(numel=2**60)), "a storage of 16 bytes, which is not what its type and length say"),
        (tensor(Storage(numel=-1)), "a storage of 16 bytes"),
        (tensor(Storage(kind=torch.DoubleStorage)), "is not all there"),  # four doubles are 32 bytes
        (tensor(Storage(kind=os.getcwd)), r"unsupported type posix\.getcwd"),
        (tensor(Storage(key="1")), "holds the storage 0, which no tensor uses"),
        (tensor(Storage(view=("1", 0, 4))), "something that is no tensor storage"),
        (tensor(Storage(key=5)), "something that is no tensor storage"),
    ],
)
def test_tensors_stay_in_their_storage(tmp_path: Path, value: Any, message: str) -> None:
    refuse(made(tmp_path / "m.pth", {"w": value}), message)


def test_a_storage_that_two_references_describe_in_two_ways(tmp_path: Path) -> None:
    both = {"w": tensor(), "v": tensor(Storage(kind=torch.IntStorage))}
    refuse(made(tmp_path / "m.pth", both), "reads a storage as another type")
    longer = {"w": tensor(), "v": tensor(Storage(numel=8), shape=(8,))}
    refuse(made(tmp_path / "n.pth", longer), "a storage of 16 bytes")


@pytest.mark.parametrize(
    ("keys", "tail", "message"),
    [
        (("0",), b"", "truncated file: the storage 0"),
        (("0",), FOUR[:7], "truncated file: the storage 0"),
        (("0",), FOUR[:-1], "truncated file: the storage 0"),
        (("0",), FOUR + b"x", "do not add up to the file"),
        (("0",), (3).to_bytes(8, "little") + FOUR[8:], "do not add up to the file"),
        (("0",), (2**62).to_bytes(8, "little") + FOUR[8:], "truncated file"),
        (("0",), (-1).to_bytes(8, "little", signed=True) + FOUR[8:], "truncated file"),
        (("0", "0"), FOUR + FOUR, "list of storages is damaged"),
        (("0", "1"), FOUR + FOUR, "holds the storage 1, which no tensor uses"),
        ((), b"", "the storage 0 is missing from the file"),
        ((0,), FOUR, "list of storages is damaged"),
        ({"0": 1}, FOUR, "list of storages is damaged"),
    ],
)
def test_storages_that_lie(tmp_path: Path, keys: Any, tail: bytes, message: str) -> None:
    refuse(made(tmp_path / "m.pth", {"w": tensor()}, keys=keys, tail=tail), message)


def test_the_pickles_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(made(tmp_path / "a.pth", {"w": tensor()}, machine={"x": list(range(5000))}), "more than 1,000 opcodes")
    refuse(made(tmp_path / "b.pth", {"w": tensor()}, protocol=1000), "damaged beginning")
    refuse(made(tmp_path / "c.pth", {"w": tensor()}, keys=tuple(map(str, range(200_000)))), "opcodes")
    monkeypatch.setattr(legacy_reader, "MAX_STORAGES", 0)
    refuse(made(tmp_path / "d.pth", {"w": tensor()}, keys=("0",)), "opcodes|more than 0 storages")


def test_several_objects_in_one_file_are_refused(tmp_path: Path) -> None:
    with (tmp_path / "m.pth").open("wb") as file:
        for _ in range(2):
            torch.save({"w": torch.ones(1)}, file, _use_new_zipfile_serialization=False)
    refuse(tmp_path / "m.pth", "do not add up to the file")
