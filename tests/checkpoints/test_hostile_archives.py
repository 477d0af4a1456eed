"""Zip and safetensors containers that lie, and tensors that reach beyond them."""

import json
import struct
import time
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from checkpoint_files import members_of, pickled, raw_tensor, saved, with_pickle, zipped

from neural_polarizer.errors import BadInputError
from neural_polarizer.model_files.checkpoints import read_checkpoint, tensors

WEIGHTS = {"w": torch.arange(64.0), "v": torch.ones(3)}


def _refuse(path: Path, message: str) -> None:
    started = time.process_time()
    with pytest.raises(BadInputError, match=message) as caught:
        read_checkpoint(path)
    assert str(caught.value).isprintable()
    assert time.process_time() - started < 2


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (raw_tensor(0, (40_000_000_000,), (0,)), "claims more elements than its storage has"),
        (raw_tensor(0, (2, 4), (0, 1)), "claims more elements than its storage has"),
        (raw_tensor(0, (2**62,), (1,)), "claims more elements"),
        (
            raw_tensor(0, (2**62,), (1,), 2**62),
            "a storage of 16 bytes, which is not what its type and length say",
        ),
        (raw_tensor(0, (2,), (1,), 2), "a storage of 16 bytes"),
        (raw_tensor(1, (4,), (1,)), "reaches outside its storage"),
        (raw_tensor(0, (2, 2), (3, 1)), "reaches outside its storage"),
        (raw_tensor(5, (0,), (1,)), "reaches outside its storage"),
        (raw_tensor(-1, (2,), (1,)), "has a negative offset, size or stride"),
        (raw_tensor(3, (2,), (-1,)), "has a negative offset"),
        (raw_tensor(0, (-1,), (1,)), "has a negative offset"),
        (raw_tensor(0, (2,), (1, 1)), "a shape and strides that do not fit"),
        (raw_tensor(0, (1,) * 65, (1,) * 65), "a shape and strides that do not fit"),
        (raw_tensor(0, (True,), (1,)), "of a kind that cannot be read"),
        (raw_tensor(0, (0, 2**63), (1, 1)), "a size or stride beyond counting"),
        (raw_tensor(0, (1,), (2**63,)), "a size or stride beyond counting"),
    ],
)
def test_a_tensor_stays_inside_its_storage(tmp_path: Path, record: Any, message: str) -> None:
    _refuse(with_pickle(tmp_path / "m.pt", pickled({"w\n": record})), rf"tensor w\\n .*{message}")


def test_the_same_record_is_read_when_it_is_honest(tmp_path: Path) -> None:
    path = with_pickle(tmp_path / "m.pt", pickled({"w": raw_tensor(1, (3,), (1,))}))
    assert read_checkpoint(path).tensors["w"].tolist() == [1.0, 1.0, 1.0]


def test_a_thousand_copies_of_one_storage_are_refused(tmp_path: Path) -> None:
    views = {f"w{number}": raw_tensor(0, (2, 2), (1, 2)) for number in range(1000)}
    _refuse(with_pickle(tmp_path / "m.pt", pickled(views)), "claim many times the bytes that are stored")


def test_a_storage_of_two_types_is_refused(tmp_path: Path) -> None:
    views = {"w": raw_tensor(0, (1,), (1,)), "v": raw_tensor(0, (1,), (1,), 2, torch.DoubleStorage)}
    _refuse(with_pickle(tmp_path / "m.pt", pickled(views)), "tensor v reads a storage as another type")


def test_an_absent_storage_and_an_unknown_type(tmp_path: Path) -> None:
    members = members_of(WEIGHTS)
    pickle = members["archive/data.pkl"]
    members["archive/data.pkl"] = pickle.replace(b"FloatStorage", b"QInt8Storage")
    _refuse(zipped(tmp_path / "m.pt", members), r"tensor w has the unsupported type torch\.QInt8Storage")
    members["archive/data.pkl"] = pickle
    del members["archive/data/1"]
    _refuse(zipped(tmp_path / "m.pt", members), "the storage 1 is missing from the zip file")


def test_a_flipped_byte_is_found(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.pt", WEIGHTS)
    data = bytearray(path.read_bytes())
    data[data.index(WEIGHTS["w"].numpy().tobytes()) + 5] ^= 1
    path.write_bytes(data)
    _refuse(path, r"data/0 inside it is damaged \(its CRC does not fit\)")


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("form", ["zip", "safetensors"])
def test_a_truncated_file_is_refused(tmp_path: Path, form: str, keep: float) -> None:
    path = tmp_path / "m.pt"
    if form == "zip":
        saved(path, WEIGHTS)
    else:
        safetensors.torch.save_file(WEIGHTS, path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    _refuse(
        path,
        "a truncated zip" if form == "zip" else "a truncated safetensors file|a damaged safetensors file",
    )


@pytest.mark.long
def test_a_deflated_bomb_is_not_inflated(tmp_path: Path) -> None:
    members = {**members_of(WEIGHTS), "archive/data/9": bytes(400 << 20)}
    path = zipped(tmp_path / "m.pt", members, zipfile.ZIP_DEFLATED)
    del members
    assert path.stat().st_size < 2 << 20
    tracemalloc.start()
    _refuse(path, r"the zip member archive/data\.pkl is compressed, which torch.save never does")
    assert tracemalloc.get_traced_memory()[1] < 10 << 20
    tracemalloc.stop()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_duplicate_members_are_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path / "m.pt", members_of(WEIGHTS))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/data/0", bytes(256))
    _refuse(path, "the zip file holds archive/data/0 twice")


@pytest.mark.parametrize("name", ["../x", "/etc/x", "archive/../../x", "a\\b"])
def test_unsafe_member_names_are_refused(tmp_path: Path, name: str) -> None:
    _refuse(zipped(tmp_path / "m.pt", {**members_of(WEIGHTS), name: b""}), "holds the unsafe member name")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"other/data.pkl": b""}, "whose data.pkl is not the one"),
        ({"archive/version": b"99\n"}, "without a known torch format version"),
        ({"archive/version": "²".encode()}, "without a known torch format version"),
        ({"archive/byteorder": b"middle"}, "byteorder is neither little nor big"),
        ({"archive/data.pkl": bytes((32 << 20) + 1)}, "data.pkl inside it is larger than"),
    ],
)
def test_members_that_torch_does_not_write(tmp_path: Path, change: dict[str, bytes], message: str) -> None:
    _refuse(zipped(tmp_path / "m.pt", {**members_of(WEIGHTS), **change}), message)


