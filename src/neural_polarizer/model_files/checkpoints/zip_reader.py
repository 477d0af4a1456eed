"""The zip container of ``torch.save``, held to what ``torch.save`` writes."""

import io
import struct
import zipfile
from typing import TypeAlias

from neural_polarizer.errors import AGAIN, BadInputError, listing, printable, refusing

Source: TypeAlias = io.BytesIO | io.BufferedReader

MAX_PICKLE_BYTES = 32 << 20
MAX_DIRECTORY_BYTES = 8 << 20  # about 100,000 members
_MAX_GAP = 24  # a data descriptor between two members
_FORMAT_VERSIONS = range(1, 11)
_RESAVE = "save its state_dict with safetensors.torch.save_file"
_DAMAGE = (zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, OSError, EOFError, struct.error)


class TorchArchive:
    """A checked archive; every member is read whole, with its CRC verified.

    Raises:
        BadInputError: not a zip file, damaged, or not laid out as ``torch.save`` does.
    """

    def __init__(self, file: Source) -> None:
        _check_directory_size(file)
        with refusing("a damaged or truncated zip file", *_DAMAGE, then=f"; {AGAIN}"):
            self._zip = zipfile.ZipFile(file)
            infos = self._zip.infolist()
            self._root = _root([info.filename for info in infos])  # first, to name other kinds of zip file
            _check_members(infos)
            _check_layout(file, infos, self._zip.start_dir)
        self._members = {info.filename: info for info in infos}
        version = self._read("version", 16).strip() if f"{self._root}version" in self._members else b""
        if not (version.isdigit() and int(version) in _FORMAT_VERSIONS):
            raise BadInputError(f"a zip file without a known torch format version; {_RESAVE}")
        told = f"{self._root}byteorder" in self._members  # torch before 2.1 did not say
        order = self._read("byteorder", 16) if told else b"little"
        if order not in (b"little", b"big"):
            raise BadInputError(f"its byteorder is neither little nor big; {_RESAVE}")
        self.little_endian = order == b"little"

    def pickle(self) -> bytes:
        return self._read("data.pkl", MAX_PICKLE_BYTES)

    def storage_bytes(self, key: str) -> int:
        info = self._members.get(f"{self._root}data/{key}")
        if info is None:
            raise BadInputError(f"the storage {printable(key)} is missing from the zip file; {AGAIN}")
        return info.file_size

    def storage(self, key: str) -> bytearray:
        return bytearray(self._read(f"data/{key}", self.storage_bytes(key)))  # writable because tensors are

    def _read(self, name: str, limit: int) -> bytes:
        info = self._members[self._root + name]
        if info.file_size > limit:
            raise BadInputError(f"{printable(name)} inside it is larger than {limit:,} bytes; {_RESAVE}")
        try:
            return self._zip.read(info)
        except _DAMAGE:
            raise BadInputError(f"{printable(name)} inside it is damaged (its CRC does not fit); {AGAIN}") from None


def _check_directory_size(file: Source) -> None:
    """Bound the list of members before ``zipfile`` builds an object for each."""
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - 98))  # a zip64 record (56 bytes), its locator (20) and the end record (22)
    tail = file.read(98)
    if tail[-22:-18] != b"PK\5\6":
        raise BadInputError(f"a truncated zip file, or one with bytes after its end; {AGAIN}")
    (length,) = struct.unpack("<I", tail[-10:-6])
    if tail[-42:-38] == b"PK\6\7" and tail[:4] == b"PK\6\6":
        (length,) = struct.unpack("<Q", tail[40:48])
    if length > MAX_DIRECTORY_BYTES:
        raise BadInputError(f"a zip file with far too many members; {_RESAVE}")


def _check_members(infos: list[zipfile.ZipInfo]) -> None:
    seen: set[str] = set()
    for info in infos:
        name = info.orig_filename  # ``filename`` ends at the first NUL
        shown = printable(name)
        if name in seen:
            raise BadInputError(f"the zip file holds {shown} twice; do not use this file")
        seen.add(name)
        if name.startswith("/") or "\\" in name or "\0" in name or ".." in name.split("/"):
            raise BadInputError(f"the zip file holds the unsafe member name {shown}; do not use this file")
        if info.flag_bits & 1:
            raise BadInputError(f"the zip member {shown} is encrypted; {_RESAVE}")
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise BadInputError(f"the zip member {shown} is compressed, which torch.save never does; {_RESAVE}")


def _check_layout(file: Source, infos: list[zipfile.ZipInfo], end: int) -> None:
    """Members follow one another from the first byte to the directory: no overlap, no hidden bytes."""
    position = 0
    for number, info in enumerate(sorted(infos, key=lambda info: info.header_offset)):
        if not 0 <= info.header_offset - position <= (_MAX_GAP if number else 0):
            raise BadInputError(f"the zip members overlap or leave room for hidden bytes; {AGAIN}")
        file.seek(info.header_offset + 26)
        name_bytes, extra_bytes = struct.unpack("<HH", file.read(4))
        position = info.header_offset + 30 + name_bytes + extra_bytes + info.compress_size
    if not 0 <= end - position <= _MAX_GAP:
        raise BadInputError(f"the sizes of the zip members do not add up to the file; {AGAIN}")


def _root(names: list[str]) -> str:
    """The top folder of the archive, with its slash, once other kinds of zip file are told apart."""
    inner = [name.partition("/")[2] for name in names]
    if any(name == "constants.pkl" or name.startswith("code/") for name in inner):
        raise BadInputError(f"a TorchScript program, which carries code; {_RESAVE}")
    if any(name in ("archive_format", "serialized_exported_program.json") for name in (*names, *inner)):
        raise BadInputError(f"an exported program (.pt2), which carries its own graph; {_RESAVE}")
    pickles = [name for name in names if name.rpartition("/")[2] == "data.pkl"]
    if not pickles and all(name.endswith(".npy") for name in names):
        raise BadInputError("NumPy arrays (.npz); make tensors of them with torch.from_numpy and save their state_dict")
    if not pickles:
        raise BadInputError(
            f"a zip file that torch.save did not write (no data.pkl, but {listing([*map(printable, names)])}); if one "
            "of these is the model file, unpack it and give that"
        )
    if len(pickles) > 1 or pickles[0].count("/") != 1:
        raise BadInputError(f"a zip file whose data.pkl is not the one that torch.save writes; {_RESAVE}")
    return pickles[0].removesuffix("data.pkl")
