"""From the options of ``polarizer purify`` to a defense with its settings."""

from dataclasses import dataclass

import torch
import typer

from neural_polarizer.cli.options import look_in_current_folder, parse_settings
from neural_polarizer.defenses import DEFENSES, Defense
from neural_polarizer.defenses.npd.presets import Preset, Target
from neural_polarizer.defenses.recipes import make_defense, with_options, with_precision
from neural_polarizer.devices import Precision, choose_precision
from neural_polarizer.model_files.record import ModelRecord
from neural_polarizer.models.normalize import PROFILES
from neural_polarizer.scales import Scale
from neural_polarizer.settings import changed, setting_names

AUTO = "auto"
"""The target of which an audit decides."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The options that say which defense and how, as they were given; None for what was not."""

    method: str
    preset: Preset | None
    scale: Scale | None
    target: str | None
    site: str | None
    epochs: int | None
    batch_size: int | None
    radii: tuple[float, ...] | None
    precision: Precision | None
    mixture: str | None
    own: tuple[str, ...]


def chosen_defense(wanted: Wanted, profile: str | None, device: torch.device) -> Defense:
    """The defense that was asked for.

    Args:
        wanted: the options.
        profile: which data set the images are like, a name of ``PROFILES``; None if that is not known.
        device: where it will compute.

    Raises:
        typer.BadParameter: unknown method, or a target that is neither a class nor "next".
        WrongUsageError: an option that makes no sense for the method.
        BadInputError: a setting is unknown or out of its range, or a method of one's own cannot be loaded.
    """
    method = wanted.method
    if method not in DEFENSES and ":" not in method:
        raise typer.BadParameter(f"--method {method!r}: choose one of {', '.join(DEFENSES)}, or give MODULE:CLASS")
    look_in_current_folder(method)
    defense = make_defense(
        method, name=wanted.preset, scale=wanted.scale, profile=profile, target=_target(wanted.target)
    )
    options = {
        "site": wanted.site,
        "epochs": wanted.epochs,
        "batch-size": wanted.batch_size,
        "radius": wanted.radii,
        "precision": wanted.precision,
        "mixture": None if wanted.mixture is None else "mixture",
    }
    defense = with_options(with_precision(defense, choose_precision(device)), method, options)
    changes = parse_settings(wanted.own, setting_names(defense))
    found: Defense = changed(defense, changes)
    return found


def profile_of(record: ModelRecord) -> str | None:
    """The data set with the model's normalisation, if only one has it."""
    names = [name for name, statistics in PROFILES.items() if statistics == (record.mean, record.std)]
    return names[0] if len(names) == 1 else None


def _target(text: str | None) -> Target:
    if text is None or text == "next":
        return "next" if text else None
    if text == AUTO:
        return 0  # any class, to check the other options with; ``purify`` puts the audit's in its place
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"--target {text!r}: expected a class number, 'next' or 'auto'") from None
