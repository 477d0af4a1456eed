"""``purify``, what comes before it and what comes after it; nothing here changes what is passed in."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from neural_polarizer import metrics
from neural_polarizer.api.data import Classes, Images
from neural_polarizer.api.describe import record_of_model
from neural_polarizer.api.progress import LOG, told
from neural_polarizer.api.purified import Purified, purified_of
from neural_polarizer.audit import Audited, audited, choose_target
from neural_polarizer.data.convert import as_image_set
from neural_polarizer.data.images import to_pixels
from neural_polarizer.data.poison import TriggeredSet, read_triggered
from neural_polarizer.defenses import DEFAULT, DEFENSES
from neural_polarizer.defenses.base import Defense
from neural_polarizer.defenses.fitting import fitting_images, measurable, understood
from neural_polarizer.defenses.form import check_one_layer
from neural_polarizer.defenses.npd import NPD
from neural_polarizer.defenses.npd.presets import Preset, Target, variant_of
from neural_polarizer.defenses.patient import admitted
from neural_polarizer.defenses.recipes import make_defense, with_options, with_precision
from neural_polarizer.devices import choose_device, choose_precision
from neural_polarizer.errors import BadInputError, NeuralPolarizerWarning, WrongUsageError
from neural_polarizer.exporting import TOLERANCE, Exported, export_model, format_of
from neural_polarizer.exporting.formats import FormatName
from neural_polarizer.layer.folding import FOLDED_IMAGES, Border, Folded, fold_polarizer
from neural_polarizer.layer.sites import Candidate, candidates
from neural_polarizer.layer.surgery import PolarizedModule
from neural_polarizer.metrics import Metrics
from neural_polarizer.model_files.load import load_model, with_polarizer
from neural_polarizer.model_files.save import save_model
from neural_polarizer.models.definition import Definition, definition_of, last_outputs, network_named
from neural_polarizer.models.forms import check_module, copied, device_of, float_type, in_float32, is_float32
from neural_polarizer.models.normalize import Normalized
from neural_polarizer.rng import stream
from neural_polarizer.scales import Scale
from neural_polarizer.settings import changed
from neural_polarizer.train import Progress


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
    (``NeuralPolarizerWarning``) and stands in ``notes``; the logger ``neural_polarizer`` names each phase.

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
            "nad", "nc", "anp", "i-bau", "ep", "ft-sam", "fst", "clp", "rnp" or "sau"; or the dotted path of a class,
            "my_lab.mine:Mine".
        site: where to put the layer, ``before:NAME`` or ``after:NAME``; None takes the method's. NPD family only.
        seed: fixes the order of the batches.
        target: the attacker's class, "next" for all-to-all, or "auto": what an audit finds with confidence; where it
            finds none, NPD takes the method's place. For the names "npd-ls", "npd-tp" and "npd-tu".
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
    images = as_image_set(clean, classes=classes)
    place, note = choose_device(None if device is None else str(device)), told(progress)

    def defense(method: str | Defense, target: Target) -> Defense:
        if isinstance(method, Defense):
            chosen, name = method, _name_of(method)
        else:
            chosen, name = make_defense(method, name=preset, scale=scale, profile=profile, target=target), method
            chosen = with_precision(chosen, choose_precision(place))
        found: Defense = changed(with_options(chosen, name, {"site": site}), settings)
        return found

    if isinstance(method, Defense):
        _check_plain(target=target, preset=preset, scale=scale, profile=profile)
    trial = defense(method, 0 if target == "auto" else target)  # tells wrong usage at once
    check_one_layer(check_module(model), inserts=trial.inserts)
    patient = admitted(model, images, device=place, force=force, batch_size=trial.at_once, progress=note)
    notes: tuple[str, ...] = ()
    if target == "auto":
        assert isinstance(method, str)
        chosen = choose_target(method, patient.working, patient.clean, seed=seed, device=place, progress=note)
        method, notes = chosen.method, (chosen.reason,)
        trial = defense(method, chosen.target)
    repaired = patient.repaired(trial, seed=seed, device=place, progress=note)
    repaired = replace(repaired, notes=(*repaired.notes, *notes))
    name = method if isinstance(method, str) else _name_of(method)
    purified = purified_of(repaired, model, patient.clean, patient.finding.num_classes, name)
    LOG.info("%r", purified)
    for each in purified.notes:
        warnings.warn(each, NeuralPolarizerWarning, stacklevel=2)
    return purified


def _name_of(defense: Defense) -> str:
    """The name of a method that is given as an object: ours if it has one, else that of its class."""
    if isinstance(defense, NPD):
        return variant_of(defense)
    return next((name for name, kind in DEFENSES.items() if kind is type(defense)), type(defense).__name__)


def _check_plain(**options: object) -> None:
    """An object says itself how it is set.

    Raises:
        WrongUsageError: an option that chooses settings for a name.
    """
    for name, value in options.items():
        if value is not None:
            raise WrongUsageError(f"{name} is for methods that are named; set it in the method's object instead")


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
    found = understood(in_float32(check_module(_module(model))), as_image_set(clean, classes=classes))
    return audited(found.model, found.images, seed=seed, device=place, progress=told(progress))


def sites(model: nn.Module, size: int | tuple[int, int], *, everything: bool = False) -> list[Candidate]:
    """The places where the layer can go, from the pixels to the logits.

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
    height, width = (size, size) if isinstance(size, int) else size
    working = in_float32(check_module(model))
    found = candidates(working, torch.rand(2, 3, height, width, generator=stream(0, "sites")))
    return [each for each in found if everything or not each.bypassed]


