"""What a pickle holds, as data: names that stay names, calls that were not made, and views of storages."""

from dataclasses import dataclass
from typing import Any

import torch

STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}
_QUANTISED = {"QUInt8Storage": 1, "QInt8Storage": 1, "QInt32Storage": 4, "QUInt4x2Storage": 1, "QUInt2x4Storage": 1}


@dataclass(frozen=True, eq=False)
class Global:
    """A name that an unpickler would import; here it stays a name."""

    name: str


@dataclass(frozen=True, eq=False)
class Number:
    """A number that is a key; kept by identity, as a stranger can choose numbers that collide in a dict."""

    value: int | float

    def __str__(self) -> str:
        return str(self.value)


@dataclass(eq=False, repr=False)  # the repr of nested records can be endless
class Opaque:
    """A call that was not made: its name, its arguments, and the state and items given to its result."""

    name: str
    args: tuple[Any, ...]
    state: Any = None
    items: dict[Any, Any] | None = None


@dataclass(frozen=True, eq=False)
class StorageRecord:
    """A block of numbers stored beside the pickle: its type's name, its member's name, its length."""

    type_name: str
    key: str
    numel: int


@dataclass(frozen=True, eq=False)
class TensorRecord:
    """A view of a storage, not checked yet; ``dtype_name`` is set where the storage is untyped."""

    storage: StorageRecord
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype_name: str | None = None


def safe_key(key: Any) -> Any:
    """``key`` in a form that a dict can hold whatever a stranger has chosen."""
    # Only text and bytes hash with a secret; all else could be made to collide, which keeps a dict busy for hours.
    if key is None or isinstance(key, (str, bytes)):
        return key
    return Number(key) if isinstance(key, (int, float)) else Opaque("key", (key,))


def result_of(name: str, args: tuple[Any, ...]) -> Any:
    """The value of the few calls that only describe data; everything else stays a record."""
    match name, args:
        case "torch._utils._rebuild_tensor", (StorageRecord() as storage, offset, shape, stride):  # before 0.4
            dtype_name, extra = None, list[Any]()
        case "torch._utils._rebuild_tensor_v2", (StorageRecord() as storage, offset, shape, stride, _, _, *extra):
            dtype_name = None
        case (
            "torch._utils._rebuild_tensor_v3",
            (StorageRecord() as storage, offset, shape, stride, _, _, Global(name=dtype_name), *extra),
        ):
            pass
        case (("torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state"), (data, *_)):
            return data
        case "torch._utils._rebuild_device_tensor_from_cpu_tensor", (TensorRecord() as data, *_):  # of a TPU
            return data
        case "torch._tensor._rebuild_from_type_v2", (Global(name=inner), _, tuple(inner_args), _) if inner.startswith(
            "torch._utils."
        ):  # a tensor of a class of its own, or with attributes
            return made if isinstance(made := result_of(inner, inner_args), TensorRecord) else Opaque(name, args)
        case "collections.OrderedDict", ():
            return {}
        case "collections.OrderedDict", (list(pairs),):  # of Python 2
            return _dict_of(pairs)
        case (("builtins.set" | "__builtin__.set" | "builtins.frozenset" | "__builtin__.frozenset"), (list(items),)):
            return items
        case "torch.Size", (tuple(sizes),):
            return sizes
        case _:
            return Opaque(name, args)
    # ``extra`` carries the conjugate and negative bits: rare enough to be refused later, by name.
    if any(extra) or not all(_is_integers(value) for value in ((offset,), shape, stride)):
        return Opaque(name, args)
    return TensorRecord(storage, offset, shape, stride, dtype_name)


def _dict_of(pairs: list[Any]) -> dict[Any, Any]:
    """Keys with values; the list ends empty, as a stranger could have one long list read again for hours."""
    made = {safe_key(pair[0]): pair[1] for pair in pairs if isinstance(pair, (list, tuple)) and len(pair) == 2}
    pairs.clear()
    return made


def _is_integers(value: Any) -> bool:
    return isinstance(value, tuple) and all(type(item) is int for item in value)


def element_bytes(type_name: str) -> int | None:
    """Bytes of one element of a storage of this type; None where the type is unknown."""
    if type_name.endswith(".UntypedStorage"):
        return 1
    dtype = STORAGES.get(type_name.removeprefix("torch."))
    return _QUANTISED.get(type_name.removeprefix("torch.")) if dtype is None else dtype.itemsize
