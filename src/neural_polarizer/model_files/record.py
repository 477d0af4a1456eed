"""What a model file says about its model: the JSON record in its metadata, which is checked as data."""

import json
import math
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn

from neural_polarizer.errors import BadInputError, printable
from neural_polarizer.layer.folding.fold import Folded
from neural_polarizer.layer.polarizer import Polarizer, Structure
from neural_polarizer.layer.surgery import PolarizedModule
from neural_polarizer.settings import told

KEY = "neural_polarizer"
POLARIZER_PREFIX = "polarizer."
MAX_SIDE = 2048  # of the images that a record asks for
_LATER = {"later": True}  # for ``settings.told``: the files of other models stay as they were, byte for byte
MAX_NAME = 1_000  # letters of what a record names, and layers that it changes


@dataclass(frozen=True, kw_only=True)
class ModelRecord:
    """What one must know to use a file of weights."""

    architecture: str  # a name that ``models.build`` knows, with its options
    num_classes: int  # K
    width: int | None = None  # of the first stage, for architectures that have one
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)  # of the normalisation inside the model, a channel
    std: tuple[float, ...] = (1.0, 1.0, 1.0)  # likewise
    image_size: tuple[int, int] | None = None  # height and width of the training images, if known
    classes: tuple[str, ...] | None = None  # class names, if known
    site: str | None = None  # where the polarizer sits, None for a model without one
    # Of a folded model, layers that its architecture has not: (name, kind of ``models.adapted``).
    changes: tuple[tuple[str, str], ...] = field(default=(), metadata=_LATER)
    structure: Structure = field(default="conv-bn", metadata=_LATER)  # of the polarizer; saving reads it off the layer
    # Of a classifier of transformers, what builds it, as JSON (``models.hugging_face``).
    config: str | None = field(default=None, metadata=_LATER)
    # SHA-256 of the user's own code that builds it; ``architecture`` then only says how it was called.
    definition: str | None = field(default=None, metadata=_LATER)
    grey: bool = field(default=False, metadata=_LATER)  # whether the network takes one channel, the mean of the three
    # Key, attribute or index of the logits, where the network gives more than a tensor.
    output: str | None = field(default=None, metadata=_LATER)
    # Whether the network gives one logit z, which stands for the two logits (0, z).
    yes_no: bool = field(default=False, metadata=_LATER)


def versions() -> dict[str, str]:
    """Versions of what computes."""
    from neural_polarizer import __version__

    return {"neural_polarizer": __version__, "torch": str(torch.__version__), "python": platform.python_version()}


def with_structure(record: ModelRecord, model: nn.Module) -> ModelRecord:
    """``record`` with the structure of the polarizer in ``model``."""
    layers = [module.polarizer for module in model.modules() if isinstance(module, PolarizedModule)]
    structures: list[Structure] = [layer.structure for layer in layers if isinstance(layer, Polarizer)]
    return replace(record, structure=structures[0] if structures else "conv-bn")


def folded_record(record: ModelRecord, folded: Folded) -> ModelRecord:
    """The record of a folded model, from that of the purified one."""
    site = record.site if folded.site_kept else None
    return replace(record, site=site, changes=(*record.changes, *folded.changes.items()))


def metadata_of(record: ModelRecord) -> dict[str, str]:
    """The metadata of a file of weights: the record as JSON, under ``KEY``.

    It does not say what wrote the file, so that the hash of the same model stays the same from release to release.
    """
    return {KEY: json.dumps(told(record))}


def read_record(text: str | None, file: Path) -> ModelRecord | None:
    """The record from what a file's metadata has under ``KEY``; None for a file that is not ours.

    Raises:
        BadInputError: it is damaged, or asks for what no model of ours has.
    """
    if text is None:
        return None
    try:
        found: dict[str, Any] = json.loads(text)
        given = [name for name in _FORMS if name in _NEEDED or found.get(name) is not None]
        record = ModelRecord(**{name: _FORMS[name](found[name]) for name in given})
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError) as error:
        said = printable(f"{type(error).__name__}: {error}", 200)
        raise BadInputError(f"{file}: its record of the model is damaged ({said})") from None
    if not (len(record.mean) == len(record.std) == 3 and all(map(math.isfinite, record.mean + record.std))):
        raise BadInputError(f"{file}: its record of the model is damaged (mean and std are not three numbers each)")
    if not all(1 <= side <= MAX_SIDE for side in record.image_size or ()):
        raise BadInputError(f"{file}: its record of the model is damaged (image_size is not within 1..{MAX_SIDE})")
    named = (record.architecture, record.site, record.definition, record.output, *chain.from_iterable(record.changes))
    if max(len(name or "") for name in named) > MAX_NAME or len(record.changes) > MAX_NAME:
        raise BadInputError(f"{file}: its record of the model is damaged (a name or list of more than {MAX_NAME})")
    return record


def _structure(name: Any) -> Structure:
    if name not in get_args(Structure):
        raise ValueError(f"no structure {name!r} of a polarizer is known")
    return name


_NEEDED = ("architecture", "num_classes", "mean", "std")
_FORMS: Mapping[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("architecture", "site", "config", "definition", "output"), str),
    **dict.fromkeys(("num_classes", "width"), int),
    **dict.fromkeys(("mean", "std"), lambda values: tuple(map(float, values))),
    **dict.fromkeys(("grey", "yes_no"), lambda value: value is True),
    "image_size": lambda size: (int(size[0]), int(size[1])),
    "classes": lambda names: tuple(map(str, names)),
    "changes": lambda pairs: tuple((str(name), str(kind)) for name, kind in pairs),
    "structure": _structure,
}
"""By the name of a field, what makes its value of what the JSON has."""