def _patched(path: Path, find: bytes, offset: int, value: bytes) -> Path:
    """Overwrite ``value`` at ``offset`` from the last ``find``, which is in the zip directory."""
    data = bytearray(path.read_bytes())
    at = data.rindex(find) + offset
    data[at : at + len(value)] = value
    path.write_bytes(data)
    return path


def test_zip_directories_that_lie_are_refused(tmp_path: Path) -> None:
    def fresh() -> Path:
        return zipped(tmp_path / "m.pt", members_of(WEIGHTS))

    name = b"archive/data/0"  # its record begins 46 bytes earlier: flags at 8, sizes at 20 and 24, offset at 42
    _refuse(_patched(fresh(), name, 20 - 46, struct.pack("<II", 9999, 9999)), "overlap|do not add up")
    _refuse(_patched(fresh(), name, 42 - 46, struct.pack("<I", 0)), "overlap")
    _refuse(_patched(fresh(), name, 8 - 46, b"\1"), "the zip member archive/data/0 is encrypted")
    _refuse(_patched(fresh(), name, 0, b"archive/data/x"), "the storage 0 is missing")
    _refuse(_patched(fresh(), name, 0, b"archive/data\0x"), "the unsafe member name")
    _refuse(_patched(fresh(), b"PK\5\6", 12, struct.pack("<I", 2**31)), "far too many members")
    path = fresh()
    path.write_bytes(path.read_bytes() + b"hidden")
    _refuse(path, "bytes after its end")
    path = fresh()
    path.write_bytes(b"PK\3\4" + bytes(100) + path.read_bytes())
    _refuse(path, "leave room for hidden bytes")


def test_bytes_hidden_before_the_zip_directory_are_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path / "m.pt", members_of(WEIGHTS))
    data = path.read_bytes()
    (start,) = struct.unpack("<I", data[-6:-2])
    moved = data[start:-6] + struct.pack("<I", start + 100) + data[-2:]
    path.write_bytes(data[:start] + bytes(100) + moved)
    _refuse(path, "the sizes of the zip members do not add up to the file")


def _safetensors(path: Path, header: str | bytes, data: bytes = b"", length: int | None = None) -> Path:
    raw = header if isinstance(header, bytes) else header.encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return path


_ENTRY = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'


@pytest.mark.parametrize(
    ("header", "length", "message"),
    [
        ('{"w":' + _ENTRY + "}", 2**63, "a truncated safetensors file, or one whose header length is wrong"),
        ('{"w":' + _ENTRY + "}", 10, "a safetensors file with a damaged header"),
        ("{" + " " * (9 << 20) + "}", None, "a header of 9,437,186 bytes"),
        ('{"w":' + _ENTRY + ',"w":' + _ENTRY + "}", None, "whose header names something twice"),
        ('{"w":{"dtype":"F32","dtype":"F32"}}', None, "whose header names something twice"),
        ('{"w":' + _ENTRY.replace("F32", "F4") + "}", None, "tensor w has the unknown type F4"),
        ('{"w":3}', None, "tensor w has the unknown type None"),
        ('{"w":' + "[" * 100_000, None, "a damaged header"),
        (b'{"\xff":1}', None, "a damaged header"),
        ("{}", None, "a safetensors file without tensors"),
        ('{"__metadata__":{"a":1},"w":' + _ENTRY + "}", None, "a safetensors file with damaged metadata"),
        ('{"w":' + _ENTRY.replace("[1]", "[2]") + "}", None, "a damaged safetensors file"),
        ('{"w":' + _ENTRY + ',"v":' + _ENTRY + "}", None, "a damaged safetensors file"),
        ('{"w":{"dtype":"F32","shape":[0,18446744073709551615],"data_offsets":[0,0]}}', None, "a damaged safetensors"),
        ('{"w":' + _ENTRY.replace("[1]", str([1] * 65)) + "}", None, "tensor w has 65 dimensions"),
    ],
)
def test_safetensors_that_lie(tmp_path: Path, header: str | bytes, length: int | None, message: str) -> None:
    _refuse(_safetensors(tmp_path / "m", header, bytes(4), length), message)


@pytest.mark.long
@pytest.mark.parametrize(("count", "message"), [(300_000, "a header of"), (60_000, "more than 50,000 tensors")])
def test_hundreds_of_thousands_of_empty_tensors(tmp_path: Path, count: int, message: str) -> None:
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({f"w{number}": entry for number in range(count)})
    _refuse(_safetensors(tmp_path / "m", header), message)


def test_too_many_tensors_in_a_torch_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors, "MAX_TENSORS", 2)
    _refuse(saved(tmp_path / "m.pt", {name: torch.ones(1) for name in "abc"}), "it holds more than 2 tensors")
