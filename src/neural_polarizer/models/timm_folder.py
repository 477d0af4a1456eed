"""What the ``config.json`` that timm pushes to a hub says of its model; it is data."""

import math
import re
from collections.abc import Mapping
from typing import Any

from neural_polarizer.errors import BadInputError
from neural_polarizer.models.architecture import MAX_OPTION, OPTIONS, Architecture
from neural_polarizer.models.preprocessing import Preprocessing

_NAME = re.compile(r"[a-z0-9_.]{1,200}")
# arguments that do not change what a trained network computes, or that the weights tell anyway
_OF_NO_USE = frozenset(("num_classes", "in_chans", "drop_rate", "drop_path_rate", "pretrained", "features_only"))


def is_timm_config(config: Mapping[str, Any]) -> bool:
    """Whether timm wrote it: it names an ``architecture``."""
    return isinstance(config.get("architecture"), str)


def timm_architecture(config: Mapping[str, Any]) -> str:
    """``timm:NAME``, with the arguments that it was made with.

    Raises:
        BadInputError: the name is none of timm's, or an argument has no option here.
    """
    name, arguments = config["architecture"], config.get("model_args") or {}
    if not _NAME.fullmatch(name):
        raise BadInputError("its 'architecture' is no name of timm's")
    if not isinstance(arguments, dict):
        raise BadInputError("its 'model_args' are no arguments")
    options = {}
    for key, value in arguments.items():
        if key in _OF_NO_USE:
            continue
        side = value[0] if isinstance(value, list) and len(value) == 2 and value[0] == value[1] else value
        if key not in OPTIONS["timm"] or type(side) is not int or not 1 <= side <= MAX_OPTION:
            raise BadInputError(
                f"its 'model_args' change {key[:80]!r}, for which --arch has no option; give the file of weights with "
                "--arch FILE.py:NAME, a function that calls timm.create_model"
            )
        options[key] = side
    return str(Architecture("timm", name, tuple(sorted(options.items()))))


def timm_classes(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The names of the classes in the order of the logits, if it has them."""
    names = config.get("label_names") or _told(config).get("label_names")
    if not isinstance(names, list) or not names or not all(type(name) is str for name in names):
        return None
    return tuple(names) if len(set(names)) == len(names) else None


def timm_preprocessing(config: Mapping[str, Any]) -> Preprocessing | None:
    """How its images are prepared; None where it does not tell.

    Raises:
        BadInputError: what it tells is impossible.
    """
    told = _told(config)
    if "mean" not in told or "std" not in told:
        return None
    try:
        mean, std = (tuple(map(float, told[name])) for name in ("mean", "std"))
        size = tuple(told["input_size"][1:]) if "input_size" in told else None
        cropped = float(told.get("crop_pct") or 1) < 1 and told.get("crop_mode", "center") == "center"
        usable = len(mean) == len(std) and len(std) in (1, 3) and all(map(math.isfinite, mean + std)) and min(std) > 0
    except (KeyError, TypeError, ValueError, OverflowError):
        mean, std, size, cropped, usable = (), (), None, False, False
    if size is not None:
        usable = usable and len(size) == 2 and all(type(side) is int and 1 <= side <= MAX_OPTION for side in size)
    if not usable:
        raise BadInputError("its mean, std or input_size cannot be used; correct them, or give --profile")
    return Preprocessing(
        source="its config.json",
        mean=mean * (3 // len(mean)),
        std=std * (3 // len(std)),
        image_size=None if size is None else (size[0], size[1]),
        resampling=str(told.get("interpolation", "bilinear"))[:40],
        cropped=cropped,
    )


def _told(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The pretrained configuration, which earlier versions of timm wrote without a name of its own."""
    inner = config.get("pretrained_cfg")
    return inner if isinstance(inner, dict) else config
