"""A purified model for use: folded, or in a file of another format; nothing here changes what is passed in."""

from os import PathLike

import torch
from torch import nn

from neural_polarizer.api import Images
from neural_polarizer.api.files import load
from neural_polarizer.api.purified import Purified, module_of
from neural_polarizer.data.convert import as_image_set
from neural_polarizer.data.images import to_pixels
from neural_polarizer.defenses.fitting import fitting_images, understood
from neural_polarizer.defenses.form import take_modes
from neural_polarizer.devices import plain_torch
from neural_polarizer.exporting.export import TOLERANCE, Exported, export_model, format_of
from neural_polarizer.exporting.formats import FormatName
from neural_polarizer.files import user_path
from neural_polarizer.layer.folding.fold import FOLDED_IMAGES, Border, Folded, fold_polarizer
from neural_polarizer.model_files.describe import record_of_model
from neural_polarizer.model_files.record import folded_record
from neural_polarizer.models.forms import check_module, copied, device_of, float_type, in_float32


@plain_torch()
@torch.no_grad()
def fold(purified: Purified | nn.Module, images: Images, *, border: Border = "exact") -> Folded:
    """A purified model without the layer that purifies it, so that it costs what the original costs.

    Args:
        purified: what ``purify`` returned, or the model in it; left as it was.
        images: an ``ImageSet``, or a data set or loader of (image, label), on which the logits are compared; clean
            ones will do.
        border: "ignored" keeps the architecture also where a convolution pads zeros, at the price of other values
            on the border.

    Returns:
        The folded model, each module in the mode that it had; whether it is exact and of the original architecture;
        and by how much its logits deviate.

    Raises:
        BadInputError: there is no polarizer to fold, or no image.
    """
    model = check_module(module_of(purified))
    found = understood(in_float32(model), as_image_set(images))
    pixels = to_pixels(found.images.images[:FOLDED_IMAGES])
    dtype, device = float_type(model), device_of(model)
    if dtype in (torch.float16, torch.bfloat16):  # too coarse to compare logits in
        folded = fold_polarizer(in_float32(model), pixels, border=border)
        folded.model.to(device=device, dtype=dtype)
    else:
        folded = fold_polarizer(copied(model).eval(), pixels.to(device, dtype), border=border)
    take_modes(folded.model, model)
    # What a file of it must say, as ``save`` does: its layers may not be those of the architecture any more.
    known = record_of_model(model, found.logits.shape[1], takes=found.images.image_size)
    vars(folded.model)["model_record"] = folded_record(known, folded)
    return folded


@plain_torch()
def export(
    model: Purified | nn.Module | str | PathLike[str],
    path: str | PathLike[str],
    images: Images,
    *,
    to: FormatName | None = None,
    tolerance: float = TOLERANCE,
) -> Exported:
    """Write a model for use elsewhere, without its polarizer where that is exact, and check what was written.

    Args:
        model: what ``purify`` returned, the model in it, or a saved model, as for ``load``; left as it was.
        path: the file to write; replaced if it exists.
        images: an ``ImageSet``, or a data set or loader of (image, label), on which the logits are compared; clean
            ones will do. A graph is for images of their size.
        to: "safetensors", "state-dict", "onnx" or "pt2"; None goes by the ending of ``path``.
        tolerance: by how much a logit may differ.

    Returns:
        The path, what became of the polarizer, and by how much the logits differ.

    Raises:
        BadInputError: the model or the images cannot be used, a package is missing, the network cannot be captured as
            a graph, or the file gives other logits and was not kept.
        WrongUsageError: an ending that tells no format, or another one than ``to`` (a BadInputError, too).
        EnvironmentFaultError: the file cannot be written.
    """
    target = user_path(path)
    name = format_of(target, to)
    module = check_module(load(model) if isinstance(model, (str, PathLike)) else module_of(model))
    shown = fitting_images(module, as_image_set(images))
    return export_model(module, target, name, shown, tolerance=tolerance)
