"""Options that several commands share, each declared once, and what they name, read."""

import json
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from neural_polarizer.data.class_files import read_class_names
from neural_polarizer.data.classes import ClassNames
from neural_polarizer.data.decode import MAX_PIXELS
from neural_polarizer.data.poison import PoisonLabel, read_triggered
from neural_polarizer.data.sources import read_images
from neural_polarizer.devices import Precision
from neural_polarizer.errors import BadInputError, WrongUsageError
from neural_polarizer.files import read_json
from neural_polarizer.model_files.load import LoadedModel, load_model
from neural_polarizer.models import definition
from neural_polarizer.models.architecture import FORMS
from neural_polarizer.models.hugging_face import no_number
from neural_polarizer.models.normalize import PROFILES, normalisation_named
from neural_polarizer.runs.attack import TRIGGERED
from neural_polarizer.runs.inspect import Evidence


def known_profile(text: str | None) -> str | None:
    """``text`` as it is; what is no normalisation that a model can be given is refused."""
    try:
        if text is not None:
            normalisation_named(text)
    except BadInputError as error:
        raise typer.BadParameter(str(error)) from None
    return text


_FIGURES = (
    {"acc", "asr", "ra", "n_test", "n_triggered", "model", "model_sha256"},
    {"recommended", "reason", "sites"},
)


def json_file(path: Path | None) -> Path | None:
    """``path`` as it is; refused where something else than what the commands write there would be lost."""
    if path is None or not os.path.lexists(path):
        return path
    if path.is_file():  # a pipe would make us wait
        with suppress(BadInputError):
            if path.stat().st_size == 0 or read_json(path).keys() in _FIGURES:
                return path
    raise WrongUsageError(f"--json {path}: is there already, with other content; choose another name")


def _folder(text: str) -> Path:
    if not text.strip():  # of a variable that is not set; Path would take it for the present folder
        raise WrongUsageError("it names no folder; is a variable of your shell not set?")
    return Path(text)


