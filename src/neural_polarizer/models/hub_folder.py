"""What a folder of Hugging Face's ``transformers``, or of timm, says about the image classifier in it; JSON is data."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neural_polarizer.errors import BadInputError, refusing
from neural_polarizer.models.architecture import MAX_OPTION, OPTIONS, Architecture
from neural_polarizer.models.build import skeleton
from neural_polarizer.models.hugging_face import SUFFIX, checked_config, class_name, strict_json
from neural_polarizer.models.preprocessing import Preprocessing

PREFIX = "transformers:"
CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
ALL_PROCESSORS = "processor_config.json"  # that of the images among others, since transformers 5
WEIGHTS = tuple(each + end for each in ("model.safetensors", "pytorch_model.bin") for end in ("", ".index.json"))
MAX_JSON_BYTES = 8 << 20  # the names of 21,000 classes, twice, need 2 MB
MAX_SIDE = 2048
_NAMES = frozenset(("id2label", "label2id"))
_OF_NO_USE = frozenset(("_name_or_path", "transformers_version", "torch_dtype", "dtype", "num_labels"))
_TIMM_NAME = re.compile(r"[a-z0-9_.]{1,200}")
# Arguments of timm's that do not change what a trained network computes, or that the weights tell anyway.
_NO_OPTION = frozenset(("num_classes", "in_chans", "drop_rate", "drop_path_rate", "pretrained", "features_only"))
_RESAMPLING: Mapping[int, str] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}


@dataclass(frozen=True, kw_only=True)
class HubFolder:
    """What a folder says about its model, all of it checked."""

    architecture: str  # ``transformers:CLASS``, or ``timm:NAME`` with its options
    config: str | None  # what ``build_classifier`` needs, as JSON; None for timm
    weights: Path  # the file of weights, or the index of several
    classes: tuple[str, ...] | None  # their names in the order of the logits, None if the folder has none
    preprocessing: Preprocessing | None  # None if the folder does not tell


def why_no_classifier(folder: Path) -> str | None:
    """What is wrong with the ``config.json`` of the folder; None where it is an image classifier's."""
    try:
        config = _read(folder / CONFIG)
        if _is_timm_config(config) or SUFFIX in class_name(config):
            return None
    except BadInputError as error:
        return str(error)
    return f"its {CONFIG} names no image classifier (architectures: ...{SUFFIX})"


def read_folder(folder: Path) -> HubFolder:
    """Read what a folder that ``save_pretrained`` or timm wrote says; its weights are left to the caller.

    Raises:
        BadInputError: a file is missing, too large or no strict JSON, or asks for what cannot be done safely.
    """
    config = _read(folder / CONFIG)
    if _is_timm_config(config):
        return _timm_folder(folder, config)
    kind = class_name(config)
    if SUFFIX not in kind or not kind.isidentifier():
        raise BadInputError(f"{folder / CONFIG}: 'architectures' names no image classifier (...{SUFFIX})")
    weights = _weights(folder)
    kept = {name: value for name, value in config.items() if name not in _NAMES | _OF_NO_USE and value is not None}
    text = json.dumps(kept, sort_keys=True)
    try:
        checked_config(text)
    except BadInputError as error:
        raise BadInputError(f"{folder / CONFIG}: {error}") from None
    return HubFolder(
        architecture=f"{PREFIX}{kind}",
        config=text,
        weights=weights,
        classes=_classes(config),
        preprocessing=_preprocessing(folder),
    )


def _timm_folder(folder: Path, config: Mapping[str, Any]) -> HubFolder:
    weights = _weights(folder)
    try:
        architecture, preprocessing = _timm_architecture(config), _timm_preprocessing(config)
    except BadInputError as error:
        raise BadInputError(f"{folder / CONFIG}: {error}") from None
    return HubFolder(
        architecture=architecture,
        config=None,
        weights=weights,
        classes=_timm_classes(config),
        preprocessing=preprocessing,
    )


def _is_timm_config(config: Mapping[str, Any]) -> bool:
    """Whether timm wrote it: it names an ``architecture``."""
    return isinstance(config.get("architecture"), str)


def _timm_architecture(config: Mapping[str, Any]) -> str:
    """``timm:NAME``, with the arguments that it was made with."""
    name, arguments = config["architecture"], config.get("model_args") or {}
    if not _TIMM_NAME.fullmatch(name):
        raise BadInputError("its 'architecture' is no name of timm's")
    if not isinstance(arguments, dict):
        raise BadInputError("its 'model_args' are no arguments")
    options = {}
    for key, value in arguments.items():
        if key in _NO_OPTION or (key == "global_pool" and value == _pooling(name)):
            continue
        side = value[0] if isinstance(value, list) and len(value) == 2 and value[0] == value[1] else value
        if key not in OPTIONS["timm"] or type(side) is not int or not 1 <= side <= MAX_OPTION:
            raise BadInputError(
                f"its 'model_args' change {key[:80]!r}, for which --arch has no option; give the file of weights with "
                "--arch FILE.py:NAME, a function that calls timm.create_model"
            )
        options[key] = side
    return str(Architecture("timm", name, tuple(sorted(options.items()))))


def _pooling(name: str) -> object:
    """How the network of timm's pools before its head where nobody says otherwise; None where it does not tell."""
    network = skeleton(f"timm:{name}", 2)
    pools = [getattr(holder, "global_pool", None) for holder in (network, getattr(network, "head", None))]
    return next((getattr(pool, "pool_type", pool) for pool in pools if pool is not None), None)


