"""Files that are either whole or not there, and errors in words when the disk refuses."""

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from neural_polarizer.errors import BadInputError, EnvironmentFaultError


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it is flushed to disk and renamed over ``path``.

    Raises:
        EnvironmentFaultError: the disk is full, or writing failed for another reason of the machine's.
    """
    temporary: Path | None = None
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise EnvironmentFaultError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


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
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInputError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise BadInputError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(value, dict):
        raise BadInputError(f"{path}: expected a JSON object, found a {type(value).__name__}")
    return value


def output_folder(path: Path) -> Path:
    """Create ``path`` if need be and prove that it can be written to, before any work is spent.

    Raises:
        BadInputError: it is a file, or it cannot be created or written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path, prefix=".probe"):
            pass
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise EnvironmentFaultError(f"cannot write to {path}: the disk is full") from error
        raise BadInputError(
            f"cannot write to the output folder {path}: {error.strerror}; choose another --out"
        ) from None
    return path


@contextmanager
def result_folder(path: Path) -> Iterator[None]:
    """``output_folder`` for a piece of work; if that fails, a folder made for it that is still empty goes again.

    Raises:
        BadInputError: it is a file, or it cannot be created or written to.
    """
    made = not path.exists()
    output_folder(path)
    try:
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
