"""What a record says of files, images and figures, each beside what was found."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from types import MappingProxyType
from typing import Any, TypeVar

from neural_polarizer.data.images import ImageSet
from neural_polarizer.errors import BadInputError
from neural_polarizer.files import sha256_of_file
from neural_polarizer.metrics import Metrics
from neural_polarizer.report.values import number

RATES = ("acc", "asr", "ra")

Made = TypeVar("Made")


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that a record says, beside what was found."""

    what: str  # the file, the images or the figure
    recorded: str | None = None  # as the record has it, in short; None where it says nothing
    found: str | None = None  # likewise; None where nothing was found
    holds: bool | None = None  # None if it could not be checked
    remark: str = ""  # one line, why it does not hold or could not be checked


def or_why(make: Callable[[], Made], remedy: str = "") -> Made | str:
    """What ``make`` gives; or why it cannot be made, with the remedy."""
    try:
        return make()
    except BadInputError as error:
        return f"{error}{remedy}"


def file_checks(
    folder: Path, hashes: Mapping[str, Any], needed: Sequence[str], extra: Sequence[str] = ()
) -> list[Check]:
    """Compare the files of ``folder`` with their SHA-256 in its record: those ``needed``, and ``extra`` that some have.

    Records of older versions have few hashes or none. One that names a file outside of the folder is refused.
    """
    outside = [name for name in hashes if PurePath(name).name != name or name in ("", "..") or "\\" in name]
    if outside:
        raise BadInputError(f"{folder}: the record is damaged: it names {outside[0]!r} as a file of this folder")
    there = [name for name in extra if (folder / name).exists()]
    return [_file(folder / name, hashes.get(name)) for name in dict.fromkeys((*needed, *there, *hashes))]


def _file(path: Path, recorded: Any) -> Check:
    known = recorded if isinstance(recorded, str) else None
    if not path.exists():
        return Check(what=path.name, recorded=short(known), holds=False, remark="is missing")
    try:
        found = sha256_of_file(path)
    except OSError as error:
        return Check(what=path.name, recorded=short(known), holds=False, remark=f"cannot be read ({error.strerror})")
    return hash_check(path.name, known, found, "has been modified since the run")


def plain_check(what: str, holds: bool, otherwise: str) -> Check:
    """A check without values; ``otherwise`` is the remark where it does not hold."""
    return Check(what=what, holds=holds, remark="" if holds else otherwise)


def hash_check(what: str, recorded: Any, found: str, otherwise: str) -> Check:
    """Compare SHA-256 hashes; ``otherwise`` is the remark where they differ."""
    if not isinstance(recorded, str):
        return Check(what=what, found=short(found), remark="the record has no hash to compare with")
    return replace(plain_check(what, recorded == found, otherwise), recorded=short(recorded), found=short(found))


def rate_checks(
    recorded: Mapping[str, Any],
    found: Metrics | str,
    tolerance: float,
    suffix: str = "",
    unmeasured: Mapping[str, str] = MappingProxyType({}),
) -> list[Check]:
    """ACC, ASR and RA, in [0, 1], beside those measured anew; or why none, or why some (``unmeasured``), were not.

    ``suffix`` is for the names; rates may differ by the ``tolerance``.
    """
    checks = []
    for name in RATES:
        old, new = number(recorded.get(name)), None if isinstance(found, str) else getattr(found, name)
        reason = found if isinstance(found, str) else unmeasured.get(name, "was not measured")
        checks.append(figure_check(f"{name.upper()}{suffix}", old, new, tolerance, reason))
    return [check for check in checks if check.recorded is not None or check.found is not None]


def figure_check(what: str, recorded: float | None, found: float | None, tolerance: float, missing: str) -> Check:
    """Compare two shares of 1; ``missing`` is the remark where nothing was found."""
    remark = ""
    holds = None
    if recorded is None:
        remark = "the record has no such figure"
    elif found is None:
        remark = missing
    else:
        holds = abs(recorded - found) <= tolerance
        remark = "" if holds else f"differs by {100 * abs(recorded - found):.2f} points"
    return Check(what=what, recorded=_percent(recorded), found=_percent(found), holds=holds, remark=remark)


def image_check(what: str, recorded: Any, images: ImageSet | str) -> Check:
    """Compare the hash of images with the recorded one; a text is why there are no images."""
    if isinstance(images, str):
        return Check(what=what, recorded=short(recorded), remark=images)
    return hash_check(what, recorded, images.sha256(), f"{images.source} does not hold those of the run")


def short(sha256: Any) -> str | None:
    """The beginning of a hash, which is enough to tell two apart."""
    return sha256[:12] if isinstance(sha256, str) else None


def _percent(rate: float | None) -> str | None:
    return None if rate is None else f"{100 * rate:.2f} %"
