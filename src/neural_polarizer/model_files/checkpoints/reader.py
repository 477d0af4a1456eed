"""Open a model file that may be an attack, and come back with tensors or with one line that says why not."""

import hashlib
import io
import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from neural_polarizer.errors import AGAIN, BadInputError, printable, refusing
from neural_polarizer.files import LFS_POINTER
from neural_polarizer.model_files.checkpoints.legacy_reader import LegacyFile, legacy_start
from neural_polarizer.model_files.checkpoints.pickle_values import TensorRecord
from neural_polarizer.model_files.checkpoints.pickle_walk import Walked, walk
from neural_polarizer.model_files.checkpoints.state_dict import (
    Fits,
    behind,
    find_state_dict,
    prefix_remarks,
    strip_wrappers,
)
from neural_polarizer.model_files.checkpoints.tensors import (
    MAX_DIMENSIONS,
    MAX_TENSORS,
    Storages,
    check_records,
    materialise,
)
from neural_polarizer.model_files.checkpoints.zip_reader import Source, TorchArchive

MAX_FILE_BYTES = 16 << 30
MAX_HEADER_BYTES = 8 << 20  # of safetensors
_MAX_METADATA_LENGTH = 200
_DTYPES = frozenset(
    (
        *("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "C64"),
        *("I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL"),
    )
)
ONE_FILE = "save it in one, by save_pretrained with a large max_shard_size or by safetensors.torch.save_file"
_PACKED = (b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"7z\xbc\xaf", b"Rar!")
_DATA = "not a model; the model comes first, and data with options such as --clean"
_BEGINNINGS = (
    (LFS_POINTER, "a Git LFS pointer, not the model; run 'git lfs pull' where it came from"),
    (b"\x1f\x8b", "compressed with gzip; unpack it with gunzip and give the file inside"),
    *((start, "compressed; unpack it and give the model file inside") for start in _PACKED),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras); convert the weights to a PyTorch state_dict and save that"),
    (b"\x93NUMPY", "a NumPy array; make tensors of it with torch.from_numpy and save their state_dict"),
    (b"PAR1", f"a parquet file, {_DATA}"),
    *((start, f"an image, {_DATA}") for start in (b"\x89PNG", b"\xff\xd8\xff")),
)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a model file holds; names and metadata are the file's own, so escape them before showing them."""

    tensors: dict[str, Tensor]  # contiguous tensors on the CPU, by name; tied tensors may share memory
    metadata: dict[str, str]  # what the file says about itself, never to be relied on
    sha256: str  # of exactly the bytes that the tensors come from
    format: str  # ``"safetensors"``, ``"torch-zip"``, ``"torch-legacy"`` (before PyTorch 1.6) or ``"several"`` files
    threats: tuple[str, ...]  # what it would do beyond giving tensors where it is unpickled; safe to show
    findings: tuple[str, ...]  # what was taken and what was not; safe to show


