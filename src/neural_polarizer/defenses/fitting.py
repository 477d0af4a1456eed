"""Images in a form that a model takes, and whether both speak of the same classes."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from neural_polarizer.data.images import ImageSet, class_counts, to_pixels
from neural_polarizer.defenses.result import Suspect
from neural_polarizer.devices import out_of_memory
from neural_polarizer.errors import BadInputError
from neural_polarizer.models.forms import copied, in_float32
from neural_polarizer.models.normalize import described, outputs, two_logits

FEWEST_IMAGES = 10
"""With fewer clean images, no class is taken for the attacker's."""


@dataclass(frozen=True, eq=False)
class Understood:
    """A model and images that go together."""

    model: nn.Module  # with at least two logits
    images: ImageSet  # with as many channels as the model takes
    logits: Tensor  # of two images, ``(n, k)``
    yes_no: bool  # whether the original gives one logit z, for which ``model`` gives (0, z)


def understood(working: nn.Module, clean: ImageSet) -> Understood:
    """What a model in float32 and images have to say to each other."""
    images, logits = fitting(working, clean)
    if logits.shape[1] > 1:
        return Understood(working, images, logits, False)
    return Understood(two_logits(working), images, torch.cat((torch.zeros_like(logits), logits), dim=1), True)


def too_little(images: ImageSet, suspect: Suspect | None) -> str | None:
    """Why these images accuse nobody, least of all ``suspect``; None where they may.

    What a few images, or those of one class, have in common by nature would pass for a backdoor; and those of the
    suspect's own class say nothing about how near it is.
    """
    if len(images) < FEWEST_IMAGES:
        return f"{len(images)} clean images are too few to say that a class is the attacker's; give more"
    if int(images.labels.unique().numel()) < 2:
        return "clean images of one class only cannot say that a class is the attacker's; give images of every class"
    if isinstance(suspect, int) and int(images.labels[images.labels != suspect].unique().numel()) < 2:
        return (
            f"clean images of only one class besides {suspect} cannot say that it is the attacker's; give images of "
            "every class"
        )
    return None


def check_gradients(working: nn.Module, images: ImageSet) -> None:
    """Refuse a network whose logits, tried on two images, have no gradients to learn its weights from."""
    tried = copied(working).requires_grad_(True)  # networks that keep what they compute could not be copied afterwards
    with torch.enable_grad():
        learns = bool(tried(to_pixels(images.images[:2])).requires_grad)
    if any(True for _ in tried.parameters()) and not learns:
        raise BadInputError(
            "the model gives logits without gradients, from which nothing can be learned; take torch.no_grad, "
            "torch.inference_mode or detach out of its forward"
        )


def measurable(model: nn.Module, images: ImageSet) -> tuple[nn.Module, ImageSet]:
    """``model`` as one that gives a logit for each class, and ``images`` with as many channels as it takes.

    The model is in float32, and its modes stay as they are; there may be no images.
    """
    if len(images) == 0:
        return model, images
    found = understood(in_float32(model), images)
    return (two_logits(model) if found.yes_no else model), found.images


def fitting_images(model: nn.Module, images: ImageSet) -> ImageSet:
    """``images``, if any, with as many channels as the model takes: one of grey ones or three equal ones."""
    return fitting(in_float32(model), images)[0] if len(images) else images


def black_images(height: int, width: int) -> ImageSet:
    """Two images of no class in particular, to see what a model does with images of that size."""
    pixels = torch.zeros(2, 3, height, width, dtype=torch.uint8)
    return ImageSet(pixels, torch.zeros(2, dtype=torch.int64), ("0",), f"images of {height}x{width} pixels")


def check_classes(images: ImageSet, known: int, *, forgets: str | None = None) -> None:
    """Refuse, before any time is spent, labels beyond the ``known`` K classes, and classes without an image.

    The latter only for a method that trains all weights and would make the model forget them, whose name is
    ``forgets``.
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


def check_target(target: Suspect | None, known: int) -> None:
    """Refuse a target class beyond the ``known`` K classes."""
    if isinstance(target, int) and not 0 <= target < known:
        raise BadInputError(f"the target class must lie in 0..{known - 1}, got {target}")


@torch.no_grad()
def fitting(model: nn.Module, clean: ImageSet) -> tuple[ImageSet, Tensor]:
    """The images in a form that the model takes (grey ones with one or three channels), and two images' logits."""
    if len(clean) == 0:
        raise BadInputError(f"{clean.source}: holds no images")
    forms = [clean, *_other_channels(clean)]
    reason = ""
    for images in forms:
        try:
            logits = model(to_pixels(images.images[:2]))
        except Exception as error:  # a foreign network may raise anything
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
    except Exception:
        return False
    return isinstance(logits, Tensor) and logits.ndim == 2


def _checked(logits: object, images: ImageSet) -> Tensor:
    """The logits of two images, n x k; of a yes/no model n x 1. Anything else is refused."""
    said = "the model must give logits N x K, one for every class"
    count = min(2, len(images))
    if not isinstance(logits, Tensor):
        parts = outputs(logits) or getattr(logits, "__dict__", {})
        fitting = [key for key, each in parts.items() if isinstance(each, Tensor) and each.shape[:1] == (count,)]
        flat = [key for key in fitting if parts[key].ndim == 2]
        how = f", as forward(pixels) that returns the part {flat[0]} of what it gives" if len(flat) == 1 else ""
        raise BadInputError(
            f"{said}, but it gives {described(logits)}; wrap it in a module whose forward returns the logits only{how}"
        )
    if not logits.is_floating_point():
        raise BadInputError(f"{said}, but it gives {logits.dtype}, as after argmax; leave that out of its forward")
    if bool(logits.isnan().any()):
        raise BadInputError(f"{said}, but it gives NaN for the first images; look at its weights and normalisation")
    if logits.ndim == 1 and len(logits) == count:
        logits = logits[:, None]
    if logits.ndim != 2 or logits.shape[0] != count or logits.shape[1] == 0:
        raise BadInputError(f"{said}, but it gives {tuple(logits.shape)} for {count} images")
    return logits.float()
