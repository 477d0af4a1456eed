"""What there is to see in a model: an audit, its sites, its figures; nothing here changes what is passed in."""

from dataclasses import replace
from os import PathLike

import torch
from torch import nn

from neural_polarizer import metrics
from neural_polarizer.api import Classes, Images
from neural_polarizer.api.progress import told, warn
from neural_polarizer.api.purified import Purified, module_of
from neural_polarizer.audit import Audited, audited
from neural_polarizer.data.classes import ClassNames
from neural_polarizer.data.convert import as_image_set
from neural_polarizer.data.decode import height_and_width
from neural_polarizer.data.poison import TriggeredSet, read_triggered
from neural_polarizer.defenses.fitting import black_images, fitting_images, measurable, understood
from neural_polarizer.devices import choose_device, plain_torch
from neural_polarizer.errors import BadInputError
from neural_polarizer.files import user_path
from neural_polarizer.layer.sites import Candidate, candidates
from neural_polarizer.metrics import Metrics
from neural_polarizer.models.forms import check_module, in_float32, is_float32
from neural_polarizer.plausibility.examine import DOUBTFUL, examine
from neural_polarizer.progress import Progress
from neural_polarizer.rng import stream


@plain_torch()
def audit(
    model: Purified | nn.Module,
    clean: Images,
    *,
    seed: int = 0,
    device: torch.device | str | None = None,
    classes: Classes | None = None,
    progress: bool | Progress = False,
) -> Audited:
    """What clean images only tell about a backdoor in a model; nothing is changed.

    Args:
        model: pixels in [0, 1] to logits, or what ``purify`` returned.
        clean: as for ``purify``.
        seed: fixes the random starts.
        device: where to compute; None takes CUDA if there is one.
        classes: as for ``purify``.
        progress: as for ``purify``.

    Raises:
        BadInputError: model and images do not go together.
    """
    place = choose_device(None if device is None else str(device))
    found = understood(in_float32(check_module(module_of(model))), as_image_set(clean, classes=classes))
    warn(found.images.notes)
    result = audited(found.model, found.images, seed=seed, device=place, progress=told(progress))
    warn(() if result.reason is None else (result.reason,))
    return result


@plain_torch()
def sites(model: nn.Module, size: int | tuple[int, int], *, everything: bool = False) -> list[Candidate]:
    """The places where the layer can go, from the pixels to the logits.

    Examples:
        >>> import torch, neural_polarizer as npz
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(144, 2))
        >>> [str(each.site) for each in npz.sites(model, 8)][0]
        'before:0'

    Args:
        model: float pixels in [0, 1] to logits.
        size: height and width of its images; a number stands for both.
        everything: also the places that something bypasses.

    Raises:
        BadInputError: the model does not take such images.
    """
    height, width = height_and_width(size)
    working = in_float32(check_module(model))
    found = understood(working, black_images(height, width))
    places = candidates(found.model, torch.rand(found.images.images.shape, generator=stream(0, "sites")))
    return [each for each in places if everything or not each.bypassed]


@plain_torch()
def evaluate(
    model: Purified | nn.Module,
    test: Images,
    triggered: TriggeredSet | str | PathLike[str] | None = None,
    *,
    classes: Classes | None = None,
    device: torch.device | str | None = None,
) -> Metrics:
    """ACC on ``test``, and ASR and RA on ``triggered`` if given, in evaluation mode and float32.

    Args:
        model: float pixels in [0, 1] to logits, in any floating-point type; or what ``purify`` returned. It stays as
            it was.
        test: an ``ImageSet``, or a data set or loader, as for ``purify``.
        triggered: the triggered test set: an attack's ``triggered(test)``, or the path of a ``triggered.parquet``.
        classes: the data's class names in the model's order, as for ``purify``.
        device: where to compute; None takes CUDA if there is one.

    Raises:
        BadInputError: a set is empty, or the model does not take it or has too few classes for it.
    """
    place = choose_device(None if device is None else str(device))
    plain = module_of(model)
    check_module(plain)
    plain = plain if is_float32(plain) else in_float32(plain)  # compiled or parallel, it is measured as it is
    module, images = measurable(plain, as_image_set(test, classes=classes))
    warn(images.notes)
    if isinstance(triggered, (str, PathLike)):
        known = ClassNames(images.classes, said_by=images.source)
        triggered = read_triggered(user_path(triggered), size=images.image_size, num_classes=None, classes=known)
    if triggered is not None:
        if not isinstance(triggered, TriggeredSet):
            raise BadInputError(
                "triggered: expected the path of a triggered.parquet, or a TriggeredSet (images with the attacker's "
                f"labels, true_labels), got {type(triggered).__name__}"
            )
        triggered = replace(triggered, images=fitting_images(plain, triggered.images))
    found = metrics.evaluate(module, images, triggered, device=place)
    if found.acc is not None and found.acc < DOUBTFUL:
        remark = examine(module, images, device=place).remark
        warn(() if remark is None else (remark,))
    return found
