"""What files say of a model that is in memory."""

import math
from dataclasses import replace

from torch import nn

from neural_polarizer.layer.surgery import PolarizedModule
from neural_polarizer.model_files.record import ModelRecord
from neural_polarizer.models.definition import answer_of, definition_of
from neural_polarizer.models.normalize import Converted, Normalized, bare
from neural_polarizer.models.preact_resnet import PreActResNet18


def site_of(model: nn.Module) -> str | None:
    """Where the polarizer of ``model`` is, by the network's own names; None without one."""
    found = [(name, part.side) for name, part in bare(model).named_modules() if isinstance(part, PolarizedModule)]
    return f"{found[0][1]}:{found[0][0]}" if found else None


def record_of_model(
    model: nn.Module,
    num_classes: int,
    classes: tuple[str, ...] | None = None,
    image_size: tuple[int, int] | None = None,
    site: str | None = None,
    *,
    takes: tuple[int, int] | None = None,
) -> ModelRecord:
    """What is known of ``model``: all, if it was read from a file; else which code has built it.

    Its polarizer, if any, is at ``site``; None takes the name that ``site_of`` finds. It ``takes`` images of that size,
    whether or not they are those that it was trained with; None means ``image_size``.
    """
    site = site or site_of(model)
    origin = getattr(model, "model_record", None)
    if isinstance(origin, ModelRecord):
        size = image_size or origin.image_size
        return replace(origin, site=site, classes=classes or origin.classes, image_size=size)
    network = bare(model)
    record = ModelRecord(
        architecture="preactresnet18", num_classes=num_classes, classes=classes, image_size=image_size, site=site
    )
    if type(network) is PreActResNet18:  # a class derived from it may compute something else
        record = replace(record, width=network.conv1.out_channels)
    else:
        definition = definition_of(network)
        record = replace(record, architecture=definition.name, definition=definition.sha256)
    channels = 1  # or any other number, where no normalisation tells
    if isinstance(model, Normalized):
        channels, (mean, std) = model.mean.numel(), model.of_three()
        record = replace(record, mean=mean, std=std)
    if isinstance(model, Converted):
        return replace(record, grey=model.grey, output=model.output, yes_no=model.yes_no)
    return replace(record, grey=channels == 1 and _takes_one_channel(network, takes or image_size))


def _takes_one_channel(network: nn.Module, size: tuple[int, int] | None) -> bool:
    """Whether a network is for grey images, as its answer tells; where it gives none, its first convolution."""
    answer = answer_of(network, *(() if size is None else (size,)))
    conv = next((each for each in network.modules() if isinstance(each, nn.Conv2d)), None)
    if answer is None and conv is None:
        answer = answer_of(network, *_sizes_for_a_first_layer(network))
    if answer is not None:
        return answer[1] == 1
    return conv is not None and conv.in_channels == 1


def _sizes_for_a_first_layer(network: nn.Module) -> list[tuple[int, int]]:
    """Square images, of three channels or of one, whose values its first linear layer may take; else a row of one."""
    values = next((each.in_features for each in network.modules() if isinstance(each, nn.Linear)), 0)
    sides = [(math.isqrt(values // channels), channels) for channels in (3, 1)]
    squares = [(side, side) for side, channels in sides if channels * side * side == values > 0]
    return squares or ([(1, values)] if values % 3 else [])
