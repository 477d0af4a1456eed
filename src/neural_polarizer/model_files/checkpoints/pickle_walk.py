"""Read the pickle of a torch checkpoint as data: a stack machine that never imports and never calls."""

import io
import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from neural_polarizer.errors import BadInputError, printable
from neural_polarizer.model_files.checkpoints.pickle_values import (
    Global,
    Opaque,
    StorageRecord,
    TensorRecord,
    result_of,
    safe_key,
)

MAX_OPCODES = 1_000_000  # about one second; a ResNet-152 needs 60,000
MAX_MARKS = 500  # depth of nesting; real files stay below 20
MAX_INTEGER = 2**64
MAX_NAME = 1_000  # letters of a module or what is in it; a few bytes can have a long text put together again and again
_DAMAGED = "its pickle is damaged; get the file again or save the state_dict anew"

_PUSHED = frozenset(
    (
        *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
        *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINSTRING", "SHORT_BINSTRING"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    )
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
# A set becomes a list: hashing what a stranger chose is a way to be kept busy for hours.
_CONTAINERS: dict[str, Callable[[], Any]] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": list}
_IGNORED = frozenset(("PROTO", "FRAME", "STOP"))


def _in(modules: str, names: str) -> list[str]:
    """All of the names in each of the modules."""
    return [f"{module}.{name}" for module in modules.split() for name in names.split()]


_BUILTINS = "builtins __builtin__"  # of Python 3 and 2
_REBUILT = "tensor tensor_v2 tensor_v3 parameter parameter_with_state qtensor sparse_tensor meta_tensor_no_storage"
_HARMLESS = frozenset(
    (
        *(f"torch._utils._rebuild_{kind}" for kind in _REBUILT.split()),
        *("torch.nn.backends.thnn._get_thnn_function_backend", "torch.serialization._get_layout"),
        *("torch.Size", "torch.device", "collections.OrderedDict", "collections.defaultdict", "_codecs.encode"),
        *("numpy.dtype", "numpy.ndarray", *_in("numpy.core.multiarray numpy._core.multiarray", "_reconstruct scalar")),
        *_in(_BUILTINS, "set frozenset dict list"),
    )
)
# What holds data and does nothing else when it is unpickled.
_CALM = frozenset(
    (
        *_in("pathlib pathlib._local", "Path PosixPath WindowsPath PurePath PurePosixPath PureWindowsPath"),
        *_in("datetime", "date datetime time timedelta timezone"),
        *("argparse.Namespace", "types.SimpleNamespace", "decimal.Decimal", "fractions.Fraction", "uuid.UUID"),
        *("collections.Counter", "collections.deque", *_in(_BUILTINS, "complex bytearray slice range xrange")),
    )
)
_KNOWN_PACKAGES = frozenset(("torch", "collections", "numpy"))


@dataclass(frozen=True, eq=False)
class Walked:
    """The top value of a pickle, and in plain language what else is in it."""

    value: Any  # at the top of the stack
    threats: tuple[str, ...]  # what an unpickler would have done beyond reading tensors, most harmful first
    remarks: tuple[str, ...]  # plain data that was not read
    storages: Mapping[str, StorageRecord]  # all that the pickle refers to, by key, as the first reference has them
    size: int  # bytes up to the end of the pickle


def walk(data: bytes, *, limit: int | None = None) -> Walked:
    """Read the pickle, of protocol 2 to 5 and at most ``limit`` opcodes, that ``data`` begins with; none of it is run.

    Raises:
        BadInputError: damaged, too large, too deep, or made of opcodes that ``torch.save`` does not write.
    """
    machine, stream = _Machine(), io.BytesIO(data)
    limit = MAX_OPCODES if limit is None else limit
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if count >= limit:
                raise BadInputError(f"its pickle has more than {limit:,} opcodes; save the state_dict alone")
            machine.step(opcode.name, argument)
        value = machine.stack.pop()
    except (IndexError, KeyError, ValueError, OverflowError) as error:
        if isinstance(error, BadInputError):
            raise
        raise BadInputError(_DAMAGED) from None
    return Walked(value, machine.threats(), machine.remarks(), machine.storages, stream.tell())


class _Machine:
    """The unpickler's stack, marks and memo."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.storages: dict[str, StorageRecord] = {}
        self._below: list[list[Any]] = []  # the stacks under each open mark
        self._memo: dict[int, Any] = {}
        self._verbs: dict[str, str] = {}
        self._handlers: dict[str, Callable[[Any], None]] = {
            "MARK": self._mark,
            "POP": lambda _: self._drop(),
            "POP_MARK": lambda _: self._to_mark().clear(),
            "TUPLE": lambda _: self._push(tuple(self._to_mark())),
            "TUPLE1": lambda _: self._push(self._take(1)),
            "TUPLE2": lambda _: self._push(self._take(2)),
            "TUPLE3": lambda _: self._push(self._take(3)),
            "FROZENSET": lambda _: self._push(self._to_mark()),
            "APPEND": lambda _: self._extend(list(self._take(1))),
            "APPENDS": lambda _: self._extend(self._to_mark()),
            "ADDITEMS": lambda _: self._extend(self._to_mark()),
            "SETITEM": lambda _: self._set_items(list(self._take(2))),
            "SETITEMS": lambda _: self._set_items(self._to_mark()),
            "BINPUT": self._put,
            "LONG_BINPUT": self._put,
            "MEMOIZE": lambda _: self._put(len(self._memo)),
            "BINGET": lambda index: self._push(self._memo[index]),
            "LONG_BINGET": lambda index: self._push(self._memo[index]),
            "GLOBAL": lambda name: self._global(*name.split(" ", 1)),
            "STACK_GLOBAL": lambda _: self._global(*self._take(2)),
            "REDUCE": lambda _: self._call("run", *self._take(2)),
            "NEWOBJ": lambda _: self._call("build", *self._take(2)),
            "NEWOBJ_EX": lambda _: self._call("build", *self._take(3)[:2]),
            "BUILD": self._build,
            "BINPERSID": self._persistent,
        }

    def step(self, name: str, argument: Any) -> None:
        if name in _PUSHED:
            huge = type(argument) is int and abs(argument) >= MAX_INTEGER  # an id, or the state of a random generator
            self.stack.append(Opaque("builtins.int", ()) if huge else argument)
        elif name in _CONTAINERS:
            self.stack.append(_CONTAINERS[name]())
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in self._handlers:
            self._handlers[name](argument)
        elif name not in _IGNORED:
            raise BadInputError(
                f"its pickle uses {name}, which torch.save never writes; do not load this file anywhere"
            )

    def threats(self) -> tuple[str, ...]:
        """What ``torch.load`` would do beyond reading tensors, in plain language, most harmful first."""
        verbs = sorted(self._verbs.items(), key=lambda item: ("run", "build", "import").index(item[1]))
        told = [(verb, printable(name)) for name, verb in verbs if name not in _CALM]
        lines = [f"this file tries to {verb} {name} when it is loaded by torch.load" for verb, name in told]
        return (*lines[:20], f"and {len(lines) - 20} more names like these") if len(lines) > 20 else tuple(lines)

    def remarks(self) -> tuple[str, ...]:
        """The plain data of other kinds than tensors and numbers, which were not read."""
        calm = ", ".join(printable(name) for name in self._verbs if name in _CALM)
        return (f"it also holds plain data of other kinds, which were not read: {calm}",) if calm else ()

    def _push(self, value: Any) -> None:
        self.stack.append(value)  # looked up after ``value`` was made, which may have changed the stack

    def _mark(self, _: Any) -> None:
        if len(self._below) >= MAX_MARKS:
            raise BadInputError(f"its pickle is nested more than {MAX_MARKS} deep; save the state_dict alone")
        self._below.append(self.stack)
        self.stack = []

    def _to_mark(self) -> list[Any]:
        items, self.stack = self.stack, self._below.pop()
        return items

    def _take(self, count: int) -> tuple[Any, ...]:
        if len(self.stack) < count:
            raise IndexError(count)
        items = tuple(self.stack[-count:])
        del self.stack[-count:]
        return items

    def _drop(self) -> None:
        # On an empty stack an unpickler drops the mark instead.
        if self.stack:
            self.stack.pop()
        else:
            self._to_mark()

    def _put(self, index: int) -> None:
        self._memo[index] = self.stack[-1]

    def _extend(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)

    def _set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if len(items) % 2:
            raise IndexError(len(items))
        if isinstance(target, Opaque):
            target.items = {} if target.items is None else target.items
            target = target.items
        if isinstance(target, dict):
            target.update((safe_key(key), value) for key, value in zip(items[::2], items[1::2], strict=True))

    def _global(self, module: Any, name: Any) -> None:
        if not (isinstance(module, str) and isinstance(name, str)) or max(len(module), len(name)) > MAX_NAME:
            raise BadInputError(_DAMAGED)
        full = f"{module}.{name}"
        if full.partition(".")[0] not in _KNOWN_PACKAGES and full not in _HARMLESS:
            self._verbs.setdefault(full, "import")
        self.stack.append(Global(full))

    def _call(self, verb: str, function: Any, args: Any) -> None:
        name = function.name if isinstance(function, (Global, Opaque)) else type(function).__name__
        if isinstance(function, Opaque):
            name = name if name.startswith("the result of ") else f"the result of {name}"
        value = result_of(name, args if isinstance(args, tuple) else (args,))
        harmless = name in _HARMLESS or (verb == "build" and name.startswith("torch.nn.modules."))
        if not (harmless or isinstance(value, TensorRecord)) and self._verbs.get(name) != "run":
            self._verbs[name] = verb
        self.stack.append(value)

    def _build(self, _: Any) -> None:
        target, state = self._take(2)
        if isinstance(target, Opaque):
            target.state = state
        self.stack.append(target)  # an OrderedDict's attributes (``_metadata``) are of no use here

    def _persistent(self, _: Any) -> None:
        match self.stack.pop():
            # A last entry, of the format before PyTorch 1.6, is None unless the storage is a part of another.
            case ("storage", Global(name=type_name), str(key), str(), int(numel), *rest) if rest in ([], [None]):
                record = StorageRecord(type_name, key, numel)
                self.storages.setdefault(key, record)
                self.stack.append(record)
            case ("module", Global() as kind, str() | None, str() | None):  # a class, with its source before 1.6
                self.stack.append(kind)
            case _:
                raise BadInputError(
                    "its pickle refers to something that is no tensor storage; save the state_dict anew"
                )