def _timm_classes(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    names = config.get("label_names") or _told(config).get("label_names")
    if not isinstance(names, list) or not names or not all(type(name) is str for name in names):
        return None
    return tuple(names) if len(set(names)) == len(names) else None


def _timm_preprocessing(config: Mapping[str, Any]) -> Preprocessing | None:
    told = _told(config)
    if "mean" not in told or "std" not in told:
        return None
    try:
        mean, std = (tuple(map(float, told[name])) for name in ("mean", "std"))
        size = (config.get("model_args") or {}).get("img_size")  # what the network was made for, as timm takes it
        if size is None and "input_size" in told:
            size = told["input_size"][1:]
        return Preprocessing(
            source="its config.json",
            **_usable(mean, std),
            image_size=_sides(*size) if isinstance(size, list) else _size(size),
            resampling=str(told.get("interpolation", "bilinear"))[:40],
            cropped=float(told.get("crop_pct") or 1) < 1 and told.get("crop_mode", "center") == "center",
        )
    except (KeyError, TypeError, ValueError, OverflowError):
        raise BadInputError("its mean, std or input_size cannot be used; correct them, or give --profile") from None


def _told(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The pretrained configuration, which earlier versions of timm wrote without a name of its own."""
    inner = config.get("pretrained_cfg")
    return inner if isinstance(inner, dict) else config


def _weights(folder: Path) -> Path:
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise BadInputError(f"{folder}: holds none of {', '.join(WEIGHTS)}; save the model there by save_pretrained")


def _classes(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    names, numbers = config.get("id2label"), config.get("label2id")
    if not names and isinstance(numbers, dict):
        names = {str(number): name for name, number in numbers.items()}
    if not names or not isinstance(names, dict) or {str(index) for index in range(len(names))} != names.keys():
        return None
    return tuple(str(names[str(index)]) for index in range(len(names)))


def _preprocessing(folder: Path) -> Preprocessing | None:
    path, among = folder / PROCESSOR, folder / ALL_PROCESSORS
    if path.exists():
        told = _read(path)
    elif among.exists() and isinstance(found := _read(among).get("image_processor"), dict):
        path, told = among, found
    else:
        return None
    if told.get("do_flip_channel_order"):
        raise BadInputError(f"{path}: swaps the channels (do_flip_channel_order), which is not supported")
    crop = told.get("crop_size") if told.get("do_center_crop") else None
    size = told.get("size") if told.get("do_resize", True) else None
    try:
        return Preprocessing(
            source=f"its {path.name}",
            **_normalisation(told),
            image_size=_size(crop or size),
            resampling=_RESAMPLING.get(told.get("resample", 2), "unknown"),
            cropped=bool(crop or told.get("crop_pct")),
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError, OverflowError):
        raise BadInputError(
            f"{path}: its mean, std, size or scale cannot be used; correct it, or remove the file and give --profile"
        ) from None


def _normalisation(told: Mapping[str, Any]) -> dict[str, tuple[float, ...]]:
    """Mean and std in units of [0, 1] that do what the processor does to bytes: scale, shift and normalise."""
    scale = 255 * float(told.get("rescale_factor", 1 / 255)) if told.get("do_rescale", True) else 255.0
    offset = 1.0 if told.get("rescale_offset") else 0.0
    mean: tuple[float, ...] = (0.0,) * 3
    std: tuple[float, ...] = (1.0,) * 3
    if told.get("do_normalize", True):
        mean, std = _channels(told["image_mean"]), _channels(told["image_std"])
    if told.get("include_top"):  # EfficientNet's processor then divides a second time
        std = tuple(one * one for one in std)
    return _usable(tuple((one + offset) / scale for one in mean), tuple(one / scale for one in std))


def _usable(mean: tuple[float, ...], std: tuple[float, ...]) -> dict[str, tuple[float, ...]]:
    """Both, for three channels; impossible ones are refused."""
    fit = len(mean) == len(std) and len(mean) in (1, 3) and all(map(math.isfinite, mean + std)) and min(std) > 0
    if not fit:
        raise ValueError(mean, std)
    return {"mean": mean * (3 // len(mean)), "std": std * (3 // len(std))}


def _channels(value: Any) -> tuple[float, ...]:
    values = value if isinstance(value, list) else [value] * 3
    if len(values) != 3 or not all(isinstance(one, (int, float)) for one in values):
        raise ValueError(value)
    return tuple(map(float, values))


def _size(value: Any) -> tuple[int, int] | None:
    if value is None:
        return None
    if isinstance(value, dict) and {"height", "width"} <= value.keys():
        return _sides(value["height"], value["width"])
    side = value["shortest_edge"] if isinstance(value, dict) else value
    return _sides(side, side)


def _sides(height: Any, width: Any) -> tuple[int, int]:
    if not all(type(side) is int and 1 <= side <= MAX_SIDE for side in (height, width)):
        raise ValueError(height, width)
    return height, width


def _read(path: Path) -> dict[str, Any]:
    with refusing(f"{path}: cannot be read", OSError, ValueError):
        if not path.is_file():  # a pipe would make us wait
            raise BadInputError(f"{path}: no such file")
        if path.stat().st_size > MAX_JSON_BYTES:
            raise BadInputError(f"{path}: larger than {MAX_JSON_BYTES >> 20} MiB, too large for a configuration")
        text = path.read_text(encoding="utf-8-sig")  # as editors on Windows save it
    try:
        return strict_json(text)
    except BadInputError as error:
        raise BadInputError(f"{path}: cannot be read ({error})") from None
