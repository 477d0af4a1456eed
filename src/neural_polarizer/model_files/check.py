"""Whether a loaded model takes the images that it is meant for."""

import torch
from torch import Tensor

from neural_polarizer.devices import out_of_memory
from neural_polarizer.errors import BadInputError, cause
from neural_polarizer.model_files.load import LoadedModel
from neural_polarizer.models.normalize import bare, described, outputs


@torch.no_grad()
def check_takes(loaded: LoadedModel, image_size: tuple[int, int]) -> None:
    """Send a black and a white image through the model, so that a wrong size is told before any work is spent.

    Raises:
        BadInputError: the network refuses it, or gives no logits for it.
    """
    height, width = image_size
    said = f"{loaded.path}: a {loaded.record.architecture} cannot take images of {height}x{width} pixels"
    try:
        logits = loaded.model(torch.arange(2.0).view(2, 1, 1, 1).expand(2, 3, height, width))
    except BadInputError as error:  # the output that was asked for is not there
        raise BadInputError(f"{loaded.path}: {error}; give --output another name, or leave it out") from None
    except Exception as error:  # a foreign network may raise anything
        if out_of_memory(error):
            raise
        other = "--size, or another --arch: code (FILE.py:NAME) can make of images N x 3 x H x W what a network takes"
        remedy = "--channels 1, as it takes one channel" if _takes_grey(loaded, image_size) else other
        raise BadInputError(f"{said} ({cause(error)}); give {remedy}") from None
    if not isinstance(logits, Tensor):
        fitting = [
            key
            for key, value in (outputs(logits) or getattr(logits, "__dict__", {})).items()
            if isinstance(value, Tensor) and value.shape == (2, loaded.record.num_classes)
        ]
        proposed = f", as --output {fitting[0]}" if len(fitting) == 1 else ""
        raise BadInputError(
            f"{loaded.path}: the network gives {described(logits)}; name the logits with --output KEY_OR_INDEX"
            f"{proposed}"
        )
    if logits.shape != (2, loaded.record.num_classes):
        shape = " x ".join(map(str, logits.shape))
        more = logits.ndim == 2 and len(logits) == 2 and logits.shape[1] > 1
        remedy = f"give --num-classes {logits.shape[1]}" if more else "give one that gives N x K"
        raise BadInputError(
            f"{said}: it gives no {loaded.record.num_classes} logits for an image, but {shape} for two; {remedy}"
        )
    if not bool(logits.isfinite().all()):
        raise BadInputError(
            f"{loaded.path}: gives NaN or infinite logits for a black or a white image; its weights or normalisation "
            "are too large to compute with: get the file again or train anew"
        )


def _takes_grey(loaded: LoadedModel, image_size: tuple[int, int]) -> bool:
    """Whether the network, which refuses images of three channels, takes those of one."""
    if loaded.record.grey:
        return False
    try:
        bare(loaded.model)(torch.zeros(2, 1, *image_size))
    except Exception:
        return False
    return True
