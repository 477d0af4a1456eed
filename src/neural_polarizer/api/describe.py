"""What a file must say of a network that somebody has built in Python."""

from dataclasses import replace

from torch import nn

from neural_polarizer.model_files.record import ModelRecord
from neural_polarizer.models.definition import definition_of
from neural_polarizer.models.normalize import Converted, Normalized, bare
from neural_polarizer.models.preact_resnet import PreActResNet18


def record_of_model(
    model: nn.Module,
    num_classes: int,
    classes: tuple[str, ...] | None = None,
    image_size: tuple[int, int] | None = None,
    site: str | None = None,
) -> ModelRecord:
    """What is known of ``model``: all, if it was read from a file; else which code has built it.

    Its polarizer is at ``site``; None for a model without one.
    """
    origin = getattr(model, "origin", None)
    if isinstance(origin, ModelRecord):
        return replace(origin, site=site or origin.site, classes=classes or origin.classes, image_size=image_size)
    network = bare(model)
    record = ModelRecord(
        architecture="preactresnet18", num_classes=num_classes, classes=classes, image_size=image_size, site=site
    )
    if isinstance(network, PreActResNet18):
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
