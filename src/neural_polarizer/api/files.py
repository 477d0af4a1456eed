"""Models and layers out of files and into them; nothing here changes what is passed in."""

from collections.abc import Callable
from os import PathLike

import torch
from torch import nn

from neural_polarizer.api.progress import warn
from neural_polarizer.api.purified import Purified
from neural_polarizer.data.images import to_pixels
from neural_polarizer.defenses.fitting import black_images, understood
from neural_polarizer.defenses.form import check_one_layer
from neural_polarizer.devices import plain_torch
from neural_polarizer.errors import BadInputError, refusing
from neural_polarizer.files import user_path
from neural_polarizer.layer.sites import features_at
from neural_polarizer.layer.surgery import full_name, insert
from neural_polarizer.model_files.describe import record_of_model
from neural_polarizer.model_files.load import LoadedLayer, load_model, read_polarizer, with_polarizer
from neural_polarizer.model_files.save import save_model
from neural_polarizer.models.definition import Definition, definition_of, network_named, outputs_of
from neural_polarizer.models.forms import check_module, copied, in_float32
from neural_polarizer.models.normalize import Converted, Normalized


@plain_torch()
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

    A yes/no network gives its one logit, in the shape that it has there, as it did before it was saved. One of grey
    images takes them with one channel, or with three, of which it gets the mean. What the file would run elsewhere, as
    nothing does here, is a ``NeuralPolarizerWarning``.

    Args:
        path: a checkpoint, an attack's folder, or a purification's folder.
        arch: what builds the network, for files that are not ours, and for ours of networks that are not: a name; code
            of your own, ``FILE.py:NAME`` or ``MODULE:NAME``, which is imported and called; or a class, a function, or
            a module with any weights, which is copied.
        profile: the normalisation; None takes what the file says, or else that of a ``Normalized`` in ``arch``.
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
        user_path(path),
        architecture=network,
        profile=profile,
        weights=weights,
        output=None if output is None else str(output),
        channels=channels,
    )
    warn(loaded.threats)
    if isinstance(loaded.model, Normalized):
        loaded.model.model_record = loaded.record
    if isinstance(loaded.model, Converted):
        loaded.model.yes_no = False  # only the commands need two logits
    return loaded.model


def save(model: Purified | nn.Module, path: str | PathLike[str], *, num_classes: int | None = None) -> None:
    """Write a model so that ``load`` reads it again: what ``purify`` returned into a folder, a module into a file.

    Args:
        model: with at most one polarizer; left as it was.
        path: of the folder, or of the safetensors file.
        num_classes: K, where a module of your own does not tell by its answer.

    Raises:
        BadInputError: K is not known, or the folder holds another run.
        EnvironmentFaultError: it cannot be written.
    """
    if isinstance(model, Purified):
        model.save(path)
        return
    model = check_module(model)
    known = num_classes or outputs_of(model)
    if known is None:
        raise BadInputError("the network does not tell its number of classes; give num_classes")
    save_model(user_path(path), model, record_of_model(model, max(2, known)))  # one logit stands for two


@plain_torch()
def load_polarizer(model: nn.Module, file: str | PathLike[str]) -> nn.Module:
    """A copy of ``model`` with the layer of a ``polarizer.safetensors`` at its site; the original's weights stay.

    Args:
        model: the original that was purified, with or without its normalisation.
        file: as ``polarizer purify`` and ``Purified.save`` write it.

    Raises:
        BadInputError: the file holds no such layer, it does not fit the model, or the model has one already.
    """
    network = check_module(model)
    check_one_layer(network, inserts=True)
    path = user_path(file)
    layer = read_polarizer(path)
    try:
        _check_fits(network, layer)
    except BadInputError as error:
        raise BadInputError(f"{path}: does not fit the model: {error}") from None
    return with_polarizer(network, layer.site, layer.polarizer)


@torch.no_grad()
def _check_fits(model: nn.Module, layer: LoadedLayer) -> None:
    """Try the layer in a copy of the model, on images of the size that it was learned with."""
    full_name(model, layer.site)  # refuses an unknown one
    if layer.image_size is None:
        return
    found = understood(in_float32(model), black_images(*layer.image_size))
    pixels = to_pixels(found.images.images)
    features = features_at(found.model, layer.site, pixels)
    found_there = f"{features.layout} {'x'.join(map(str, features.shape))}"
    said = f"it was learned on other features than those at {layer.site}, which are {found_there}"
    if layer.polarizer.channels_last == (features.layout == "NCHW"):
        raise BadInputError(said)
    with refusing(said, Exception):  # torch has several for shapes
        insert(found.model, layer.site, copied(layer.polarizer).eval())(pixels)
