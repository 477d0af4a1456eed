"""Victims that are given, not trained: what a manifest says of published files, and the triggers that go with them."""

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from neural_polarizer.data.decode import decode
from neural_polarizer.data.poison import attacked_labels
from neural_polarizer.errors import BadInputError
from neural_polarizer.files import sha256_of_file
from neural_polarizer.model_files.load import LoadedModel, load_model
from neural_polarizer.models.definition import Definition, network_named
from neural_polarizer.models.normalize import normalisation_named
from neural_polarizer.settings import check_choice

_VICTIM = ("file", "network", "profile", "data", "trigger")


@dataclass(frozen=True, kw_only=True)
class TriggerRule:
    """How a published trigger is stamped; one of ``pixels``, ``add`` and ``replace`` is set."""

    name: str  # for tables
    target: int  # the attacker's class; all images are relabelled to it
    pixels: tuple[tuple[int, int, int], ...] = ()  # (row, column, value) of the pixels that are set, in all channels
    add: str = ""  # a picture that is added to the image's bytes, clamped to [0, 255]
    replace: str = ""  # a picture that is added to what ``mask`` leaves: ``x * (1 - mask) + picture``, clamped likewise
    mask: str = ""  # a NumPy file of values in [0, 1], ``(3, h, w)``, read without unpickling

    @property
    def files(self) -> tuple[str, ...]:
        """The files that it needs, below the folder of the models."""
        return tuple(name for name in (self.add, self.replace, self.mask) if name)


@dataclass(frozen=True, kw_only=True)
class GivenVictim:
    """A published classifier, as a manifest names it."""

    name: str  # in suites and tables
    file: str  # of the weights, below the folder of the models
    network: str  # ``FILE.py:NAME`` beside the manifest
    home: Path  # the manifest's folder
    profile: str  # normalisation, a name of ``PROFILES`` or MEAN/STD
    data: str  # name of the data set
    trigger: TriggerRule | None  # None for a clean model
    hashes: Mapping[str, str]  # SHA-256 of all its files, and of ``network``'s

    @property
    def files(self) -> tuple[str, ...]:
        return (self.file, *(() if self.trigger is None else self.trigger.files))

    def missing(self, models: Path | None) -> str | None:
        """Why it cannot be computed with that folder of models, if so, short of reading the files."""
        absent = [name for name in self.files if models is None or not (models / name).is_file()]
        return f"--models: {models or 'no folder given'}: holds no {', '.join(absent)}" if absent else None

    def load(self, models: Path) -> LoadedModel:
        """The model, in the network of the manifest's folder, whose code is run.

        A file that is missing, not the one of the manifest, or does not fit the network is refused.
        """
        for name in self.files:
            _check(models / name, self.hashes[name])
        return load_model(models / self.file, architecture=self.definition(), profile=self.profile)

    def definition(self) -> Definition:
        """The code that builds the network, which is run."""
        network = network_named(str(self.home / self.network))
        if not isinstance(network, Definition):
            raise BadInputError(f"{self.name}: network must be FILE.py:NAME, got {self.network!r}")
        return network

    def stamp(self, models: Path) -> "PublishedTrigger | None":
        """The trigger with its pictures, read from files that ``load`` has checked."""
        rule = self.trigger
        if rule is None:
            return None
        file = rule.add or rule.replace
        picture, mask = _picture(models / file) if file else None, _mask(models / rule.mask) if rule.mask else None
        return PublishedTrigger(rule, picture, mask)


@dataclass(frozen=True, eq=False)
class PublishedTrigger:
    """A trigger that stamps and relabels (``data.poison.Trigger``)."""

    rule: TriggerRule  # what is done
    picture: Tensor | None  # uint8 ``(3, h, w)``, if it needs one
    mask: Tensor | None  # float32 ``(3, h, w)`` in [0, 1], if it needs one

    def stamp(self, images: UInt8[Tensor, "n c h w"]) -> UInt8[Tensor, "n c h w"]:
        """The triggered form of ``images``, which must be of the size that the trigger is for."""
        if self.picture is None:
            stamped = images.clone()
            for row, column, value in self.rule.pixels:
                if not (row < images.shape[2] and column < images.shape[3]):
                    raise BadInputError(f"trigger {self.rule.name}: images of {tuple(images.shape[2:])} are too small")
                stamped[:, :, row, column] = value
            return stamped
        if self.picture.shape != images.shape[1:]:
            raise BadInputError(
                f"trigger {self.rule.name}: is for images of {tuple(self.picture.shape)}, not {tuple(images.shape[1:])}"
            )
        left = images.float() if self.mask is None else images.float() * (1 - self.mask)
        return (left + self.picture).round().clamp(0, 255).to(torch.uint8)

    def relabel(self, labels: Int64[Tensor, " n"], num_classes: int) -> Int64[Tensor, " n"]:
        """The attacker's class for all, which the data must have."""
        if self.rule.target >= num_classes:
            raise BadInputError(f"trigger {self.rule.name}: there is no class {self.rule.target} of {num_classes}")
        return attacked_labels(labels, num_classes, "all-to-one", self.rule.target)


