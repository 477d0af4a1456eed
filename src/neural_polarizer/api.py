"""The functions most users need: ``purify``, ``fold``, ``export``, ``load``, ``evaluate``."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from neural_polarizer import metrics
from neural_polarizer.artifacts import load_model
from neural_polarizer.audit import choose_target
from neural_polarizer.data.convert import as_image_set
from neural_polarizer.data.images import to_pixels
from neural_polarizer.data.poison import TriggeredSet, read_triggered
from neural_polarizer.defenses import DEFAULT
from neural_polarizer.defenses.base import Defense
from neural_polarizer.defenses.base import Repaired as Purified
from neural_polarizer.defenses.fitting import fitting_images, measurable
from neural_polarizer.defenses.form import check_one_layer
from neural_polarizer.defenses.npd.presets import Preset, Target
from neural_polarizer.defenses.patient import admitted
from neural_polarizer.defenses.recipes import make_defense, with_options, with_precision
from neural_polarizer.devices import choose_device, choose_precision
from neural_polarizer.exporting import TOLERANCE, Exported, export_model, format_of
from neural_polarizer.exporting.formats import FormatName
from neural_polarizer.folding import FOLDED_IMAGES, Border, Folded, fold_polarizer
from neural_polarizer.metrics import Metrics
from neural_polarizer.models.definition import network_named
from neural_polarizer.models.forms import check_module, copied, device_of, float_type, in_float32, is_float32
from neural_polarizer.scales import Scale
from neural_polarizer.settings import changed
from neural_polarizer.train import Progress, silent


def purify(
    model: nn.Module,
    clean: Any,
    method: str = DEFAULT,
    *,
    site: str | None = None,
    seed: int = 0,
    target: Target | Literal["auto"] = None,
    name: Preset | None = None,
    scale: Scale | None = None,
    profile: str | None = None,
    device: torch.device | str | None = None,
    classes: Sequence[str] | Mapping[Any, Any] | None = None,
    force: bool = False,
    progress: Progress = silent,
    **settings: Any,
) -> Purified:
    """Take a backdoor out of a classifier with a few clean images.

    Nothing that is passed in is changed, and nothing is printed or written.

    Args:
        model: any module from float pixels in [0, 1], ``(n, c, h, w)``, to logits ``(n, k)``, in any floating-point
            type, on any device and in any mode. If yours wants normalised pixels, pass
            ``neural_polarizer.Normalized(model, mean, std)``.
        clean: an ``ImageSet``, or a data set or loader of (image, label), or of rows as {"image": ..., "label": ...}.
            For "ep" with ``data="mixture"`` only: the poisoned training images.
        method: "npd-ls" (the default, least stand-ins), "npd", "npd-tp", "npd-tu", "npd-up", "npd-uu"; another
            defense: "ft", "fp", "nad", "nc", "anp",
            "i-bau", "ep", "ft-sam", "fst", "clp", "rnp" or "sau"; or the dotted path of a class, "my_lab.mine:Mine"
            (docs/defenses.md).
        site: where to put the layer, ``before:NAME`` or ``after:NAME``; None takes the preset's. NPD only.
        seed: fixes the order of the batches.
        target: the attacker's class, "next" for all-to-all, or "auto": what an audit finds with confidence; where it
            finds none, NPD takes the method's place. For "npd-tp" and "npd-tu" alone.
        name: which settings to start from: "shipped" (the default), "paper" or "reference". NPD only.
        scale: likewise for all others: "paper" (the default) or "laptop".
        profile: which data set the images are like, such as "gtsrb"; the paper's settings depend on it.
        device: where to compute; None takes CUDA if there is one.
        classes: the data's class names in the model's order (a list, {name: number} or {number: name}), where labels
            are names or the data set counts its classes otherwise.
        force: go on where the model does no better than guessing on the clean images; ``notes`` then say so.
        progress: called as ``progress(phase, done, total)``.
        settings: fields of the defense's class that replace the preset's, such as ``epochs=5`` for NPD or
            ``threshold=0.3`` for ANP.

    Returns:
        The purified model (in the dtype, device and mode of ``model``), the layer, the history of the learning,
        seconds, notes, the accuracy on the clean images before and after, and what the defense has found in the model.

    Raises:
        BadInputError: model, data or settings cannot be used, or the model does no better than guessing on the clean
            images; the message says what to do.
        WrongUsageError: a site, target, preset or scale where none belongs (a BadInputError, too).
    """
    images = as_image_set(clean, classes=classes)
    place = choose_device(None if device is None else str(device))
    notes: tuple[str, ...] = ()
    # tells wrong usage at once
    trial = make_defense(method, name=name, scale=scale, profile=profile, target=0 if target == "auto" else target)
    trial = changed(with_options(trial, method, {"site": site}), settings)
    check_module(model)
    check_one_layer(model, inserts=trial.inserts)
    patient = admitted(model, images, device=place, force=force, batch_size=trial.at_once, progress=progress)
    if target == "auto":
        found = choose_target(method, patient.working, patient.clean, seed=seed, device=place, progress=progress)
        method, target, notes = found.method, found.target, (found.reason,)
    base = make_defense(method, name=name, scale=scale, profile=profile, target=target)
    base = with_options(with_precision(base, choose_precision(place)), method, {"site": site})
    defense: Defense = changed(base, settings)
    purified = patient.repaired(defense, seed=seed, device=place, progress=progress)
    return replace(purified, notes=(*purified.notes, *notes))


def fold(purified: Purified | nn.Module, images: Any, *, border: Border = "exact") -> Folded:
    """A purified model without the layer that purifies it, so that it costs what the original costs.

    Args:
        purified: what ``purify`` returned, or the model in it; left as it was.
        images: an ``ImageSet``, or a data set or loader of (image, label), on which the logits are compared; clean
            ones will do.
        border: "ignored" keeps the architecture also where a convolution pads zeros, at the price of other values
            on the border.

    Returns:
        The folded model, whether it is exact and of the original architecture, and by how much its logits deviate.

    Raises:
        BadInputError: there is no polarizer to fold, or no image.
    """
    model = check_module(_module(purified))
    pixels = to_pixels(as_image_set(images).images[:FOLDED_IMAGES])
    dtype, device, training = float_type(model), device_of(model), model.training
    if dtype in (torch.float16, torch.bfloat16):  # too coarse to compare logits in
        folded = fold_polarizer(in_float32(model), pixels, border=border)
        folded.model.to(device=device, dtype=dtype)
    else:
        folded = fold_polarizer(copied(model).eval(), pixels.to(device, dtype), border=border)
    folded.model.train(training)
    return folded


def export(
    model: Purified | nn.Module | str | PathLike[str],
    path: str | PathLike[str],
    images: Any,
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
        to: "safetensors", "state-dict", "onnx" or "pt2"; None goes by the ending of ``path``. docs/export.md says what
            each of them holds.
        tolerance: by how much a logit may differ.

    Returns:
        The path, what became of the polarizer, and by how much the logits differ.

    Raises:
        BadInputError: the model or the images cannot be used, a package is missing, the network cannot be captured as
            a graph, or the file gives other logits and was not kept.
        WrongUsageError: an ending that tells no format, or another one than ``to`` (a BadInputError, too).
        EnvironmentFaultError: the file cannot be written.
    """
    target = Path(path)
    name = format_of(target, to)
    record = None
    if isinstance(model, (str, PathLike)):
        loaded = load_model(Path(model))
        model, record = loaded.model, loaded.record
    module = check_module(_module(model))
    return export_model(module, target, name, as_image_set(images), record, tolerance=tolerance)


