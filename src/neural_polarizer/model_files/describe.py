"""What files say of a model that is in memory."""

from dataclasses import replace

from torch import nn

from neural_polarizer.layer.surgery import PolarizedModule
from neural_polarizer.model_files.record import ModelRecord
from neural_polarizer.models.definition import definition_of
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
) -> ModelRecord:
    """What is known of ``model``: all, if it was read from a file; else which code has built it.

    Its polarizer, if any, is at ``site``; None takes the name that ``site_of`` finds.
    """
    site = site or site_of(model)
    origin = getattr(model, "origin", None)
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
    if isinstance(model, Normalized):
        mean, std = (tuple(value.flatten().tolist()) for value in (model.mean, model.std))
        record = replace(record, mean=mean, std=std)
    if isinstance(model, Converted):
        record = replace(record, grey=model.grey, output=model.output, yes_no=model.yes_no)
    return record