def fold(purified: Purified | nn.Module, images: Images, *, border: Border = "exact") -> Folded:
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
    arch: str | nn.Module | Callable[..., nn.Module] | None = None,
    profile: str | None = None,
    weights: str | None = None,
    output: str | int | None = None,
    channels: int | None = None,
) -> nn.Module:
    """A saved model as a plain module in evaluation mode: float pixels in [0, 1], ``(n, c, h, w)``, to logits.

    Args:
        path: a checkpoint, an attack's folder, or a purification's folder.
        arch: what builds the network, for files that are not ours, and for ours of networks that are not: a name; code
            of your own, ``FILE.py:NAME`` or ``MODULE:NAME``, which is imported and called; or a class, a function, or
            a module with any weights, which is copied.
        profile: the normalisation, for files that are not ours.
        weights: which entry of a file that holds several sets of weights, such as ``state_dict_ema``.
        output: key, attribute or index of the logits, where the network of a file that is not ours gives several.
        channels: 1 for a network of grey images in a file that is not ours; it then gets the mean of three channels.

    Raises:
        BadInputError: the file is missing, damaged, hostile, or of another architecture.
    """
    network: str | Definition | None = (
        network_named(arch) if arch is None or isinstance(arch, str) else definition_of(arch)
    )
    loaded = load_model(
        Path(path),
        architecture=network,
        profile=profile,
        weights=weights,
        output=None if output is None else str(output),
        channels=channels,
    )
    if isinstance(loaded.model, Normalized):
        loaded.model.origin = loaded.record
    return loaded.model


def save(model: Purified | nn.Module, path: str | PathLike[str], *, num_classes: int | None = None) -> None:
    """Write a model so that ``load`` reads it again: what ``purify`` returned into a folder, a module into a file.

    Args:
        model: with at most one polarizer; left as it was.
        path: of the folder, or of the safetensors file.
        num_classes: K, where the last layer of a module of your own does not tell.

    Raises:
        BadInputError: K is not known, or the folder holds another run.
        EnvironmentFaultError: it cannot be written.
    """
    if isinstance(model, Purified):
        model.save(path)
        return
    known = num_classes or last_outputs(check_module(model))
    if known is None:
        raise BadInputError("the network does not tell its number of classes; give num_classes")
    save_model(Path(path), model, record_of_model(model, known, site=_site_of(model)))


def load_polarizer(model: nn.Module, file: str | PathLike[str]) -> nn.Module:
    """A copy of ``model`` with the layer of a ``polarizer.safetensors`` at its site; the original's weights stay.

    Args:
        model: the original that was purified, with or without its normalisation.
        file: as ``polarizer purify`` and ``Purified.save`` write it.

    Raises:
        BadInputError: the file holds no such layer, it does not fit the model, or the model has one already.
    """
    check_one_layer(check_module(model), inserts=True)
    return with_polarizer(model, Path(file))


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


def _site_of(model: nn.Module) -> str | None:
    """Where the polarizer of ``model`` is, by the network's own names; None without one."""
    network = model.network if isinstance(model, Normalized) else model
    found = [(name, part.side) for name, part in network.named_modules() if isinstance(part, PolarizedModule)]
    return f"{found[0][1]}:{found[0][0]}" if found else None
