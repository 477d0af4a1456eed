"""Weights in several files, which an index names; the index may be an attack as much as they."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from neural_polarizer.errors import BadInputError, listing, printable, refusing
from neural_polarizer.files import read_json, sha256_of_file
from neural_polarizer.model_files.checkpoints.reader import MAX_FILE_BYTES, Checkpoint, read_checkpoint
from neural_polarizer.model_files.checkpoints.state_dict import Fits, behind, prefix_remarks, strip_wrappers
from neural_polarizer.model_files.checkpoints.tensors import MAX_TENSORS

INDEX = ".index.json"
_MAX_INDEX_BYTES = 8 << 20
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,199}\.(safetensors|bin)", re.ASCII)


def read_weights(path: Path, *, weights: str | None = None, fits: Fits | None = None) -> Checkpoint:
    """``read_checkpoint``; of the index of a model in several files, all of these together.

    Raises:
        BadInputError: as there, or index and files do not go together.
    """
    if not path.name.endswith(INDEX):
        return read_checkpoint(path, weights=weights, fits=fits)
    tensors: dict[str, Tensor] = {}
    hashes: dict[str, str] = {}
    threats, findings = list[str](), list[str]()
    for shard, inside in _shards(path).items():
        held = read_checkpoint(shard)
        names, removed = strip_wrappers(inside)  # as the reader has done with this part of them
        different = sorted(map(printable, held.tensors.keys() ^ names.keys()))
        if different:
            raise BadInputError(f"{shard}: holds other tensors than {path.name} says ({listing(different)})")
        tensors |= {removed + name: value for name, value in held.tensors.items()}
        hashes[shard.name] = held.sha256
        threats += held.threats
        findings += [each for each in held.findings if each not in prefix_remarks(removed)]
    tensors, removed = strip_wrappers(tensors)
    findings += prefix_remarks(removed)
    if weights is not None:
        tensors, taken = behind(tensors, weights)
        findings.append(taken)
    said = (tuple(dict.fromkeys(each)) for each in (threats, findings))
    return Checkpoint(tensors, {}, _together(hashes), "several", *said)


def sha256_of_weights(path: Path) -> str:
    """What ``read_weights`` gives as the SHA-256 of this file, or of all that this index names."""
    if not path.name.endswith(INDEX):
        return sha256_of_file(path)
    return _together({shard.name: sha256_of_file(shard) for shard in _shards(path)})


def _together(hashes: Mapping[str, str]) -> str:
    """One hash for several files: that of the lines which ``sha256sum`` prints for them in the order of their names."""
    lines = "".join(f"{hashes[name]}  {name}\n" for name in sorted(hashes))
    return hashlib.sha256(lines.encode()).hexdigest()


def _shards(index: Path) -> dict[Path, dict[str, None]]:
    """The files that ``index`` names, which lie beside it, and the names of what each has to hold."""
    with refusing(f"{index}: cannot be read", OSError):
        if not index.is_file() or index.stat().st_size > _MAX_INDEX_BYTES:  # a pipe would make us wait
            raise BadInputError(
                f"{index}: no file, or larger than {_MAX_INDEX_BYTES >> 20} MiB, too large for an index"
            )
        told = read_json(index).get("weight_map")
        if not isinstance(told, dict) or not told or len(told) > MAX_TENSORS:
            raise BadInputError(f"{index}: has no 'weight_map' of 1 to {MAX_TENSORS:,} tensors; get it again")
        for name in told.values():
            if not isinstance(name, str) or not _PLAIN_NAME.fullmatch(name):
                raise BadInputError(f"{index}: {printable(str(name))} is no file of weights beside it; do not use it")
        files = [index.parent / name for name in sorted(set(told.values()))]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise BadInputError(f"{index}: lacks its files {listing(missing)}; get them, too")
        if sum(file.stat().st_size for file in files) > MAX_FILE_BYTES:
            raise BadInputError(f"{index}: its files together are larger than {MAX_FILE_BYTES >> 30} GiB")
    found: dict[Path, dict[str, None]] = {file: {} for file in files}
    for name, file in told.items():
        found[index.parent / file][name] = None
    return found
