"""From a method's name to a defense: with the paper's settings, those for a laptop, or what the user asks for."""

from collections.abc import Mapping
from operator import attrgetter
from typing import Any, get_args

from neural_polarizer.defenses import DEFAULT, DEFENSES, defense_class
from neural_polarizer.defenses.base import Defense
from neural_polarizer.defenses.npd.presets import VARIANTS, Preset, Target, preset
from neural_polarizer.errors import BadInputError, WrongUsageError
from neural_polarizer.models.normalize import PROFILES
from neural_polarizer.scales import Scale, mirrored
from neural_polarizer.settings import changed, check_choice, places, setting_names

PAPER_EPOCHS: Mapping[str, int] = {"gtsrb": 50}
"""Appendix B; 100 for all other data sets."""

_EPOCHS = ("student.epochs", "schedule.epochs", "epochs")
"""What "epochs" means for a method: the first of these that it has."""

AUTO = "auto"
"""The site that a network gets by itself, also where a preset names one."""

_FIELD: Mapping[str, str] = {"radius": "radii", "batch-size": "batch_size", "mixture": "data"}


def make_defense(
    method: str,
    *,
    name: Preset | None = None,
    scale: Scale | None = None,
    profile: str | None = None,
    target: Target = None,
) -> Defense:
    """The defense that ``method`` names.

    Args:
        method: a key of ``DEFENSES``, or the dotted path of a class.
        name: preset, for the NPD family alone; None is "shipped".
        scale: "paper" (appendix B; the default) or "laptop" (docs/research/defenses.md), for all others.
        profile: which data set the images are like, a name of ``PROFILES``.
        target: the attacker's class or "next"; NPD-TP and NPD-TU need it, the default method can do without.

    Raises:
        BadInputError: unknown method, scale, preset or profile, or a target is missing.
        WrongUsageError: a preset, scale or target where none belongs.
    """
    if method in VARIANTS:
        if scale is not None:
            raise WrongUsageError(f"{method} has presets, not scales: leave the scale out")
        return preset(method, name=name or "shipped", profile=profile, target=target)
    kind = defense_class(method)
    named = {"target"} if method == DEFAULT else set()
    for option, value in (("preset", name), ("target", target)):
        if value is not None and option not in named:
            raise WrongUsageError(f"{method} takes no {option}, which is for the NPD family: leave it out")
    check_choice("scale", scale or "paper", get_args(Scale))
    if profile is not None:
        check_choice("profile", profile, PROFILES)
    try:
        defense = kind()
    except TypeError as error:
        raise BadInputError(f"{method}: every setting of a defense needs a default ({error})") from None
    usual = _of_the_data(defense, profile) if method in DEFENSES else {}
    for_profile: Mapping[str, Any] = kind.for_profile.get(profile or "", {})
    laptop: Mapping[str, Any] = kind.laptop if scale == "laptop" else {}
    aim = {} if target is None else {"target": target}
    return changed(defense, {**usual, **for_profile, **laptop, **aim})


def _of_the_data(defense: Defense, profile: str | None) -> dict[str, Any]:
    changes: dict[str, Any] = dict.fromkeys(places(defense, "flip"), mirrored(profile))
    if profile is not None and profile in PAPER_EPOCHS:
        given = [name for name in _settings_for(defense, "epochs") if attrgetter(name)(defense) is not None]
        changes |= dict.fromkeys(given, PAPER_EPOCHS[profile])
    return changes


def with_options(defense: Defense, method: str, options: Mapping[str, Any]) -> Defense:
    """The defense with what the user asked for.

    ``options`` are values by "site", "radius", "epochs", "batch-size", "precision" or "mixture"; None: not asked for.
    ``method`` is its name, for messages. What it has no setting for is refused.
    """
    changes: dict[str, Any] = {}
    for option, value in options.items():
        if value is None:
            continue
        found = _settings_for(defense, option)
        if not found:
            has = ", ".join(setting_names(defense)) or "none"
            raise WrongUsageError(f"{option} makes no sense for {method}, whose settings are: {has}")
        changes |= dict.fromkeys(found, None if (option, value) == ("site", AUTO) else value)
    return changed(defense, changes)


def _settings_for(defense: Defense, option: str) -> list[str]:
    if option == "epochs":
        return [name for name in _EPOCHS if name in setting_names(defense)][:1]
    return places(defense, _FIELD.get(option, option))


def with_precision(defense: Defense, precision: str) -> Defense:
    """The defense, computing in ``precision`` wherever it has the choice."""
    return changed(defense, dict.fromkeys(places(defense, "precision"), precision))
