"""The container of ``torch.save`` before PyTorch 1.6: a row of pickles, and then the storages, one after the other.

The pickles are a magic number, the version of the protocol, facts about the machine, the object itself and a list of
the storages' keys. Each storage is the number of its elements (eight bytes) and its bytes; both are little-endian on
all machines (``torch.serialization._legacy_save``).
"""

import io
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from neural_polarizer.errors import AGAIN, BadInputError, printable
from neural_polarizer.model_files.checkpoints.pickle_values import element_bytes
from neural_polarizer.model_files.checkpoints.pickle_walk import Walked, walk
from neural_polarizer.model_files.checkpoints.zip_reader import MAX_PICKLE_BYTES, Source

_BEGINNING = re.compile(rb"\x80[\2-\5](\x95.{8})?\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19\.", re.DOTALL)
"""The magic number, a pickle of its own, framed from protocol 4 on."""
MAX_STORAGES = 100_000
_MAX_PREAMBLE = 1_000  # opcodes; real ones have about 40
_PREAMBLE_BYTES = 1 << 16
_HEAD_BYTES = 64
_PROTOCOL = 1001
_COUNT_BYTES = 8


def legacy_start(head: bytes) -> int:
    """How many bytes the magic number takes; 0 where a file does not begin with it."""
    found = _BEGINNING.match(head)
    return 0 if found is None else found.end()


class LegacyFile:
    """A checked file: its pickle, walked (the threats are those of all its pickles), and storages up to the last byte.

    Raises:
        BadInputError: damaged or truncated, or not laid out as ``torch.save`` did.
    """

    little_endian = True

    def __init__(self, file: Source) -> None:
        self._file = file
        self._size = file.seek(0, io.SEEK_END)
        position = legacy_start(self._bytes(0, _HEAD_BYTES))
        version = walk(self._bytes(position, _PREAMBLE_BYTES), limit=_MAX_PREAMBLE)
        position += version.size
        machine = walk(self._bytes(position, _PREAMBLE_BYTES), limit=_MAX_PREAMBLE)
        position += machine.size
        if type(version.value) is not int or version.value != _PROTOCOL or not isinstance(machine.value, dict):
            raise BadInputError(f"a torch.save file from before PyTorch 1.6 with a damaged beginning; {AGAIN}")
        walked = walk(self._bytes(position, MAX_PICKLE_BYTES))
        position += walked.size
        listed = walk(self._bytes(position, MAX_PICKLE_BYTES), limit=4 * MAX_STORAGES)
        threats = (*version.threats, *machine.threats, *walked.threats, *listed.threats)
        self.walked: Walked = replace(walked, threats=threats)
        self._places = dict(self._storages(_keys(listed.value), position + listed.size))

    def storage_bytes(self, key: str) -> int:
        if key not in self._places:
            raise BadInputError(f"the storage {printable(key)} is missing from the file; {AGAIN}")
        return self._places[key][1]

    def storage(self, key: str) -> bytearray:
        return bytearray(self._bytes(self._places[key][0], self.storage_bytes(key)))

    def _bytes(self, position: int, count: int) -> bytes:
        self._file.seek(position)
        return self._file.read(count)

    def _storages(self, keys: list[str], position: int) -> Iterator[tuple[str, tuple[int, int]]]:
        """Each key with its place and size; the last storage ends where the file does."""
        for key in keys:
            record = self.walked.storages.get(key)
            if record is None:
                raise BadInputError(f"it holds the storage {printable(key)}, which no tensor uses; {AGAIN}")
            width = element_bytes(record.type_name)
            if width is None:
                raise BadInputError(f"its storages are of the unsupported type {printable(record.type_name)}; {AGAIN}")
            head = self._bytes(position, _COUNT_BYTES)
            count = int.from_bytes(head, "little", signed=True)
            position += _COUNT_BYTES
            if len(head) < _COUNT_BYTES or not 0 <= count * width <= self._size - position:
                raise BadInputError(f"a truncated file: the storage {printable(key)} is not all there; {AGAIN}")
            yield key, (position, count * width)
            position += count * width
        if position != self._size:
            raise BadInputError(f"the sizes of its storages do not add up to the file; {AGAIN}")


def _keys(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(key, str) for key in value) or len(set(value)) != len(value):
        raise BadInputError(f"its list of storages is damaged; {AGAIN}")
    if len(value) > MAX_STORAGES:
        raise BadInputError(f"it has more than {MAX_STORAGES:,} storages; save only the model's state_dict")
    return value
