"""Images in a form that a model takes, and whether both speak of the same classes."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from neural_polarizer.data.images import ImageSet, class_counts, to_pixels
from neural_polarizer.devices import out_of_memory
from neural_polarizer.errors import BadInputError
from neural_polarizer.models.forms import in_float32

_TROUBLE = (RuntimeError, ValueError, TypeError, AssertionError, IndexError, AttributeError, NotImplementedError)


def fitting_images(model: nn.Module, images: ImageSet) -> ImageSet:
    """``images`` with as many channels as the model takes: one of grey ones or three equal ones.

    Args:
        model: in float32; its modes stay as they are.
        images: any number.

    Raises:
        BadInputError: the model does not take them, or gives no logits.
    """
    return fitting(in_float32(model), images)[0] if len(images) else images


def check_classes(images: ImageSet, known: int, *, forgets: str | None = None) -> None:
    """Refuse, before any time is spent, labels that a method cannot work with.

    Args:
        images: the defender's.
        known: K, the number of classes that the model knows.
        forgets: the name of a method that trains all weights, and would make the model forget a class without an image.

    Raises:
        BadInputError: labels that the model does not know, or a class without an image.
    """
    highest = int(images.labels.max())
    if highest >= known:
        raise BadInputError(
            f"{images.source}: has label {highest}, but the model knows {known} classes (0 to {known - 1}); is this "
            "the right data set?"
        )
    counts = class_counts(images)
    missing = [label for label in range(known) if label >= len(counts) or counts[label] == 0]
    if forgets is not None and missing:
        first = f"{missing[0]} ({images.classes[missing[0]]})" if missing[0] < images.num_classes else f"{missing[0]}"
        raise BadInputError(
            f"{images.source}: no image of {len(missing)} of {known} classes, the first is {first}; {forgets} trains "
            "all weights and would make the model forget them: give images of every class, or use npd"
        )


@torch.no_grad()
def fitting(model: nn.Module, clean: ImageSet) -> tuple[ImageSet, Tensor]:
    """The images in a form that the model takes (grey ones with one or three channels), and two images' logits.

    Raises:
        BadInputError: it takes none, or gives no logits.
    """
    if len(clean) == 0:
        raise BadInputError(f"{clean.source}: holds no images")
    forms = [clean, *_other_channels(clean)]
    reason = ""
    for images in forms:
        try:
            logits = model(to_pixels(images.images[:2]))
        except _TROUBLE as error:
            if out_of_memory(error):
                raise
            reason = reason or f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            continue
        return images, _checked(logits, images)
    shape = " x ".join(map(str, clean.images.shape[1:]))
    if _takes_channels_last(model, clean):
        raise BadInputError(
            f"the model takes pixels with the channels last, but is given N x {shape}; wrap it in a module whose "
            "forward returns model(pixels.permute(0, 2, 3, 1))"
        )
    raise BadInputError(
        f"{clean.source}: the model cannot take images N x {shape} ({reason}); resize them, or wrap the model so that "
        "it takes float pixels in [0, 1], channels first"
    )


def _other_channels(clean: ImageSet) -> Iterator[ImageSet]:
    """Grey images with one channel instead of three equal ones, or the other way round."""
    pixels = clean.images
    if pixels.shape[1] == 1:
        yield replace(clean, images=pixels.expand(-1, 3, -1, -1).contiguous())
    if pixels.shape[1] == 3 and bool((pixels == pixels[:, :1]).all()):
        yield replace(clean, images=pixels[:, :1].contiguous())


def _takes_channels_last(model: nn.Module, clean: ImageSet) -> bool:
    try:
        logits = model(to_pixels(clean.images[:2]).permute(0, 2, 3, 1))
    except _TROUBLE:
        return False
    return isinstance(logits, Tensor) and logits.ndim == 2


def _checked(logits: object, images: ImageSet) -> Tensor:
    """The logits, if they are such.

    Raises:
        BadInputError: they are none.
    """
    said = "the model must give logits N x K, one for every class"
    if not isinstance(logits, Tensor):
        raise BadInputError(f"{said}, but it gives a {type(logits).__name__}; wrap it so that only the logits come out")
    if logits.ndim != 2 or logits.shape[0] != min(2, len(images)):
        raise BadInputError(f"{said}, but it gives {tuple(logits.shape)} for {min(2, len(images))} images")
    if logits.shape[1] == 1:
        raise BadInputError(
            f"{said}, but it gives one number z an image, as yes/no models do; wrap it in a module whose forward "
            "returns torch.cat([torch.zeros_like(z), z], dim=1)"
        )
    return logits.float()
