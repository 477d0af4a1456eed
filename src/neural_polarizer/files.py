"""Files that are either whole or not there, folders held by one run, and errors in words when the disk refuses."""

import codecs
import errno
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from neural_polarizer.errors import BadInputError, EnvironmentFaultError, printable, refusing

if sys.platform != "win32":
    import fcntl

LFS_POINTER = b"version https://git-lfs"
"""What a file begins with that Git LFS has not fetched."""
DAMAGED = "damaged"
"""Where damaged files go, beside their place."""
UNFINISHED = ".unfinished"
"""A file that tells that those beside it are of a run that has not come to its end."""
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
"""What an error of a full disk has as its number."""


def at_home(text: str) -> str:
    """``text`` with the user's home folder in place of a ``~`` at its beginning, as a shell would have it."""
    return os.path.expanduser(text) if text == "~" or text.startswith("~/") else text  # noqa: PTH111 (not a path yet)


def user_path(path: str | os.PathLike[str]) -> Path:
    """A path that a user wrote, with ``~`` as ``at_home`` reads it.

    Raises:
        BadInputError: it is something else, or no path that this system takes.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise BadInputError(f"expected a path, got {type(path).__name__}")
    found = Path(at_home(os.fspath(path)))
    said = f"{printable(str(found))}: cannot be used"
    with refusing(said, ValueError, then="; choose another path"):  # of a null byte
        try:
            found.lstat()
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise BadInputError(f"{said}: {error.strerror}; choose another path") from None
    return found


def text_of(data: bytes) -> str:
    """A text file's bytes in words; PowerShell writes UTF-16.

    Raises:
        UnicodeDecodeError: it is neither UTF-8 nor UTF-16.
    """
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return data.decode("utf-16" if utf16 else "utf-8-sig")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it is flushed to disk and renamed over ``path``.

    Its name is always the same, so that what a killed run has left of it is written over by the next one; two runs
    that write the same file wait for each other.

    Raises:
        BadInputError: there is no such folder.
        EnvironmentFaultError: the disk is full, or writing failed for another reason of the machine's.
    """
    temporary = path.with_name(f".{path.name}.part")
    try:
        # A link of that name, in a folder that came from somebody else, must not lead us to another file.
        descriptor = _claimed(temporary, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), lambda: None)
        try:
            os.ftruncate(descriptor, 0)
            yield temporary
            os.fsync(descriptor)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)
    except OSError as error:
        if not path.parent.is_dir():
            raise BadInputError(f"cannot write {path}: its folder is not there; make it first") from None
        raise EnvironmentFaultError(f"cannot write {path}: {error.strerror or error}") from error


def _claimed(path: Path, flags: int, waiting: Callable[[], None] | None) -> int:
    """A descriptor of ``path`` that one run at a time has, until it is closed or the process ends in whatever way.

    ``flags`` are those of ``os.open``. ``waiting`` is called if another run has it, before waiting for that; None
    raises ``BlockingIOError`` instead.
    """
    while True:
        descriptor = os.open(path, flags, 0o666)
        try:
            if not _locked(descriptor, wait=False):
                if waiting is None:
                    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))  # noqa: TRY301 (closes it below)
                waiting()
                _locked(descriptor, wait=True)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), path.stat()):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # who had it before has renamed or removed it: there is another one now, or none


def _locked(descriptor: int, *, wait: bool) -> bool:
    """Lock it, if that is possible now; where files cannot be locked at all, nobody else has a lock either."""
    if sys.platform != "win32":
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in (errno.EBADF, errno.ENOLCK, errno.ENOTSUP):  # what network file systems answer
                raise
    return True


