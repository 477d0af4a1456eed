"""From records to tensors, with every bound checked before a byte is read."""

import math
from typing import TypeAlias

import torch
from torch import Tensor

from neural_polarizer.errors import BadInputError, printable
from neural_polarizer.model_files.checkpoints.legacy_reader import LegacyFile
from neural_polarizer.model_files.checkpoints.pickle_values import STORAGES, TensorRecord, element_bytes
from neural_polarizer.model_files.checkpoints.zip_reader import TorchArchive

MAX_TENSORS = 50_000
MAX_DIMENSIONS = 64
_MAX_SIZE = 2**63 - 1  # what torch can count
_MAX_COPIES = 8  # tied weights are views of one storage; a thousand views of it are an attack on memory

_UNTYPED = {
    str(dtype): dtype for dtype in (torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2)
}

Storages: TypeAlias = TorchArchive | LegacyFile
"""Where the bytes of tensors lie."""


def check_records(records: dict[str, TensorRecord], archive: Storages) -> None:
    """Check every record against the sizes in the archive.

    Raises:
        BadInputError: a tensor reaches outside its storage, or claims more than is stored.
    """
    if len(records) > MAX_TENSORS:
        raise BadInputError(f"it holds more than {MAX_TENSORS:,} tensors; save only the model's state_dict")
    for name, record in records.items():
        problem = _problem(record, archive)
        if problem:
            raise BadInputError(f"tensor {printable(name)} {problem}; do not use this file")
    types: dict[str, torch.dtype] = {}
    for name, record in records.items():
        if types.setdefault(record.storage.key, _dtype(record)) != _dtype(record):
            raise BadInputError(f"tensor {printable(name)} reads a storage as another type; do not use this file")
    stored = sum(archive.storage_bytes(key) for key in types)
    if sum(math.prod(record.shape) * _dtype(record).itemsize for record in records.values()) > _MAX_COPIES * stored:
        raise BadInputError("its tensors claim many times the bytes that are stored; do not use this file")


def materialise(records: dict[str, TensorRecord], archive: Storages) -> dict[str, Tensor]:
    """Read the tensors of checked ``records``; contiguous, on the CPU, shared storages read once."""
    storages: dict[str, Tensor] = {}
    tensors = {}
    for name, record in records.items():
        key = record.storage.key
        if key not in storages:
            storages[key] = _storage(key, _dtype(record), archive)
        tensors[name] = storages[key].as_strided(record.shape, record.stride, record.offset).contiguous()
    return tensors


def _problem(record: TensorRecord, archive: Storages) -> str | None:
    dtype = _find_dtype(record)
    if dtype is None:
        return f"has the unsupported type {printable(record.dtype_name or record.storage.type_name)}"
    if len(record.shape) != len(record.stride) or len(record.shape) > MAX_DIMENSIONS:
        return "has a shape and strides that do not fit together"
    if min((record.offset, *record.shape, *record.stride)) < 0:
        return "has a negative offset, size or stride"
    if max((record.offset, *record.shape, *record.stride)) > _MAX_SIZE:
        return "has a size or stride beyond counting"
    stored = archive.storage_bytes(record.storage.key)
    if stored != record.storage.numel * (element_bytes(record.storage.type_name) or 0):
        return f"has a storage of {stored} bytes, which is not what its type and length say"
    available = stored // dtype.itemsize
    if math.prod(record.shape) > available:
        return "claims more elements than its storage has"
    last = record.offset + sum((size - 1) * stride for size, stride in zip(record.shape, record.stride, strict=True))
    if (last >= available) if math.prod(record.shape) else (record.offset > available):
        return "reaches outside its storage"
    return None


def _find_dtype(record: TensorRecord) -> torch.dtype | None:
    if record.dtype_name is not None:
        return _UNTYPED.get(record.dtype_name) if record.storage.type_name == "torch.storage.UntypedStorage" else None
    return STORAGES.get(record.storage.type_name.removeprefix("torch."))


def _dtype(record: TensorRecord) -> torch.dtype:
    dtype = _find_dtype(record)
    assert dtype is not None, "check_records comes first"
    return dtype


def _storage(key: str, dtype: torch.dtype, archive: Storages) -> Tensor:
    data = archive.storage(key)
    if not data:
        return torch.empty(0, dtype=dtype)
    raw = torch.frombuffer(data, dtype=torch.uint8)
    if not archive.little_endian:
        width = dtype.itemsize // (2 if dtype.is_complex else 1)
        raw = raw.reshape(-1, width).flip(1).flatten()
    return raw.view(dtype)
