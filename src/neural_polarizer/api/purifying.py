"""``purify``: model, clean images and method, checked and put together; nothing here changes what is passed in."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from torch import nn

from neural_polarizer.api import Classes, Images
from neural_polarizer.api.progress import LOG, told, warn
from neural_polarizer.api.purified import Purified, purified_of
from neural_polarizer.audit import choose_target, looking_for
from neural_polarizer.data.convert import as_image_set
from neural_polarizer.defenses import DEFAULT, DEFENSES
from neural_polarizer.defenses.base import Defense
from neural_polarizer.defenses.form import check_one_layer
from neural_polarizer.defenses.npd import NPD
from neural_polarizer.defenses.npd.presets import Preset, Target, variant_of
from neural_polarizer.defenses.patient import admitted
from neural_polarizer.defenses.recipes import make_defense, with_options, with_precision
from neural_polarizer.devices import choose_device, choose_precision, plain_torch
from neural_polarizer.errors import BadInputError, WrongUsageError
from neural_polarizer.models.forms import check_module
from neural_polarizer.progress import Progress
from neural_polarizer.scales import Scale
from neural_polarizer.settings import changed, plain


@plain_torch()
def purify(
    model: nn.Module,
    clean: Images,
    method: str | Defense = DEFAULT,
    *,
    site: str | None = None,
    seed: int = 0,
    target: Target | Literal["auto"] = None,
    preset: Preset | None = None,
    scale: Scale | None = None,
    profile: str | None = None,
    device: torch.device | str | None = None,
    classes: Classes | None = None,
    force: bool = False,
    progress: bool | Progress = False,
    **settings: object,
) -> Purified:
    """Take a backdoor out of a classifier with a few clean images.

    Nothing that is passed in is changed, and nothing is written. What you must know of the result is warned of
    (``NeuralPolarizerWarning``) and stands in ``notes``; the logger ``neural_polarizer`` names each phase. For several
    at once use processes, not threads: tracing a network and the random state of PyTorch are the whole process's.

    Examples:
        >>> import torch, neural_polarizer as npz
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(144, 2))
        >>> pixels = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> labels = model(pixels).argmax(dim=1).tolist()
        >>> clean = list(zip(pixels, labels, strict=True))
        >>> purified = npz.purify(model, clean, npz.NPD(epochs=1), site="after:0", force=True, device="cpu")
        >>> purified.site, purified.seed
        ('after:0', 0)

    Args:
        model: any module from float pixels in [0, 1], ``(n, c, h, w)``, to logits ``(n, k)``, in any floating-point
            type, on any device and in any mode. If yours wants normalised pixels, pass
            ``neural_polarizer.Normalized(model, mean, std)``.
        clean: an ``ImageSet``, or a data set or loader of (image, label), or of rows as {"image": ..., "label": ...}.
            For "ep" with ``data="mixture"`` only: the poisoned training images.
        method: what to do, as an object with its settings, such as ``NPD(epochs=5)``; or a name: "npd-ls" (the
            default, least stand-ins), "npd", "npd-tp", "npd-tu", "npd-up", "npd-uu"; another defense: "ft", "fp",
            "nad", "nc", "anp", "i-bau", "ep", "ft-sam", "fst", "clp", "rnp", "sau" or "cnpd"; or the dotted path of a
            class, "my_lab.mine:Mine". A name computes in bf16 where that is fast, an object in its own ``precision``.
        site: where to put the layer, ``before:NAME`` or ``after:NAME``; None takes the method's. NPD family only.
        seed: fixes the order of the batches.
        target: the attacker's class, "next" for all-to-all, or "auto": what an audit finds with confidence; where it
            finds none, "npd-ls" goes on without, and NPD takes the place of "npd-tp" and "npd-tu". For these names.
        preset: which settings the names of the NPD family start from: "shipped" (the default), "paper" or "reference".
        scale: likewise for all other names: "paper" (the default) or "laptop".
        profile: which data set the images are like, such as "gtsrb"; the paper's settings depend on it.
        device: where to compute; None takes CUDA if there is one.
        classes: the data's class names in the model's order (a list, {name: number} or {number: name}), where labels
            are names or the data set counts its classes otherwise.
        force: go on where the model does no better than guessing on the clean images; ``notes`` then say so.
        progress: True shows a line on stderr; a function is called as ``progress(phase, done, total)``.
        settings: fields of the method's class that replace its own, such as ``epochs=5`` for NPD or
            ``threshold=0.3`` for ANP; ``**{"schedule.epochs": 5}`` for those of a part.

    Returns:
        The purified model (in the dtype, device and mode of ``model``), the layer, the history of the learning,
        seconds, notes, the accuracy on the clean images before and after, and what the defense has found in the model.

    Raises:
        BadInputError: model, data or settings cannot be used, or the model does no better than guessing on the clean
            images; the message says what to do.
        WrongUsageError: a site, target, preset or scale where none belongs (a BadInputError, too).
    """
    images, seed, target = as_image_set(clean, classes=classes), plain(seed), plain(target)
    place, note = choose_device(None if device is None else str(device)), told(progress)
    if isinstance(method, Defense):
        _check_plain(target=target, preset=preset, scale=scale, profile=profile)
    configured = partial(
        _configured, preset=preset, scale=scale, profile=profile, place=place, site=site, settings=settings
    )
    trial = configured(method, 0 if target == "auto" else target)  # tells wrong usage at once
    check_one_layer(check_module(model), inserts=trial.inserts)
    patient = admitted(model, images, device=place, force=force, batch_size=trial.at_once, progress=note)
    notes: tuple[str, ...] = ()
    if target == "auto" and isinstance(method, str):
        sought = looking_for(trial)
        chosen = choose_target(method, patient.working, patient.clean, sought, seed=seed, device=place, progress=note)
        method, notes, trial = chosen.method, (chosen.reason,), configured(chosen.method, chosen.target)
    cost = trial.cost_of_classes(len(patient.clean), patient.finding.num_classes)
    if cost is not None:
        LOG.info("%s", cost)
    repaired = patient.repaired(trial, seed=seed, device=place, progress=note)
    repaired = replace(repaired, notes=(*repaired.notes, *notes))
    purified = purified_of(repaired, model, patient.clean, patient.finding.num_classes, _named(method))
    LOG.info("%r", purified)
    warn(purified.notes)
    return purified


def _configured(
    method: str | Defense,
    target: Target,
    *,
    preset: Preset | None,
    scale: Scale | None,
    profile: str | None,
    place: torch.device,
    site: str | None,
    settings: Mapping[str, object],
) -> Defense:
    """The method with all its settings; an object keeps its own but for ``site`` and ``settings``."""
    if isinstance(method, Defense):
        chosen = method
    elif not isinstance(method, str):
        raise BadInputError(f"method: expected a name as 'npd', or an object as NPD(), got {method!r}")
    else:
        chosen = make_defense(method, name=preset, scale=scale, profile=profile, target=target)
        chosen = with_precision(chosen, choose_precision(place))
    return changed(with_options(chosen, _named(method), {"site": site}), settings)


def _named(method: str | Defense) -> str:
    """The name of a method, also where it is given as an object: ours if it has one, else that of its class."""
    if isinstance(method, str):
        return method
    if isinstance(method, NPD):
        return variant_of(method)
    return next((name for name, kind in DEFENSES.items() if kind is type(method)), type(method).__name__)


def _check_plain(**options: object) -> None:
    """An object says itself how it is set.

    Raises:
        WrongUsageError: an option that chooses settings for a name.
    """
    for name, value in options.items():
        if value is not None:
            raise WrongUsageError(f"{name} is for methods that are named; set it in the method's object instead")