Out = Annotated[Path, typer.Option(help="Folder for the results; made if need be.", parser=_folder, metavar="OUT")]
GivenArchitecture = Annotated[
    str | None,
    typer.Option(
        "--arch",
        help="The network, as torchvision:NAME or FILE.py:NAME. It is needed where the file does not say it itself. "
        f"{FORMS}, with options as in timm:NAME?img_size=32, or code of your own, FILE.py:NAME or PACKAGE.MODULE:NAME, "
        "which is run.",
        metavar="NAME",
    ),
]
ProfileName = Annotated[
    str | None,
    typer.Option(
        help="Normalisation, as cifar10, imagenet, none or MEAN/STD. One of "
        f"{', '.join(PROFILES)}, or MEAN/STD as 0.5,0.5,0.5/0.25,0.25,0.25. Default: what "
        "the model's own files or its library's configuration say.",
        metavar="PROFILE",
        callback=known_profile,
    ),
]
Weights = Annotated[
    str | None, typer.Option(help="Which set of weights, if a file has several; as state_dict_ema.", metavar="ENTRY")
]
Size = Annotated[
    str | None, typer.Option(help="Resize all images to this, as 32 or 32x48; needed where they differ.", metavar="HxW")
]
Classes = Annotated[
    Path | None,
    typer.Option(
        help="The data's class names in the model's order. One a line, or JSON (a list, {name: number} or {number: "
        "name}); needed where names or folders do not say which class is which.",
        metavar="FILE",
    ),
]
PoisonLabelText = Annotated[
    str | None,
    typer.Option(
        "--poison-label",
        help="The attacker's class, where --triggered is a folder. A number, or next for all-to-all; the folder has "
        "triggered images by their true class, as BackdoorBench's bd_test_dataset.",
        metavar="CLASS",
    ),
]
PrecisionName = Annotated[
    Precision | None,
    typer.Option(help="Of the computation. Default: bf16 where the hardware computes in it.", metavar="fp32|bf16"),
]
DeviceName = Annotated[
    str | None, typer.Option(help="Where to compute, as cpu or cuda:1. Default: cuda if there is one.")
]
OwnSettings = Annotated[
    list[str] | None,
    typer.Option("--set", help="A setting of the method itself, as alpha=0.1; repeatable.", metavar="NAME=VALUE"),
]
Seed = Annotated[int, typer.Option(help="Fixes every random choice.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How the file of a model is read, and of what size its images are: options of all commands on a model."""

    arch: GivenArchitecture = None
    num_classes: Annotated[int | None, typer.Option(help="Number of classes, if the file does not tell.", min=2)] = None
    profile: ProfileName = None
    weights: Weights = None
    output: Annotated[
        str | None,
        typer.Option(help="Which output are the logits, where the network gives several.", metavar="KEY_OR_INDEX"),
    ] = None
    channels: Annotated[
        Literal["1", "3"] | None,
        typer.Option(help="1 for a network of grey images; they become one channel inside it."),
    ] = None
    size: Size = None

    @cached_property
    def network(self) -> str | definition.Definition | None:
        """What ``--arch`` means (``network_named``)."""
        return network_named(self.arch)

    def model(self, path: Path) -> LoadedModel:
        """The model in the file or folder ``path``; one that cannot be read, or does not fit, is refused."""
        return load_model(
            path,
            architecture=self.network,
            num_classes=self.num_classes,
            profile=self.profile,
            weights=self.weights,
            output=self.output,
            channels=None if self.channels is None else int(self.channels),
        )

    def image_size(self, loaded: LoadedModel) -> tuple[int, int] | None:
        """The size that was asked for, else that of the model's record."""
        return parse_size(self.size) or loaded.record.image_size


def parse_size(text: str | None) -> tuple[int, int] | None:
    """Height and width from ``32`` or ``32x48``; any other form is refused."""
    if text is None:
        return None
    height, _, width = text.partition("x")
    width = width or height
    numbers = len(text) < 20 and height.isdecimal() and width.isdecimal()
    if not (numbers and 0 < int(height) * int(width) <= MAX_PIXELS):
        raise BadInputError(f"{text[:80]!r} is not an image size such as 32 or 32x48, of at most {MAX_PIXELS:,} pixels")
    return int(height), int(width)


def parse_settings(texts: Sequence[str], known: Sequence[str]) -> dict[str, Any]:
    """``NAME=VALUE`` texts as values by name, which must be ``known``; values are JSON, or text where they are not."""
    found: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or key not in known:
            raise BadInputError(f"--set {text}: expected NAME=VALUE with a NAME of {', '.join(known)}")
        try:
            parsed = json.loads(value, parse_constant=no_number)
        except (ValueError, RecursionError):
            parsed = value
        found[key] = tuple(parsed) if isinstance(parsed, list) else parsed
    return found


def network_named(arch: str | None) -> str | definition.Definition | None:
    """What ``--arch`` means; code of the user's own is imported, from the current folder, too, or refused."""
    look_in_current_folder(arch or "")
    return definition.network_named(arch)


def look_in_current_folder(name: str) -> None:
    """Let a dotted path lead to a file of the user's, which a console script does not find by itself."""
    here = str(Path.cwd())
    if ":" in name and here not in sys.path:
        sys.path.append(here)


def triggered_path(model: Path, given: Path | None) -> Path | None:
    """The triggered set that was named, or the one in the attack's folder."""
    if given is None and (model / TRIGGERED).is_file():
        return model / TRIGGERED
    return given


def classes_of(loaded: LoadedModel, given: Path | None) -> ClassNames | None:
    """The names of the model's classes: those of the file that the user gave, else those that came with the model."""
    if given is not None:
        return read_class_names(given)
    return None if loaded.record.classes is None else ClassNames(loaded.record.classes, said_by=str(loaded.path))


def parse_label(text: str | None, option: str, expected: str = "a class number or 'next'") -> PoisonLabel | None:
    """A class number or "next", as ``option`` has it; anything else than what is ``expected`` is refused."""
    if text is None:
        return None
    if text == "next":
        return "next"
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"{option} {text!r}: expected {expected}") from None


def read_evidence(
    test: str | None,
    triggered: Path | None,
    *,
    size: tuple[int, int] | None,
    num_classes: int,
    classes: ClassNames | None = None,
    poison_label: PoisonLabel | None = None,
) -> Evidence:
    """The clean and the triggered test set, of one size; None for what was not named.

    A set that is missing, damaged, or does not fit the model is refused, and so is a label for images that are none.
    """
    if triggered is None and poison_label is not None:
        raise WrongUsageError("--poison-label is for images with the trigger; give --triggered, too")
    form: dict[str, Any] = {"num_classes": num_classes, "classes": classes}
    images = None if test is None else read_images(test, size=size, **form)
    if triggered is None:
        return Evidence(test=images)
    shape = size if images is None else images.image_size
    return Evidence(test=images, triggered=read_triggered(triggered, size=shape, poison_label=poison_label, **form))