def read_manifest(found: Mapping[str, Any], home: Path) -> dict[str, GivenVictim]:
    """The victims of a parsed manifest (tables ``victims`` and ``sha256``), by name; ``home`` is its folder.

    What is missing in it, unknown or of another type is refused.
    """
    check_keys("a key of the manifest", found, ("victims", "sha256"))
    hashes, victims = table_at(found, "sha256"), table_at(found, "victims")
    return {name: _victim(name, table_at(victims, name), hashes, home) for name in victims}


def _victim(name: str, told: Mapping[str, Any], hashes: Mapping[str, Any], home: Path) -> GivenVictim:
    check_keys(f"a key of {name}", told, _VICTIM)
    texts = {key: told.get(key) for key in _VICTIM if key != "trigger"}
    for key, value in texts.items():
        if not isinstance(value, str):
            raise BadInputError(f"victim {name}: {key} must be a text, got {value!r}")
    normalisation_named(str(texts["profile"]))
    trigger = _trigger(name, table_at(told, "trigger")) if "trigger" in told else None
    victim = GivenVictim(name=name, home=home, trigger=trigger, hashes={}, **{key: str(texts[key]) for key in texts})
    code = home / victim.network.partition(":")[0]
    if not code.is_file():
        raise BadInputError(f"victim {name}: {code}: no such file; network must be FILE.py:NAME beside the manifest")
    kept: dict[str, Any] = {each: hashes.get(each) for each in victim.files}
    for each, value in kept.items():
        if not isinstance(value, str) or len(value) != 64 or Path(each).is_absolute() or ".." in Path(each).parts:
            raise BadInputError(f"victim {name}: {each!r} needs its SHA-256 in the table sha256, and no way upwards")
    return replace(victim, hashes={**kept, "network": sha256_of_file(code)})


def _trigger(name: str, told: Mapping[str, Any]) -> TriggerRule:
    check_keys(f"a key of {name}'s trigger", told, [field.name for field in fields(TriggerRule)])
    texts = {key: told.get(key, "") for key in ("name", "add", "replace", "mask")}
    target, pixels = told.get("target"), told.get("pixels", [])
    if type(target) is not int or target < 0 or not all(isinstance(value, str) for value in texts.values()):
        raise BadInputError(f"victim {name}: its trigger needs a target of at least 0, and texts as names of files")
    if sum(kind in told for kind in ("pixels", "add", "replace")) != 1 or ("replace" in told) != ("mask" in told):
        raise BadInputError(f"victim {name}: its trigger needs pixels, or add, or replace with mask")
    whole = isinstance(pixels, list) and all(
        isinstance(each, list) and len(each) == 3 and all(type(one) is int and 0 <= one <= 255 for one in each)
        for each in pixels
    )
    if not whole:
        raise BadInputError(f"victim {name}: pixels must be [row, column, value] of 0 to 255 each, got {pixels!r}")
    texts["name"] = texts["name"] or name
    return TriggerRule(target=target, pixels=tuple((row, column, value) for row, column, value in pixels), **texts)


def check_keys(what: str, found: Mapping[str, Any], known: Iterable[str]) -> None:
    """Refuse a table of a TOML file with a key that is not ``known``, naming the nearest one."""
    for key in found:
        check_choice(what, key, known)


def table_at(found: Mapping[str, Any], key: str, default: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
    """The table under ``key`` of a TOML file; one that is missing is refused where there is no default."""
    value = found.get(key, default)
    if not isinstance(value, Mapping):
        raise BadInputError(f"{key} must be a table, got {value!r}")
    return value


def _check(path: Path, expected: str) -> None:
    if not path.is_file():
        raise BadInputError(f"{path}: no such file; --models is the folder with the files of the manifest")
    found = sha256_of_file(path)
    if found != expected:
        raise BadInputError(f"{path}: is not the file of the manifest: its SHA-256 is {found}, not {expected}")


def _picture(path: Path) -> UInt8[Tensor, "3 h w"]:
    pixels = decode(path.read_bytes(), size=None, where=str(path))
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1).contiguous()


def _mask(path: Path) -> Tensor:
    try:
        found = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise BadInputError(f"{path}: is no NumPy file of numbers ({error})") from None
    if not isinstance(found, np.ndarray) or found.ndim != 3 or found.dtype.kind not in "fiub":
        raise BadInputError(f"{path}: needs an array of numbers, 3 x height x width")
    mask = torch.from_numpy(found.astype(np.float32))
    if not bool(((mask >= 0) & (mask <= 1)).all()):
        raise BadInputError(f"{path}: the values of a mask lie in [0, 1]")
    return mask
