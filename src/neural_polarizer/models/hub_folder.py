"""What a folder of Hugging Face's ``transformers``, or of timm, says about the image classifier in it; JSON is data."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neural_polarizer.errors import BadInputError
from neural_polarizer.models.hugging_face import SUFFIX, checked_config, class_name, strict_json
from neural_polarizer.models.preprocessing import Preprocessing
from neural_polarizer.models.timm_folder import is_timm_config, timm_architecture, timm_classes, timm_preprocessing

PREFIX = "transformers:"
CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
ALL_PROCESSORS = "processor_config.json"  # that of the images among others, since transformers 5
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
MAX_JSON_BYTES = 8 << 20  # the names of 21,000 classes, twice, need 2 MB
MAX_SIDE = 2048
_NAMES = frozenset(("id2label", "label2id"))
_OF_NO_USE = frozenset(("_name_or_path", "transformers_version", "torch_dtype", "dtype", "num_labels"))
_RESAMPLING: Mapping[int, str] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}


@dataclass(frozen=True, kw_only=True)
class HubFolder:
    """What a folder says about its model, all of it checked.

    Args:
        architecture: ``transformers:CLASS``, or ``timm:NAME`` with its options.
        config: what ``build_classifier`` needs, as JSON; None for timm.
        weights: the file of weights.
        classes: their names in the order of the logits, None if the folder has none.
        preprocessing: None if the folder does not tell.
    """

    architecture: str
    config: str | None
    weights: Path
    classes: tuple[str, ...] | None
    preprocessing: Preprocessing | None


def is_classifier_folder(folder: Path) -> bool:
    """Whether the folder holds a ``config.json`` of an image classifier of transformers or of timm."""
    try:
        config = _read(folder / CONFIG)
        return is_timm_config(config) or SUFFIX in class_name(config)
    except BadInputError:
        return False


def read_folder(folder: Path) -> HubFolder:
    """Read what a folder that ``save_pretrained`` or timm wrote says; its weights are left to the caller.

    Raises:
        BadInputError: a file is missing, too large or no strict JSON, or asks for what cannot be done safely.
    """
    config = _read(folder / CONFIG)
    if is_timm_config(config):
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
        classes=_classes(config.get("id2label")),
        preprocessing=_preprocessing(folder),
    )


def _timm_folder(folder: Path, config: Mapping[str, Any]) -> HubFolder:
    try:
        return HubFolder(
            architecture=timm_architecture(config),
            config=None,
            weights=_weights(folder),
            classes=timm_classes(config),
            preprocessing=timm_preprocessing(config),
        )
    except BadInputError as error:
        said = str(error)
        raise BadInputError(said if said.startswith(str(folder)) else f"{folder / CONFIG}: {said}") from None


def _weights(folder: Path) -> Path:
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise BadInputError(
        f"{folder}: holds none of {', '.join(WEIGHTS)}; save the model in one file (save_pretrained with a large "
        "max_shard_size)"
    )


def _classes(names: Any) -> tuple[str, ...] | None:
    if not isinstance(names, dict) or {str(index) for index in range(len(names))} != names.keys():
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
        mean, std = _normalisation(told)
        return Preprocessing(
            source=f"its {path.name}",
            mean=mean,
            std=std,
            image_size=_size(crop or size),
            resampling=_RESAMPLING.get(told.get("resample", 2), "unknown"),
            cropped=bool(crop or told.get("crop_pct")),
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError, OverflowError):
        raise BadInputError(
            f"{path}: its mean, std, size or scale cannot be used; correct it, or remove the file and give --profile"
        ) from None


def _normalisation(told: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std in units of [0, 1] that do what the processor does to bytes: scale, shift and normalise."""
    scale = 255 * float(told.get("rescale_factor", 1 / 255)) if told.get("do_rescale", True) else 255.0
    offset = 1.0 if told.get("rescale_offset") else 0.0
    mean: tuple[float, ...] = (0.0,) * 3
    std: tuple[float, ...] = (1.0,) * 3
    if told.get("do_normalize", True):
        mean, std = _channels(told["image_mean"]), _channels(told["image_std"])
    if told.get("include_top"):  # EfficientNet's processor then divides a second time
        std = tuple(one * one for one in std)
    mean, std = tuple((one + offset) / scale for one in mean), tuple(one / scale for one in std)
    if not all(map(math.isfinite, mean + std)) or min(std) <= 0:
        raise ValueError(told)
    return mean, std


def _channels(value: Any) -> tuple[float, ...]:
    values = value if isinstance(value, list) else [value] * 3
    if len(values) != 3 or not all(isinstance(one, (int, float)) for one in values):
        raise ValueError(value)
    return tuple(map(float, values))


def _size(value: Any) -> tuple[int, int] | None:
    if value is None:
        return None
    if isinstance(value, dict) and {"height", "width"} <= value.keys():
        height, width = value["height"], value["width"]
    else:
        height = width = value["shortest_edge"] if isinstance(value, dict) else value
    if not all(type(side) is int and 1 <= side <= MAX_SIDE for side in (height, width)):
        raise ValueError(value)
    return height, width


def _read(path: Path) -> dict[str, Any]:
    try:
        if not path.is_file():  # a pipe would make us wait
            raise BadInputError(f"{path}: no such file")
        if path.stat().st_size > MAX_JSON_BYTES:
            raise BadInputError(f"{path}: larger than {MAX_JSON_BYTES >> 20} MiB, too large for a configuration")
        return strict_json(path.read_text(encoding="utf-8-sig"))  # as editors on Windows save it
    except (OSError, ValueError) as error:
        if isinstance(error, BadInputError) and str(error).startswith(str(path)):
            raise
        raise BadInputError(f"{path}: cannot be read ({error})") from None