def read_checkpoint(path: Path, *, weights: str | None = None, fits: Fits | None = None) -> Checkpoint:
    """Read the weights in a safetensors file or one that ``torch.save`` wrote; nothing in it is executed.

    Args:
        path: the file.
        weights: which of several sets of weights in it, by its entry, such as ``state_dict_ema``, or by the prefix of
            its names, such as ``teacher``.
        fits: tells which of several sets could be meant, by their names.

    Raises:
        BadInputError: the file cannot be opened, is of another kind, damaged, or made to do harm.
    """
    try:
        with _open(path) as file:
            _require_regular(os.fstat(file.fileno()).st_mode)  # it may have been exchanged since
            return _read(file, weights, fits)
    except BadInputError as error:
        raise BadInputError(f"{printable(str(path), 4096)}: {error}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BadInputError(f"{printable(str(path), 4096)}: cannot be read ({reason}); check the path") from None


def _open(path: Path) -> io.BufferedReader:
    """Open a regular file; a FIFO or a device is refused without waiting for it."""
    _require_regular(path.stat().st_mode)
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    return os.fdopen(os.open(path, flags), "rb")


def _require_regular(mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise BadInputError("a folder; give the model file inside it")
    if not stat.S_ISREG(mode):
        raise BadInputError("not a regular file but a pipe or a device; copy its content to a file")


def _read(file: io.BufferedReader, weights: str | None, fits: Fits | None) -> Checkpoint:
    # Every check runs twice: on the file, so that a bad one is refused before it is read whole,
    # and on the bytes that were hashed, which nobody can change in between.
    form = _detect(file)
    threats: tuple[str, ...] = ()
    if form == "safetensors":
        _read_header(file)
        data = _read_all(file)
        metadata = _read_header(io.BytesIO(data))
        kinds = (safetensors.SafetensorError, ValueError, RuntimeError, KeyError, TypeError)
        with refusing("a damaged safetensors file", *kinds, then=f"; {AGAIN}"):
            held = safetensors.torch.load(data)
        tensors, prefix = strip_wrappers(held)
        findings: tuple[str, ...] = tuple(prefix_remarks(prefix))
        if weights is not None:
            tensors, taken = behind(tensors, weights)
            findings = (*findings, taken)
    else:
        _plan(file, form, weights, fits)
        data = _read_all(file)
        archive, records, walked, told = _plan(io.BytesIO(data), form, weights, fits)
        tensors, metadata = materialise(records, archive), _metadata(walked.value)
        threats, findings = walked.threats, (*walked.remarks, *told)
    return Checkpoint(tensors, metadata, hashlib.sha256(data).hexdigest(), form, threats, findings)


def _read_all(file: io.BufferedReader) -> bytes:
    size = file.seek(0, io.SEEK_END)
    if size > MAX_FILE_BYTES:
        raise BadInputError(f"larger than {MAX_FILE_BYTES >> 30} GiB; save only the model's state_dict")
    file.seek(0)
    return file.read(size)


def _detect(file: io.BufferedReader) -> str:
    """``"safetensors"``, ``"torch-zip"`` or ``"torch-legacy"``, by the first bytes; the ending is but a name."""
    file.seek(0)
    head = file.read(512)
    if head[8:9] == b"{":  # after eight bytes of length; first, as the length may look like other formats
        return "safetensors"
    if head.startswith(b"PK\3\4"):
        return "torch-zip"
    if legacy_start(head):
        return "torch-legacy"
    raise BadInputError(_reason(head))


def _reason(head: bytes) -> str:
    if not head:
        return "an empty file; download or save it again"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        return "a web page, not a model; download the file itself, not the page that shows it"
    for start, what in _BEGINNINGS:
        if head.startswith(start):
            return what
    if head[257:262] == b"ustar":
        return "a tar archive; unpack it and give the model file inside"
    if head[:1] == b"\x80" and head[1:2] in b"\2\3\4\5":
        return (
            "a bare pickle, which can only be run, not read; on a machine that may run its code, save its state_dict "
            "with safetensors.torch.save_file"
        )
    if head[:1] == b"\x08" and head[2:3] in (b"\x12", b"\x1a", b"\x3a", b"\x42"):
        return "an ONNX model; export the PyTorch weights it was made from as a state_dict"
    if text.startswith(b"{") and b'"weight_map"' in text:
        return f"the index of a model in several files; {ONE_FILE}"
    if text.startswith((b"{", b"[")):
        return "a text file of JSON, not of weights; give the file of weights beside it, or the folder of both"
    return "not a model file that this program knows; give a safetensors file or a torch.save checkpoint"


def _read_header(file: Source) -> dict[str, str]:
    """Check the header of a safetensors file, which the library does not do, and return its metadata."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if length > size - 8:
        raise BadInputError(f"a truncated safetensors file, or one whose header length is wrong; {AGAIN}")
    if length > MAX_HEADER_BYTES:
        raise BadInputError(f"a safetensors file with a header of {length:,} bytes; save only the model's state_dict")
    with refusing("a safetensors file with a damaged header", ValueError, RecursionError, then=f"; {AGAIN}"):
        header = json.loads(file.read(length), object_pairs_hook=_no_duplicates)
    metadata = header.pop("__metadata__", {})
    if not header:
        raise BadInputError("a safetensors file without tensors; save the model's state_dict")
    if len(header) > MAX_TENSORS:
        raise BadInputError(f"it holds more than {MAX_TENSORS:,} tensors; save only the model's state_dict")
    for name, entry in header.items():
        dtype = entry.get("dtype") if isinstance(entry, dict) else None
        if not isinstance(dtype, str) or dtype not in _DTYPES:
            raise BadInputError(
                f"tensor {printable(name)} has the unknown type {printable(str(dtype))}; convert it to F32"
            )
        shape = entry.get("shape")
        if isinstance(shape, list) and len(shape) > MAX_DIMENSIONS:
            raise BadInputError(f"tensor {printable(name)} has {len(shape):,} dimensions; do not use this file")
    if not (isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())):
        raise BadInputError(f"a safetensors file with damaged metadata; {AGAIN}")
    return metadata


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise BadInputError("a safetensors file whose header names something twice; do not use this file")
    return found


def _plan(
    file: Source, form: str, weights: str | None, fits: Fits | None
) -> tuple[Storages, dict[str, TensorRecord], Walked, tuple[str, ...]]:
    """Where the tensors of a file of ``torch.save`` lie, which these are, its pickle, and what was taken of it."""
    archive: Storages
    if form == "torch-zip":
        archive = TorchArchive(file)
        walked = walk(archive.pickle())
    else:
        archive = LegacyFile(file)
        walked = archive.walked
    try:
        records, remarks = find_state_dict(walked.value, weights, fits)
        check_records(records, archive)
    except BadInputError as error:
        raise BadInputError("; ".join((str(error), *(*walked.threats, *walked.remarks)[:3]))) from None
    return archive, records, walked, remarks


def _metadata(top: Any) -> dict[str, str]:
    """The short scalars beside the weights, such as ``model_name`` and ``num_classes``, and lists of a few numbers."""
    if not isinstance(top, dict):
        return {}
    said = {key: _in_text(value) for key, value in top.items() if isinstance(key, str)}
    return {key: text for key, text in said.items() if text is not None and len(text) <= _MAX_METADATA_LENGTH}


def _in_text(value: Any) -> str | None:
    if (
        isinstance(value, (list, tuple))
        and 1 <= len(value) <= 3
        and all(isinstance(one, (int, float)) for one in value)
    ):
        return ",".join(map(str, value))
    return str(value) if isinstance(value, (str, int, float)) else None
