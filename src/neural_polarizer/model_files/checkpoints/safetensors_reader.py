"""safetensors files, with the checks that the library leaves out."""

import io
import json
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from neural_polarizer.errors import BadInputError
from neural_polarizer.model_files.checkpoints.tensors import MAX_DIMENSIONS, MAX_TENSORS
from neural_polarizer.model_files.checkpoints.wording import printable
from neural_polarizer.model_files.checkpoints.zip_reader import Source

MAX_HEADER_BYTES = 8 << 20
_DTYPES = frozenset(
    (
        *("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "C64"),
        *("I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL"),
    )
)
_AGAIN = "get the file again"


def read_header(file: Source) -> dict[str, str]:
    """Check the header of a safetensors file and return its metadata.

    Raises:
        BadInputError: the header is too large, damaged, names a tensor twice or an unknown type.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if length > size - 8:
        raise BadInputError(f"a truncated safetensors file, or one whose header length is wrong; {_AGAIN}")
    if length > MAX_HEADER_BYTES:
        raise BadInputError(f"a safetensors file with a header of {length:,} bytes; save only the model's state_dict")
    try:
        header = json.loads(file.read(length), object_pairs_hook=_no_duplicates)
    except BadInputError:
        raise
    except (ValueError, RecursionError):
        raise BadInputError(f"a safetensors file with a damaged header; {_AGAIN}") from None
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
        raise BadInputError(f"a safetensors file with damaged metadata; {_AGAIN}")
    return metadata


def read_tensors(data: bytes) -> dict[str, Tensor]:
    """All tensors of a file whose header was checked."""
    try:
        return safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise BadInputError(f"a damaged safetensors file ({printable(str(error))}); {_AGAIN}") from None


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise BadInputError("a safetensors file whose header names something twice; do not use this file")
    return found
