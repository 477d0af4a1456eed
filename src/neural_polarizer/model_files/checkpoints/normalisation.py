"""A normalisation that lies beside a network in its file: taken where the names tell what it does, else told."""

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import Tensor

from neural_polarizer.errors import BadInputError, listing, printable
from neural_polarizer.model_files.checkpoints.naming import SPARE


@dataclass(frozen=True)
class Inside:
    """A normalisation that a file holds: mean and deviation in units of [0, 1], and the names of its tensors."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    names: frozenset[str]


def normalisation_inside(tensors: Mapping[str, Tensor], wanted: Collection[str]) -> Inside | None:
    """Mean and deviation in a file of a network behind its normalisation, such as ``0.mean`` and ``0.std``.

    A variance will do for the deviation, also that of a batch norm of three channels without a scale.
    None where the file has no such pair, several that differ, or the network itself has tensors of these names.
    """
    own, names = {end for name in wanted for end in _ends(name)}, set(wanted)
    small = [each for each, value in tensors.items() if value.numel() <= 3 and each not in own]
    means = [name for name in small if names.isdisjoint(_ends(name))]
    both = [(name, spread) for name in means for spread in _spreads(name) if spread in tensors]
    found = {_statistics(tensors, *pair) for pair in both}
    if len(found) != 1 or None in found:
        return None
    ((mean, std),) = (each for each in found if each is not None)
    if not all(map(math.isfinite, mean + std)) or min(std) <= 0:
        return None
    counters = (f"{name.removesuffix(_RUNNING)}num_batches_tracked" for name, _ in both if name.endswith(_RUNNING))
    beside = (each for each in counters if each in tensors and names.isdisjoint(_ends(each)))
    return Inside(mean, std, frozenset((*(name for pair in both for name in pair), *beside)))


def check_left_out(before: Mapping[str, Tensor], after: Mapping[str, Tensor], wanted: Collection[str]) -> None:
    """Refuse small layers of three channels that the network leaves over: they may normalise, but do not tell how."""
    taken = {id(value) for value in after.values()}
    layers: dict[str, list[str]] = {}
    for name, value in before.items():
        copied = any(end in wanted for end in _ends(name))  # of an average of the network, or of its teacher
        if id(value) not in taken and value.ndim and not copied and not SPARE.search(name):
            layers.setdefault(name.rpartition(".")[0], []).append(name)
    odd = []
    for names in layers.values():
        sizes = [before[name].numel() for name in names]
        means = [name for name in names if _spreads(name) and not name.endswith(_RUNNING)]
        if (3 in sizes and max(sizes) <= 9) or means:
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


_MAX_PREFIX = 8  # parts of a name in front of the network's own
_RUNNING = "running_mean"
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
    norm = name.endswith(_RUNNING)
    if mean is None or std is None or min(std) < 0 or (norm and f"{name.removesuffix(_RUNNING)}weight" in tensors):
        return None
    unit = 255.0 if max(map(abs, mean)) > 1 else 1.0  # of pixels of 0 to 255
    if "var" in spread.rpartition(".")[2].lower():
        std = tuple(math.sqrt(each + (_EPSILON if norm else 0)) for each in std)
    mean, std = (tuple(float(f"{each / unit:.7g}") for each in values) for values in (mean, std))
    return mean, std


def _three(value: Tensor) -> tuple[float, ...] | None:
    """A number a channel; None where it is something else."""
    if value.numel() not in (1, 3) or not value.is_floating_point():
        return None
    numbers = tuple(map(float, value.flatten().tolist())) * (3 // value.numel())
    return numbers if all(map(math.isfinite, numbers)) else None
