"""Files that are no checkpoints get a reason and a remedy of their own."""

import bz2
import gzip
import lzma
import os
import pickle
import random
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from checkpoint_files import members_of, zipped

from neural_polarizer.errors import BadInputError
from neural_polarizer.model_files.checkpoints import read_checkpoint
from neural_polarizer.model_files.load import locate


def _refuse(path: Path, message: str) -> None:
    with pytest.raises(BadInputError, match=message) as caught:
        read_checkpoint(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).isprintable()
    assert "; " in str(caught.value)


@pytest.mark.parametrize("extension", ["pt", "pth", "safetensors", "onnx", ""])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "an empty file"),
        (b"<!DOCTYPE html><html>", "a web page, not a model; download the file itself"),
        (b"\xef\xbb\xbf\n <html><head>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (gzip.compress(b"x", mtime=0), "compressed with gzip; unpack it"),
        (bz2.compress(b"x"), "compressed; unpack it"),
        (lzma.compress(b"x"), "compressed; unpack it"),
        (b"7z\xbc\xaf\x27\x1c", "compressed; unpack it"),
        (b"\x89HDF\r\n\x1a\n" + bytes(20), "an HDF5 file"),
        (b"\x93NUMPY\x01\0", "a NumPy array; make tensors of it with torch.from_numpy"),
        (
            b"PAR1" + bytes(8),
            "a parquet file, not a model; the model comes first, and data with",
        ),
        (b"\x89PNG\r\n", "an image, not a model"),
        (b'{"layers": {}}', "a text file of JSON, not of weights; give the file of weights"),
        (b'{"weight_map": {}}', "the index of a model in several files; save it in one, by save_pretrained"),
        (b"\x08\x07\x12\x07pytorch\x1a\x053", "an ONNX model"),
        (pickle.dumps({"a": 1}), "a bare pickle, which can only be run"),
        (pickle.dumps({"a": 1}, protocol=2), "a bare pickle"),
        (random.Random(0).randbytes(1000), "not a model file that this program knows"),
        (b"\x80", "a bare pickle"),
        (b"PK\3\4", "a truncated zip file"),
        (b"PK\5\6" + bytes(18), "not a model file"),
    ],
)
def test_other_formats_are_named(tmp_path: Path, data: bytes, message: str, extension: str) -> None:
    path = tmp_path / f"model.{extension}"
    path.write_bytes(data)
    _refuse(path, message)


def test_a_tar_archive(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("x")
    with tarfile.open(tmp_path / "m.pt", "w") as archive:
        archive.add(tmp_path / "x")
    _refuse(tmp_path / "m.pt", "a tar archive")


def test_a_zip_file_of_something_else_is_told_by_what_is_in_it(tmp_path: Path) -> None:
    zipped(tmp_path / "m.npz", {"conv1.weight.npy": b"", "a\nb": b""})
    _refuse(tmp_path / "m.npz", r"no data\.pkl, but conv1\.weight\.npy, a\\nb\); if one of these is the model file")
    zipped(tmp_path / "a.npz", {"conv1.weight.npy": b"", "conv1.bias.npy": b""})
    _refuse(tmp_path / "a.npz", r"NumPy arrays \(\.npz\); make tensors of them with torch\.from_numpy")


@pytest.mark.parametrize("member", ["archive/constants.pkl", "archive/code/__torch__.py"])
def test_a_torchscript_program(tmp_path: Path, member: str) -> None:
    members = {**members_of({"w": torch.ones(1)}), member: b""}
    _refuse(zipped(tmp_path / "m.pt", members, zipfile.ZIP_DEFLATED), "a TorchScript program")  # torch deflates code


@pytest.mark.parametrize("member", ["archive_format", "m/archive_format", "serialized_exported_program.json"])
def test_an_exported_program(tmp_path: Path, member: str) -> None:
    _refuse(zipped(tmp_path / "m.pt2", {member: b"pt2"}), r"an exported program \(\.pt2\)")


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_programs_that_torch_itself_wrote(tmp_path: Path) -> None:
    network, pixels = torch.nn.Linear(2, 2).eval(), torch.ones(1, 2)
    torch.jit.save(torch.jit.trace(network, pixels), tmp_path / "script.pt")
    torch.export.save(torch.export.export(network, (pixels,)), tmp_path / "program.pt2")
    _refuse(tmp_path / "script.pt", "a TorchScript program, which carries code")
    _refuse(tmp_path / "program.pt2", r"an exported program \(\.pt2\)")


@pytest.mark.parametrize("name", ["model-00001-of-00002.safetensors", "pytorch_model-00002-of-00002.bin"])
def test_a_part_of_a_model_is_told_as_such(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"x")
    with pytest.raises(
        BadInputError, match="one of several files that a model lies in; give their folder, or save it in one"
    ):
        locate(path)


def test_a_distributed_checkpoint_says_how_to_make_one_file_of_it(tmp_path: Path) -> None:
    (tmp_path / "__0_0.distcp").write_bytes(b"x")
    for path in (tmp_path, tmp_path / "__0_0.distcp"):
        with pytest.raises(BadInputError, match=r"a distributed checkpoint; .*dcp_to_torch FOLDER"):
            locate(path)


def test_another_zip_file(tmp_path: Path) -> None:
    _refuse(zipped(tmp_path / "m.pt", {"word/document.xml": b"<x/>"}), "a zip file that torch.save did not write")


def test_a_path_that_is_no_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    _refuse(tmp_path / "fifo", "not a regular file but a pipe or a device")  # and does not wait for a writer
    _refuse(tmp_path, "a folder; give the model file inside it")
    _refuse(tmp_path / "missing.pt", "No such file or directory")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    _refuse(tmp_path / "loop", "cannot be read")
    with pytest.raises(BadInputError, match="not a regular file"):
        read_checkpoint(Path(os.devnull))
    told = "embedded null byte|stat: embedded null character in path"  # before Python 3.13, and since
    with pytest.raises(BadInputError, match=rf"a\\x00b: cannot be read \(({told})\)"):
        read_checkpoint(Path("a\0b"))


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(tmp_path: Path) -> None:
    path = zipped(tmp_path / "m.pt", members_of({"w": torch.ones(1)}))
    path.chmod(0)
    _refuse(path, "Permission denied")


def test_a_file_name_with_escape_codes(tmp_path: Path) -> None:
    path = tmp_path / "\x1b[31m\n.pt"
    path.write_bytes(b"")
    with pytest.raises(BadInputError, match=r"\\x1b\[31m\\n\.pt: an empty file"):
        read_checkpoint(path)


def test_a_huge_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x", b"")
    with path.open("rb+") as file:
        file.truncate(40 << 30)  # sparse: it takes no room
    _refuse(path, "a truncated zip file, or one with bytes after its end")
