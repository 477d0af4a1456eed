"""A normalisation that lies beside a network in its file: taken where the names tell what it does, else told."""

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import Tensor

from neural_polarizer.errors import BadInputError
from neural_polarizer.model_files.checkpoints.naming import is_spare
from neural_polarizer.model_files.checkpoints.wording import listing, printable


@dataclass(frozen=True)
class Inside:
    """A normalisation that a file holds: mean and deviation in units of [0, 1], and the names of its tensors."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    names: frozenset[str]


def normalisation_inside(tensors: Mapping[str, Tensor], wanted: Collection[str]) -> Inside | None:
    """Mean and deviation in a file of a network behind its normalisation, such as ``0.mean`` and ``0.std``.

    A variance will do for the deviation, and a batch norm of three channels is worked out with its scale and shift.
    None where the file has no such pair, several that differ, or the network itself has tensors of these names.
    """
    own = {end for name in wanted for end in _ends(name)}
    pairs = {
        (name, spread): _statistics(tensors, name, spread)
        for name, value in tensors.items()
        for spread in (_spreads(name) if value.numel() <= 3 and not (name in own or _is_in(name, wanted)) else ())
        if spread in tensors
    }
    found = set(pairs.values())
    if len(found) != 1 or None in found:
        return None
    ((mean, std),) = (each for each in found if each is not None)
    if not all(map(math.isfinite, mean + std)) or min(std) <= 0:
        return None
    places = {name.removesuffix(_BATCH_NORM[0]) for name, _ in pairs if name.endswith(_BATCH_NORM[0])}
    layers = {f"{place}{part}" for place in places for part in _BATCH_NORM}
    return Inside(mean, std, frozenset(name for pair in pairs for name in pair) | (layers & tensors.keys()))


def check_left_out(before: Mapping[str, Tensor], after: Mapping[str, Tensor], wanted: Collection[str]) -> None:
    """Refuse small layers of three channels beside the network, which may normalise its images but do not tell how.

    Args:
        before: the tensors of the file.
        after: those of them that the network takes.
        wanted: names in the network.

    Raises:
        BadInputError: there are some; the user can say what they do.
    """
    taken = {id(value) for value in after.values()}
    layers: dict[str, list[str]] = {}
    for name, value in before.items():
        # what is in the network, too, is of an average of it, or of its teacher
        if id(value) not in taken and value.ndim and not is_spare(name) and not _is_in(name, wanted):
            layers.setdefault(name.rpartition(".")[0], []).append(name)
    odd = []
    for names in layers.values():
        sizes = [before[name].numel() for name in names]
        if (3 in sizes and max(sizes) <= 9) or any(map(_spreads, names)):
            odd += names
    if odd:
        raise BadInputError(
            f"it holds {listing([*map(printable, odd)])} beside the network; if that normalises the images, say how "
            "with --profile MEAN/STD, else give --profile none"
        )


def _ends(name: str) -> list[str]:
    """The name, and what is left of it without its first parts."""
    parts = name.split(".", _MAX_PREFIX)
    return [".".join(parts[first:]) for first in range(len(parts))]


def _is_in(name: str, wanted: Collection[str]) -> bool:
    """Whether the name, or the name without a prefix, is one of the network's."""
    return any(end in wanted for end in _ends(name))


_MAX_PREFIX = 8  # parts of a name in front of the network's own
_BATCH_NORM = ("running_mean", "running_var", "weight", "bias", "num_batches_tracked")
_EPSILON = 1e-5  # of torch's batch norms, unless told otherwise
_MEAN = re.compile(r"((?:\w{0,40}_)?)(mean|mu)(s?(?:_\w{0,40})?)", re.IGNORECASE)
_SPREADS = ("std", "sigma", "stdev", "stddev", "std_dev", "var", "variance")


def _spreads(name: str) -> tuple[str, ...]:
    """What the deviation may be called where the mean is called ``name``, as pixel_std beside pixel_mean."""
    place, dot, last = name.rpartition(".")
    found = _MEAN.fullmatch(last)
    if found is None:
        return ()
    words = [word.upper() if found[2].isupper() else word for word in _SPREADS]
    return tuple(f"{place}{dot}{found[1]}{word}{found[3]}" for word in words)


def _statistics(tensors: Mapping[str, Tensor], name: str, spread: str) -> tuple[tuple[float, ...], ...] | None:
    """Mean and deviation, in units of [0, 1], as the two tensors tell; None where they are no such numbers."""
    mean, std = _three(tensors[name]), _three(tensors[spread])
    if mean is None or std is None or min(std) < 0:
        return None
    unit = 255.0 if max(map(abs, mean)) > 1 else 1.0  # of pixels of 0 to 255
    place = name.removesuffix(_BATCH_NORM[0])
    if "var" in spread.rpartition(".")[2].lower():
        std = tuple(math.sqrt(each + (0 if place == name else _EPSILON)) for each in std)
    if place != name:
        plain = {"weight": Tensor([1.0]), "bias": Tensor([0.0])}
        scale, shift = (_three(tensors.get(place + part, value)) for part, value in plain.items())
        if scale is None or shift is None or min(scale) <= 0:
            return None
        std = tuple(each / by for each, by in zip(std, scale, strict=True))
        mean = tuple(each - by * more for each, by, more in zip(mean, std, shift, strict=True))
    mean, std = (tuple(float(f"{each / unit:.7g}") for each in values) for values in (mean, std))
    return mean, std


def _three(value: Tensor) -> tuple[float, ...] | None:
    """A number a channel; None where it is something else."""
    if value.numel() not in (1, 3) or not value.is_floating_point():
        return None
    numbers = tuple(map(float, value.flatten().tolist())) * (3 // value.numel())
    return numbers if all(map(math.isfinite, numbers)) else None
