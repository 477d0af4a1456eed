"""Image classifiers of Hugging Face's ``transformers`` from their JSON alone; nothing is fetched.

A configuration comes from a stranger, so it may only fill in numbers and words: the classes are those of the installed
library, chosen by name from its list of image classifiers, and what could make them fetch or run other code
(``auto_map``, attention kernels, backbones, quantisation) never reaches them.
"""

import inspect
import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from neural_polarizer.errors import BadInputError, needing, refusing

SUFFIX = "ForImageClassification"
MAX_NUMBER = 100_000  # of channels, layers, pixels
MAX_ITEMS = 1_000
MAX_DEPTH = 5  # of lists in lists
_TIMM = "timm_wrapper"  # its configuration names networks of timm, which may lie on a hub


class _LogitsOnly:
    """In front of a class of transformers: pixels in, logits out, and the names of its tensors stay."""

    def forward(self, pixels: Float[Tensor, "n c h w"]) -> Tensor:
        return super().forward(pixel_values=pixels).logits  # type: ignore[misc]


def build_classifier(config: str, num_classes: int) -> nn.Module:
    """A randomly initialised classifier of transformers, from JSON of ``models.hub_folder`` or of a record.

    Shape: float ``(n, 3, h, w)``, normalised, to logits ``(n, num_classes)``.

    Raises:
        BadInputError: transformers is not installed or does not know the model, or the configuration is impossible.
    """
    told = checked_config(config)
    with needing("hf"):
        import transformers
    named = f"{told['model_type']!r}, {class_name(told)!r}"
    try:
        settings_class = transformers.CONFIG_MAPPING[told["model_type"]]
        found = transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING[settings_class]
        kinds = found if isinstance(found, tuple) else (found,)
        kind = next(kind for kind in kinds if kind.__name__ == class_name(told))
    except (KeyError, StopIteration):
        raise BadInputError(f"transformers {transformers.__version__} has no image classifier {named}") from None
    if not _takes_pixels_alone(kind):
        raise BadInputError(f"{named}: does not take an image as it is; use a classifier that takes pixel_values alone")
    own = _own_settings(settings_class) - _own_settings(transformers.PretrainedConfig)
    settings = {name: value for name, value in told.items() if name in own}
    nested = [name for name, value in settings.items() if isinstance(value, dict)]
    if nested or getattr(settings_class, "sub_configs", None):
        raise BadInputError(f"{named}: has a configuration within its configuration, which is not supported")
    if settings.get("num_channels", 3) != 3:
        raise BadInputError(f"{named}: takes images of other than 3 channels, which is not supported")
    with refusing(f"{named}: transformers cannot build it from its configuration", Exception):
        # The library looks up what it knows of a model by the name of its class and of the module that it is from.
        logits_only = type(kind.__name__, (_LogitsOnly, kind), {"__module__": kind.__module__})
        return logits_only(settings_class(**settings, num_labels=num_classes))


def file_names(network: nn.Module) -> dict[str, str]:
    """By the name of a tensor in ``network`` (of ``build_classifier``), its name in the files of transformers.

    Since version 5 the two differ for some models, as the files keep the names that they always had.

    Raises:
        BadInputError: the model's files hold other tensors than the model itself.
    """
    own = network.state_dict()
    try:
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError:
        return {name: name for name in own}
    written = {id(value): name for name, value in revert_weight_conversion(network, dict(own)).items()}
    if len(written) != len(own) or any(id(value) not in written for value in own.values()):
        raise BadInputError(f"{type(network).__name__}: its files hold tensors in another form, which is not supported")
    return {name: written[id(value)] for name, value in own.items()}


def _takes_pixels_alone(kind: Any) -> bool:
    parameters = inspect.signature(kind.forward).parameters
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = {name for name, one in parameters.items() if one.default is one.empty and one.kind not in variable}
    return "pixel_values" in parameters and needed <= {"self", "pixel_values"}


def _own_settings(kind: Any) -> set[str]:
    """The settings that a class of configurations declares."""
    if is_dataclass(kind):
        return {field.name for field in fields(kind)}
    return set(inspect.signature(kind.__init__).parameters)


def class_name(config: Mapping[str, Any]) -> str:
    """The class that a configuration names; empty if it names none or several."""
    named = config.get("architectures")
    return named[0] if isinstance(named, list) and len(named) == 1 and isinstance(named[0], str) else ""


def checked_config(text: str) -> dict[str, Any]:
    """The configuration; refused unless it is nothing but words and numbers of sensible size, and asks for no code."""
    config = strict_json(text)
    if "auto_map" in config:
        raise BadInputError("asks for code of its own ('auto_map'), which is never run")
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or not model_type.replace("-", "_").isidentifier():
        raise BadInputError("has no 'model_type'")
    if model_type == _TIMM:
        raise BadInputError("is a network of timm: give its file of weights, with --arch timm:NAME")
    for name, value in config.items():
        if not _is_sensible(value):
            raise BadInputError(f"its entry {name[:80]!r} is no number or word of sensible size, nor a list of such")
    return config


def _is_sensible(value: Any, depth: int = 0) -> bool:
    if isinstance(value, list):
        return depth < MAX_DEPTH and len(value) <= MAX_ITEMS and all(_is_sensible(item, depth + 1) for item in value)
    if isinstance(value, dict):  # refused later, where the model would take it
        return depth == 0 and len(value) <= MAX_ITEMS
    if isinstance(value, str):
        return len(value) <= MAX_ITEMS
    return value is None or isinstance(value, bool) or abs(value) <= MAX_NUMBER


def strict_json(text: str) -> dict[str, Any]:
    """A JSON object without duplicate names, NaN or infinity; anything else is refused."""
    with refusing("no strict JSON", ValueError, RecursionError):
        value = json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=no_number)
    if not isinstance(value, dict):
        raise BadInputError("no JSON object")
    return value


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name appears twice")
    return found


def no_number(word: str) -> None:
    """Refuse what JSON has no form for: NaN and infinity."""
    raise ValueError(f"{word} is not a number")
