"""What the pages of a parquet file unpack to, read from their headers before the library unpacks them.

The library takes memory for whatever a page's header claims, and its own access to the footer ends the process on some
damaged ones; so both are read here.
"""

import io
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from neural_polarizer.errors import BadInputError, shown

MAX_RATIO = 20  # of unpacked to packed: images that are encoded already hardly shrink
FREE_BYTES = 16 << 20  # up to here a page may shrink as it likes
_MAX_FOOTER, _MAX_HEADER = 16 << 20, 1 << 20
_USUAL_HEADER = 512  # of a page; those with statistics of long values have more
_MAX_VALUES = 1_000_000  # in a footer; ten columns in a thousand pieces need 450,000
_MAX_DEPTH = 16
_MAX_ITEMS = 20_000_000  # of a column of lists; a few bytes can stand for any number of them

# Numbers of fields in Parquet's FileMetaData, RowGroup, ColumnChunk, ColumnMetaData and PageHeader.
_ROWS, _ROW_GROUPS, _COLUMNS, _GROUP_ROWS, _COLUMN = 3, 4, 1, 3, 3
_VALUES, _CHUNK_BYTES, _DATA_PAGE, _DICTIONARY_PAGE = 5, 7, 9, 11
_UNPACKED, _PACKED = 2, 3


def largest_page(path: Path, file: pq.ParquetFile, leaf: str) -> int:
    """The most bytes that a page of a column (as ``image.bytes``) unpacks to; no value in it is longer than that.

    Raises:
        BadInputError: a page unpacks to far more than it holds, or cannot be read.
    """
    names = [file.schema.column(number).path for number in range(len(file.schema))]
    if names.count(leaf) != 1:
        raise BadInputError(f"{shown(path)}: its schema names {shown(leaf)!r} {names.count(leaf)} times")
    largest = 0
    try:
        with path.open("rb") as raw:
            for packed, unpacked in _pages(raw, names.index(leaf)):
                if unpacked > MAX_RATIO * packed + FREE_BYTES:
                    raise BadInputError(
                        f"{shown(path)}: column {shown(leaf)!r} unpacks {packed:,} bytes to {unpacked:,}, which "
                        "images do not; do not use this file"
                    )
                largest = max(largest, unpacked)
    except (LookupError, TypeError, OSError):
        raise BadInputError(f"{shown(path)}: column {shown(leaf)!r} is damaged; get the file again") from None
    return largest


def _pages(raw: io.BufferedReader, column: int) -> Iterator[tuple[int, int]]:
    """The packed and the unpacked size of each page of a column."""
    tail = raw.seek(-8, io.SEEK_END)
    length = int.from_bytes(raw.read(4), "little")
    if length > min(tail, _MAX_FOOTER):
        raise IndexError(length)
    raw.seek(tail - length)
    left = tail
    footer = _Thrift(raw.read(length)).struct()
    rows = [group[_GROUP_ROWS] for group in footer[_ROW_GROUPS]]
    if min(rows, default=0) < 0 or sum(rows) != footer[_ROWS]:  # the library takes memory for as many
        raise IndexError(sum(rows))
    items = 0
    for group in footer[_ROW_GROUPS]:
        chunk = group[_COLUMNS][column][_COLUMN]
        items += chunk[_VALUES]
        if chunk[_VALUES] < 0 or items > _MAX_ITEMS:
            raise IndexError(items)
        left -= chunk[_CHUNK_BYTES]
        at = chunk[_DATA_PAGE]
        if 0 < chunk.get(_DICTIONARY_PAGE, 0) < at:
            at = chunk[_DICTIONARY_PAGE]
        end = at + chunk[_CHUNK_BYTES] if chunk[_VALUES] else 0
        if min(at, left) < 0:  # the pieces of a column are longer than the file: some are named again and again
            raise IndexError(at)
        while at < end:
            header, length = _header(raw, at)
            packed, unpacked = header[_PACKED], header[_UNPACKED]
            at += length + packed
            if min(packed, unpacked) < 0 or at > end:
                raise IndexError(at)
            yield packed, unpacked


def _header(raw: io.BufferedReader, at: int) -> tuple[dict[int, Any], int]:
    """The header of the page at ``at``, and its length; no more is read than that needs, as pages can be many."""
    for size in (_USUAL_HEADER, _MAX_HEADER):
        raw.seek(at)
        thrift = _Thrift(raw.read(min(size, _MAX_HEADER)))
        with suppress(IndexError):
            return thrift.struct(), thrift.at
    raise IndexError(at)


class _Thrift:
    """Values in Thrift's compact protocol, from the beginning of ``data``; ``at`` is where they end.

    Raises:
        IndexError: they do not end within ``data``, or are too many or of an unknown type.
    """

    def __init__(self, data: bytes) -> None:
        self.at = 0
        self._data = data
        self._left = _MAX_VALUES

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """A structure: its values by the numbers of their fields."""
        found, field = {}, 0
        while head := self._byte():
            field = field + (head >> 4) if head >> 4 else self._integer()
            kind = head & 15
            found[field] = kind == 1 if kind in (1, 2) else self._value(kind, depth + 1)
        return found

    def _value(self, kind: int, depth: int) -> Any:
        self._left -= 1
        if self._left < 0 or depth > _MAX_DEPTH:
            raise IndexError(depth)
        match kind:
            case 1 | 2 | 3:
                return self._byte()
            case 4 | 5 | 6:
                return self._integer()
            case 7 | 8:
                length = 8 if kind == 7 else self._varint()
                self.at += length
                return self._data[self.at - length : self.at]
            case 9 | 10:
                head = self._byte()
                count = head >> 4 if head >> 4 < 15 else self._varint()
                return [self._value(head & 15, depth + 1) for _ in range(count)]
            case 12:
                return self.struct(depth)
            case _:  # Parquet has no maps
                raise IndexError(kind)

    def _byte(self) -> int:
        self.at += 1
        return self._data[self.at - 1]

    def _varint(self) -> int:
        value = shift = 0
        while (byte := self._byte()) & 0x80:
            value |= (byte & 0x7F) << shift
            shift += 7
            if shift > 63:
                raise IndexError(shift)
        return value | byte << shift

    def _integer(self) -> int:
        value = self._varint()
        return value >> 1 ^ -(value & 1)
