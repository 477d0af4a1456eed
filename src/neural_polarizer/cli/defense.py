"""The options of ``polarizer purify``, and the defense with its settings that they ask for."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer

from neural_polarizer.cli import options
from neural_polarizer.cli.inputs import parse_label
from neural_polarizer.defenses import DEFAULT, DEFENSES, Defense
from neural_polarizer.defenses.npd.presets import Preset
from neural_polarizer.defenses.recipes import make_defense, with_options, with_precision
from neural_polarizer.devices import choose_precision
from neural_polarizer.model_files.record import ModelRecord
from neural_polarizer.models.normalize import PROFILES
from neural_polarizer.scales import Scale
from neural_polarizer.settings import changed, setting_names

AUTO = "auto"
"""The target of which an audit decides."""


@dataclass(frozen=True, kw_only=True)
class PurifyOptions:
    """What can be asked of ``polarizer purify``."""

    context: typer.Context
    model: Annotated[Path, typer.Argument(help="A checkpoint, or a folder of attack or transformers.")]
    clean: Annotated[str, typer.Option(help="Clean images: a folder or another data spec.", metavar="IMAGES")]
    out: options.Out
    arch: options.GivenArchitecture = None  # these two are those of ``reading``, further up in the help
    profile: options.ProfileName = None
    n_clean: Annotated[int | None, typer.Option(help="How many of the clean images to use. Default: all.", min=1)] = (
        None
    )
    test: Annotated[str | None, typer.Option(help="Test images, to measure the accuracy.", metavar="IMAGES")] = None
    triggered: Annotated[
        Path | None,
        typer.Option(
            help="Images with the trigger, to measure the attack. triggered.parquet, or a folder with --poison-label.",
            metavar="IMAGES",
        ),
    ] = None
    fold: Annotated[bool, typer.Option("--fold", help="Also write the model without the layer, as fast.")] = False
    method: Annotated[
        str,
        typer.Option(help=f"The defense; {', '.join(DEFENSES)}, or MODULE:CLASS of your own.", metavar="NAME"),
    ] = DEFAULT
    target: Annotated[
        str | None,
        typer.Option(
            help="The attacker's class, if you know it. npd-ls, npd-tp, npd-tu: a number, 'next' for all-to-all, or "
            "'auto': what an audit finds with confidence, and npd if it finds none.",
            metavar="CLASS",
        ),
    ] = None
    own: options.OwnSettings = None
    seed: options.Seed = 0
    site: Annotated[
        str | None,
        typer.Option(help="Where the layer goes: before:NAME, after:NAME or auto. NPD only; default: the preset's."),
    ] = None
    epochs: Annotated[int | None, typer.Option(help="Passes over the clean images.", min=1, metavar="N")] = None
    batch_size: Annotated[int | None, typer.Option(help="Images at once.", min=1, metavar="N")] = None
    radius: Annotated[
        list[float] | None,
        typer.Option(help="NPD: radius of the perturbations, in pixel units of [0, 1]. Repeatable."),
    ] = None
    preset: Annotated[
        Preset | None,
        typer.Option(help="NPD: shipped, paper or reference settings. The last are those of the authors' code."),
    ] = None
    scale: Annotated[
        Scale | None, typer.Option(help="Other methods: paper settings, or laptop: minutes on two cores.")
    ] = None
    mixture: Annotated[
        str | None,
        typer.Option(
            help="Poisoned training images, for ep only. It sees these instead of the clean ones.", metavar="IMAGES"
        ),
    ] = None
    reading: options.Reading
    classes: options.Classes = None
    poison_label: options.PoisonLabelText = None
    precision: options.PrecisionName = None
    device: options.DeviceName = None
    force: Annotated[
        bool,
        typer.Option("--force", help="Go on where the model only guesses on the clean images."),
    ] = False
    quiet: options.Quiet = False


def chosen_defense(asked: PurifyOptions, profile: str | None, device: torch.device) -> Defense:
    """The defense that was asked for.

    Args:
        asked: the options.
        profile: which data set the images are like, a name of ``PROFILES``; None if that is not known.
        device: where it will compute.

    Raises:
        typer.BadParameter: unknown method, or a target that is neither a class nor "next".
        WrongUsageError: an option that makes no sense for the method.
        BadInputError: a setting is unknown or out of its range, or a method of one's own cannot be loaded.
    """
    method = asked.method
    if method not in DEFENSES and ":" not in method:
        raise typer.BadParameter(f"--method {method!r}: choose one of {', '.join(DEFENSES)}, or give MODULE:CLASS")
    options.look_in_current_folder(method)
    # any class, to check the other options with; ``purify`` puts the audit's in its place
    target = 0 if asked.target == AUTO else parse_label(asked.target, "--target", "a class number, 'next' or 'auto'")
    defense = make_defense(method, name=asked.preset, scale=asked.scale, profile=profile, target=target)
    given = {
        "site": asked.site,
        "epochs": asked.epochs,
        "batch-size": asked.batch_size,
        "radius": tuple(asked.radius) if asked.radius else None,
        "precision": asked.precision,
        "mixture": None if asked.mixture is None else "mixture",
    }
    defense = with_options(with_precision(defense, choose_precision(device)), method, given)
    changes = options.parse_settings(asked.own or (), setting_names(defense))
    found: Defense = changed(defense, changes)
    return found


def profile_of(record: ModelRecord) -> str | None:
    """The data set with the model's normalisation, if only one has it."""
    names = [name for name, statistics in PROFILES.items() if statistics == (record.mean, record.std)]
    return names[0] if len(names) == 1 else None