@contextmanager
def sole_use(folder: Path, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold ``folder``, which must exist, for this run alone, until the block or the process ends.

    ``waiting`` is called if another run holds it, before waiting for its end; None raises instead.

    Raises:
        EnvironmentFaultError: another run holds it.
    """
    if sys.platform == "win32":  # where a folder cannot be opened
        yield
        return
    try:
        descriptor = _claimed(folder, os.O_RDONLY, waiting)
    except BlockingIOError:
        raise EnvironmentFaultError(
            f"{folder}: another run is at work in this folder; wait for its end, or choose another --out"
        ) from None
    try:
        yield
    finally:
        os.close(descriptor)


def damage_in(folder: Path, hashes: Mapping[str, str]) -> str | None:
    """Which of the files ``hashes`` in ``folder`` has another SHA-256 than that, or is gone; None if none has."""
    for name, expected in hashes.items():
        try:
            found = sha256_of_file(folder / name)
        except OSError as error:
            return f"{name}: {error.strerror}"
        if found != expected:
            return f"{name} has the SHA-256 {found}, but was written with {expected}"
    return None


def set_aside(path: Path, reason: str) -> None:
    """Move a damaged file into the folder ``damaged`` beside it, with a text that says why."""
    place = path.parent / DAMAGED
    try:
        place.mkdir(exist_ok=True)
        path.replace(place / path.name)
    except OSError as error:
        raise EnvironmentFaultError(f"cannot set aside {path}, which is damaged: {error.strerror}") from error
    write_text(place / f"{path.name}.reason.txt", f"{reason}\n")


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` atomically, as UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically; NaN and infinity are refused."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        BadInputError: the file is missing, not JSON, or not an object.
    """
    with refusing(f"{path}: cannot be read as JSON", OSError, ValueError, RecursionError):
        if not path.exists():
            raise BadInputError(f"{path}: no such file")
        value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise BadInputError(f"{path}: expected a JSON object, found a {type(value).__name__}")
    return value


def output_folder(path: Path, remedy: str = "choose another --out") -> Path:
    """Create ``path`` if need be and prove that it can be written to, before any work is spent.

    Raises:
        BadInputError: it is a file, or it cannot be created or written to; ``remedy`` says what to do then.
        EnvironmentFaultError: the disk is full.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):  # without a name where the system allows it: nothing stays after a kill
            pass
    except OSError as error:
        if error.errno in DISK_FULL:
            raise EnvironmentFaultError(f"cannot write to {path}: the disk is full") from error
        raise BadInputError(f"cannot write to the output folder {path}: {error.strerror}; {remedy}") from None
    return path


def check_free(folder: Path, names: Collection[str]) -> None:
    """Refuse a folder in which somebody has a file of one of the ``names`` that a run would write.

    Those that a run has left which was killed (``writing``) may be written over.

    Raises:
        BadInputError: there is such a file.
    """
    other = next((name for name in names if os.path.lexists(folder / name)), None)
    if other is not None and not (folder / UNFINISHED).exists():
        raise BadInputError(f"{folder / other}: is there already and would be lost; move it, or choose another folder")


@contextmanager
def writing(folder: Path, names: Collection[str]) -> Iterator[None]:
    """For the time that the block writes the files ``names``, mark them as those of a run without an end.

    Raises:
        BadInputError: somebody has a file of such a name there.
        EnvironmentFaultError: the mark cannot be written.
    """
    check_free(folder, names)
    write_text(folder / UNFINISHED, "The run that wrote here has not come to its end; start it again, or remove all.\n")
    try:
        yield
    except BaseException:
        if any(os.path.lexists(folder / name) for name in names):
            raise
        (folder / UNFINISHED).unlink(missing_ok=True)
        raise
    (folder / UNFINISHED).unlink(missing_ok=True)


@contextmanager
def result_folder(path: Path) -> Iterator[None]:
    """``output_folder`` for a piece of work, held alone; if that fails, one made for it that is still empty goes again.

    Raises:
        BadInputError: it is a file, or it cannot be created or written to.
        EnvironmentFaultError: the disk is full, or another run is at work there.
    """
    made = not path.exists()
    output_folder(path)
    try:
        with sole_use(path):
            yield
    except BaseException:
        if made:
            with suppress(OSError):  # it holds something
                path.rmdir()
        raise


def sha256_of_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, as hexadecimal text."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
