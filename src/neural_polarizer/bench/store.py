"""Where records and artefacts lie: a folder, or any address that fsspec knows."""

import json
import shutil
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import fsspec

from neural_polarizer.cache import damage, home, key_of, sealed
from neural_polarizer.errors import BadInputError, EnvironmentFaultError
from neural_polarizer.files import atomic_path, output_folder, set_aside, sole_use, write_text

RECORDS, ARTEFACTS = "records", "artefacts"
_HASH = "sha256"


@dataclass(frozen=True)
class Store:
    """The results of the benchmark: ``records/ID.json``, and ``artefacts/ID/`` for what other cells need.

    Every file is written whole or not at all: under another name and then renamed in a folder, in one request
    elsewhere. What has been damaged since is found by its hash and counts as missing; in a folder it is set aside when
    it is computed again.
    """

    url: str  # a folder, or an address such as ``s3://bucket/results`` (the package for its protocol must be installed)

    @cached_property
    def folder(self) -> Path | None:
        """The folder, if it is one of this machine."""
        return None if "://" in self.url else Path(self.url)

    @cached_property
    def _remote(self) -> tuple[Any, str]:
        try:
            return fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise BadInputError(f"{self.url}: {error}") from None

    def prepare(self) -> None:
        """Make sure that records can be written."""
        if self.folder is not None:
            output_folder(self.folder / RECORDS)
            return
        files, root = self._remote
        try:
            files.makedirs(f"{root}/{RECORDS}", exist_ok=True)
        except OSError as error:
            raise BadInputError(f"{self.url}: cannot be written to ({error})") from None

    def alone(self) -> AbstractContextManager[None]:
        """Keep other runs away from the folder (``files.sole_use``); at other addresses nobody can."""
        return nullcontext() if self.folder is None else sole_use(self.folder / RECORDS)

    def records(self, ids: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Those of the records that are there and whole, by id."""
        if self.folder is not None:
            folder = self.folder / RECORDS
            there = {path.name: path for path in folder.iterdir()} if folder.is_dir() else {}
            found = {name: there[f"{name}.json"].read_bytes() for name in ids if f"{name}.json" in there}
        else:
            files, _ = self._remote
            listed = {path.rpartition("/")[2]: path for path in self._listed(RECORDS)}
            wanted = {listed[f"{name}.json"]: name for name in ids if f"{name}.json" in listed}
            found = {wanted[path]: text for path, text in files.cat(list(wanted)).items()} if wanted else {}
        return {name: record for name, text in found.items() if (record := _parsed(text)) is not None}

    def write(self, record: dict[str, Any]) -> None:
        """Keep one record, in the place of an older one."""
        text = json.dumps(record | {_HASH: key_of(record)}, indent=1, sort_keys=True, allow_nan=False) + "\n"
        name = f"{RECORDS}/{record['id']}.json"
        if self.folder is not None:
            path = self.folder / name
            if path.exists() and _parsed(path.read_bytes()) is None:
                set_aside(path, f"it is no record, or not the one whose hash it holds as {_HASH}")
            write_text(path, text)
            return
        files, root = self._remote
        try:
            files.pipe(f"{root}/{name}", text.encode())
        except OSError as error:
            raise EnvironmentFaultError(f"{self.url}: cannot write {name} ({error})") from error

    def keep(self, name: str, paths: Iterable[Path]) -> None:
        """Keep files as the artefacts of the cell ``name``."""
        if self.folder is not None:
            place = output_folder(self.folder / ARTEFACTS / name)
            sealed(place)
            for path in paths:
                with atomic_path(place / path.name) as temporary:
                    shutil.copyfile(path, temporary)
            return
        files, root = self._remote
        files.makedirs(f"{root}/{ARTEFACTS}/{name}", exist_ok=True)
        for path in paths:
            files.put_file(str(path), f"{root}/{ARTEFACTS}/{name}/{path.name}")

    def with_artefacts(self, names: Iterable[str], wanted: Iterable[str]) -> set[str]:
        """Which of the cells ``names`` have the files ``wanted`` among their artefacts, undamaged."""
        listed = tuple(wanted)
        if self.folder is not None:
            place = self.folder / ARTEFACTS
            whole = {name for name in names if all((place / name / each).is_file() for each in listed)}
            return {name for name in whole if damage(place / name) is None}
        files, root = self._remote
        return {name for name in names if all(files.exists(f"{root}/{ARTEFACTS}/{name}/{each}") for each in listed)}

    def fetch(self, name: str) -> Path:
        """A folder of this machine with the artefacts of the cell ``name``."""
        if self.folder is not None:
            place = self.folder / ARTEFACTS / name
            if not place.is_dir():
                raise BadInputError(f"{place}: the artefacts of this cell are gone; delete its record and run again")
            return place
        files, _ = self._remote
        listed = {path.rpartition("/")[2]: path for path in self._listed(f"{ARTEFACTS}/{name}")}
        # What has been computed anew there gets another folder here.
        there = {each: str(files.checksum(path)) for each, path in listed.items()}
        key = key_of({"url": self.url, "cell": name, "files": there})[:24]
        place = output_folder(home() / "fetched" / key)
        for target, path in ((place / each, path) for each, path in listed.items()):
            if not target.exists():
                with atomic_path(target) as temporary:
                    files.get_file(path, str(temporary))
        return place

    def _listed(self, name: str) -> list[str]:
        files, root = self._remote
        try:
            return [str(path) for path in files.ls(f"{root}/{name}", detail=False)]
        except FileNotFoundError:
            return []


def _parsed(text: bytes) -> dict[str, Any] | None:
    """A record, or None where a file is none or has been changed: such a cell is computed anew."""
    try:
        found = json.loads(text)
    except ValueError:
        return None
    if not isinstance(found, dict) or "status" not in found:
        return None
    expected = found.pop(_HASH, None)
    return found if expected in (None, key_of(found)) else None  # records of earlier versions have no hash
