"""Open a model file that may be an attack, and come back with tensors or with one line that says why not."""

import hashlib
import io
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from neural_polarizer.errors import BadInputError
from neural_polarizer.model_files.checkpoints.formats import detect
from neural_polarizer.model_files.checkpoints.legacy_reader import LegacyFile
from neural_polarizer.model_files.checkpoints.pickle_values import TensorRecord
from neural_polarizer.model_files.checkpoints.pickle_walk import walk
from neural_polarizer.model_files.checkpoints.safetensors_reader import read_header, read_tensors
from neural_polarizer.model_files.checkpoints.state_dict import Fits, behind, find_state_dict, strip_wrappers
from neural_polarizer.model_files.checkpoints.tensors import Storages, check_records, materialise
from neural_polarizer.model_files.checkpoints.wording import printable
from neural_polarizer.model_files.checkpoints.zip_reader import Source, TorchArchive

MAX_FILE_BYTES = 16 << 30
_MAX_METADATA_LENGTH = 200


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a model file holds; names and metadata are the file's own, so escape them before showing them.

    Args:
        tensors: contiguous tensors on the CPU, by name; tied tensors may share memory.
        metadata: what the file says about itself, never to be relied on.
        sha256: of exactly the bytes that the tensors come from.
        format: ``"safetensors"``, ``"torch-zip"`` or, from before PyTorch 1.6, ``"torch-legacy"``.
        findings: remarks in plain language, safe to show.
    """

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    sha256: str
    format: str
    findings: tuple[str, ...]


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
            return _read(file, weights, fits)
    except BadInputError as error:
        raise BadInputError(f"{printable(str(path), 4096)}: {error}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BadInputError(f"{printable(str(path), 4096)}: cannot be read ({reason}); check the path") from None


def _open(path: Path) -> io.BufferedReader:
    """Open a regular file; a FIFO or a device is refused without waiting for it."""
    _require_regular(path.stat().st_mode)
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    file = os.fdopen(descriptor, "rb")
    try:
        _require_regular(os.fstat(descriptor).st_mode)  # it may have been exchanged since
    except BadInputError:
        file.close()
        raise
    return file


def _require_regular(mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise BadInputError("a folder; give the model file inside it")
    if not stat.S_ISREG(mode):
        raise BadInputError("not a regular file but a pipe or a device; copy its content to a file")


def _read(file: io.BufferedReader, weights: str | None, fits: Fits | None) -> Checkpoint:
    # Every check runs twice: on the file, so that a bad one is refused before it is read whole,
    # and on the bytes that were hashed, which nobody can change in between.
    form = detect(file)
    if form == "safetensors":
        read_header(file)
        data = _read_all(file)
        metadata = read_header(io.BytesIO(data))
        tensors, prefix = strip_wrappers(read_tensors(data))
        findings: tuple[str, ...] = (f"the prefix {prefix} was removed from all names",) if prefix else ()
        if weights is not None:
            tensors, told = behind(tensors, weights)
            findings = (*findings, told)
    else:
        _plan(file, form, weights, fits)
        data = _read_all(file)
        plan = _plan(io.BytesIO(data), form, weights, fits)
        tensors = materialise(plan.records, plan.archive)
        metadata, findings = plan.metadata, plan.findings
    return Checkpoint(tensors, metadata, hashlib.sha256(data).hexdigest(), form, findings)


def _read_all(file: io.BufferedReader) -> bytes:
    size = file.seek(0, io.SEEK_END)
    if size > MAX_FILE_BYTES:
        raise BadInputError(f"larger than {MAX_FILE_BYTES >> 30} GiB; save only the model's state_dict")
    file.seek(0)
    return file.read(size)


@dataclass(frozen=True, eq=False)
class _Plan:
    """What will be read from a file of ``torch.save``, all of it checked."""

    archive: Storages
    records: dict[str, TensorRecord]
    metadata: dict[str, str]
    findings: tuple[str, ...]


def _plan(file: Source, form: str, weights: str | None, fits: Fits | None) -> _Plan:
    archive: TorchArchive | LegacyFile
    if form == "torch-zip":
        archive = TorchArchive(file)
        walked = walk(archive.pickle())
        findings = walked.findings
    else:
        archive = LegacyFile(file)
        walked, findings = archive.walked, archive.findings
    try:
        records, remarks = find_state_dict(walked.value, weights, fits)
        check_records(records, archive)
    except BadInputError as error:
        raise BadInputError("; ".join((str(error), *findings[:3]))) from None
    return _Plan(archive, records, _metadata(walked.value), findings + remarks)


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