def load(
    path: str | PathLike[str],
    *,
    arch: str | None = None,
    profile: str | None = None,
    weights: str | None = None,
    output: str | int | None = None,
    channels: int | None = None,
) -> nn.Module:
    """A saved model as a plain module in evaluation mode: float pixels in [0, 1], ``(n, c, h, w)``, to logits.

    Args:
        path: a checkpoint, an attack's folder, or a purification's folder.
        arch: the architecture, for files that are not ours; or code of your own, ``FILE.py:NAME`` or ``MODULE:NAME``,
            which is imported and called.
        profile: the normalisation, for files that are not ours.
        weights: which entry of a file that holds several sets of weights, such as ``state_dict_ema``.
        output: key, attribute or index of the logits, where the network of a file that is not ours gives several.
        channels: 1 for a network of grey images in a file that is not ours; it then gets the mean of three channels.

    Raises:
        BadInputError: the file is missing, damaged, hostile, or of another architecture.
    """
    return load_model(
        Path(path),
        architecture=network_named(arch),
        profile=profile,
        weights=weights,
        output=None if output is None else str(output),
        channels=channels,
    ).model


def evaluate(
    model: Purified | nn.Module,
    test: Any,
    triggered: TriggeredSet | str | PathLike[str] | None = None,
    *,
    classes: Sequence[str] | Mapping[Any, Any] | None = None,
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
    module = check_module(_module(model))
    module = module if is_float32(module) else in_float32(module)
    plain = module
    module, images = measurable(plain, as_image_set(test, classes=classes))
    if isinstance(triggered, (str, PathLike)):
        triggered = read_triggered(Path(triggered), size=images.image_size, num_classes=images.num_classes)
    if triggered is not None:
        triggered = replace(triggered, images=fitting_images(plain, triggered.images))
    return metrics.evaluate(module, images, triggered, device=place)


def _module(model: Purified | nn.Module) -> nn.Module:
    return model.model if isinstance(model, Purified) else model
