"""Options that several commands share, each declared once."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from neural_polarizer.errors import BadInputError

Profile = Literal["cifar10", "cifar100", "gtsrb", "tiny_imagenet", "imagenet", "none"]


Out = Annotated[Path, typer.Option(help="Folder for the results; made if need be.")]
Architecture = Annotated[str, typer.Option(help="preactresnet18, vgg19_bn, torchvision:NAME or timm:NAME.")]
Width = Annotated[int | None, typer.Option(help="Channels of preactresnet18's first stage (64).", min=1)]
ProfileName = Annotated[Profile, typer.Option(help="Normalisation: the pixel statistics of which data set.")]
Size = Annotated[
    str | None,
    typer.Option(help="Resize all images to this, as 32 or 32x48; needed where they differ.", metavar="HxW"),
]
Limit = Annotated[int | None, typer.Option(help="Use only the first N training images.", min=1)]
PrecisionName = Annotated[
    Literal["fp32", "bf16"] | None, typer.Option(help="Default: bf16 where the hardware computes in it.")
]
DeviceName = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ...; default: cuda if there is one.")]
Seed = Annotated[int, typer.Option(help="Fixes every random choice.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")]


def parse_size(text: str | None) -> tuple[int, int] | None:
    """Height and width from ``32`` or ``32x48``.

    Raises:
        BadInputError: any other form.
    """
    if text is None:
        return None
    height, _, width = text.partition("x")
    width = width or height
    if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise BadInputError(f"{text!r} is not an image size such as 32 or 32x48")
    return int(height), int(width)
