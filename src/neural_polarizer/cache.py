"""Where trained things are kept for later runs: one folder each, named by a hash of all that they depend on."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from neural_polarizer.errors import BadInputError
from neural_polarizer.files import (
    damage_in,
    output_folder,
    read_json,
    set_aside,
    sha256_of_file,
    sole_use,
    write_bytes,
    write_json,
)

VARIABLE = "POLARIZER_HOME"
SEAL = "sha256.json"
"""The hashes of all files of a finished folder; written last."""
_ABOUT, _HASH = "about", "sha256"


def home() -> Path:
    """``$POLARIZER_HOME``, or ``~/.cache/neural_polarizer``."""
    return Path(os.environ.get(VARIABLE) or Path.home() / ".cache" / "neural_polarizer")


def key_of(request: Mapping[str, Any]) -> str:
    """A hash of a JSON object, whatever the order of its names."""
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


@contextmanager
def entry(kind: str, request: Mapping[str, Any], waiting: Callable[[], None] = lambda: None) -> Iterator[Path]:
    """The folder for what ``request`` describes, made if need be; other runs that want it wait until the block ends.

    ``kind`` is the sort of thing, such as "clean", and the folder above; ``request`` all that the result depends on, as
    JSON; ``waiting`` is called if this run has to wait.

    Raises:
        BadInputError: the folder cannot be written to.
        EnvironmentFaultError: the disk is full.
    """
    remedy = f"set {VARIABLE} to a folder for trained models"
    folder = output_folder(home() / kind / key_of(request)[:24], remedy)
    with sole_use(folder, waiting):
        yield folder


def seal(folder: Path, names: Iterable[str]) -> None:
    """Note that ``folder`` is finished, with the hashes of its files ``names``."""
    write_json(folder / SEAL, {name: sha256_of_file(folder / name) for name in names})


def sealed(folder: Path) -> bool:
    """Whether ``folder`` is finished and whole; the files of a damaged one are set aside, with the reason."""
    reason = damage(folder)
    if reason is not None:
        for path in [each for each in folder.iterdir() if each.is_file()]:
            set_aside(path, reason)
    return (folder / SEAL).is_file()


def damage(folder: Path) -> str | None:
    """What has become of the files of a sealed folder; None if they are as they were, or there is no seal."""
    if not (folder / SEAL).exists():
        return None
    try:
        return damage_in(folder, read_json(folder / SEAL))
    except BadInputError as error:
        return str(error)


def whole_record(path: Path, written: Iterable[str]) -> dict[str, Any] | None:
    """The record of a finished run; None where it is damaged: it and the files ``written`` are set aside then.

    Raises:
        BadInputError: it cannot be read, and none of these files tells that it was a run's.
    """
    try:
        return read_json(path)
    except BadInputError as error:
        beside = [each for name in written if (each := path.parent / name).is_file() and each != path]
        if not (beside and path.is_file()):
            raise
        for each in (path, *beside):
            set_aside(each, str(error))
        return None


def set_damaged_aside(path: Path, record: Mapping[str, Any], written: Iterable[str]) -> bool:
    """Whether files ``written`` by a finished run, whose record lies at ``path``, have been damaged or are gone.

    All its files are set aside then, with the reason. One that was exported since is not the run's to make again.

    Raises:
        BadInputError: the record has no table of hashes.
    """
    folder, files = path.parent, record.get("files", {})
    if not isinstance(files, Mapping):
        raise BadInputError(f"{path}: is damaged: 'files' is no table; choose another --out or remove that folder")
    hashes = {name: known for name, known in files.items() if Path(name).name == name}
    reason = damage_in(folder, {name: hashes[name] for name in written if name in hashes})
    if reason is None:
        return False
    for each in (path, *(folder / name for name in hashes)):
        if each.exists():
            set_aside(each, reason)
    return True


class Kept(NamedTuple):
    """Tensors from a file, and what it says about them."""

    tensors: dict[str, Tensor]
    about: dict[str, str]


def keep_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str] = MappingProxyType({})) -> None:
    """Write tensors with texts about them, and a hash by which ``kept_tensors`` finds damage."""
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    told = json.dumps({**about, _HASH: _hash_of(plain, about)})
    write_bytes(path, save(plain, metadata={_ABOUT: told}))  # one text, as safetensors orders several by chance


def kept_tensors(path: Path) -> Kept | None:
    """What ``keep_tensors`` wrote; None without a whole file of that name: a damaged one is set aside."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        about = json.loads(metadata[_ABOUT]) if _ABOUT in metadata else metadata
        expected, found = about.pop(_HASH, None), _hash_of(tensors, about)
        if expected in (None, found):  # files of earlier versions have none
            return Kept(tensors, about)
        reason = f"its values have the SHA-256 {found}, but was written with {expected}"
    except (SafetensorError, OSError, ValueError) as error:
        reason = str(error)
    set_aside(path, reason)
    return None


def cached_tensors(kind: str, request: Mapping[str, Any], make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """What ``make`` gives, computed at most once for the same ``request``; a damaged file is computed anew."""
    with entry(kind, request) as folder:
        path = folder / "tensors.safetensors"
        kept = kept_tensors(path)
        if kept is not None:
            return kept.tensors
        tensors = {name: value.detach().cpu().contiguous() for name, value in make().items()}
        keep_tensors(path, tensors)
        return tensors


def digest_tensors(digest: "hashlib._Hash", tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Add names, shapes and bytes to ``digest``."""
    for name, value in tensors:
        digest.update(f"{name} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _hash_of(tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(dict(about), sort_keys=True).encode())
    digest_tensors(digest, sorted(tensors.items()))
    return digest.hexdigest()
