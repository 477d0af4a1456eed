"""The settings of the NPD family: ours, the paper's, and those of the authors' code."""

from dataclasses import replace
from types import MappingProxyType
from typing import Any, Literal, get_args

from neural_polarizer.defenses.npd.defense import NPD
from neural_polarizer.defenses.npd.settings import Target as Target
from neural_polarizer.errors import BadInputError
from neural_polarizer.models.normalize import PROFILES
from neural_polarizer.settings import check_choice

Preset = Literal["shipped", "paper", "reference"]

VARIANTS = MappingProxyType(
    {
        "npd": {"perturbation": "sample", "goal": "targeted"},
        "npd-tp": {"perturbation": "sample", "goal": "targeted"},
        "npd-tu": {"perturbation": "universal", "goal": "targeted"},
        "npd-up": {"perturbation": "sample", "goal": "untargeted"},
        "npd-uu": {"perturbation": "universal", "goal": "untargeted"},
    }
)
"""The five methods; TP and TU know the attacker's target."""

AIMS = MappingProxyType(
    {
        "npd": "a wrong class",
        "npd-tp": "the class that the attacker was said to want",
        "npd-tu": "the class that the attacker was said to want",
        "npd-up": "any class but the true one",
        "npd-uu": "any class but the true one",
    }
)
"""What their perturbations lead to, in the words of the report."""

KNOWS_TARGET = ("npd-tp", "npd-tu")

PAPER_SITE = "before:layer4.1.conv1"

_STRONG: dict[str, Any] = {"radii": (5.0,), "steps": 4}
"""Shipped perturbations that are one for the batch, or lead to the attacker's class (docs/research/defaults.md)."""

_PAPER: dict[str, Any] = {
    "site": PAPER_SITE,
    "init": "default",
    "epochs": 50,
    "batch_size": 128,
    "lr": 0.01,
    "lr_policy": "constant",
    "max_gradient": None,
    "step_rule": "sign",
}

_REFERENCE: dict[str, dict[str, Any]] = {
    "cifar10": {},
    "cifar100": {"epochs": 100, "batch_size": 256},
    "gtsrb": {"radii": (5.0,), "asr_weight": 0.5, "bce_weight": 0.5},
    "tiny_imagenet": {
        "warmup_epochs": 0,
        "radii": (6.0,),
        "step_rule": "gradient",
        "asr_weight": 0.1,
        "bce_weight": 1.0,
        "bn_outer": "train_clean_stats",
    },
}


def variant_of(settings: NPD) -> str:
    """Which of the five methods these settings make."""
    name = {
        ("sample", "targeted"): "npd" if settings.target is None else "npd-tp",
        ("universal", "targeted"): "npd-tu",
        ("sample", "untargeted"): "npd-up",
        ("universal", "untargeted"): "npd-uu",
    }
    return name[settings.perturbation, settings.goal]


def preset(method: str, *, name: Preset = "shipped", profile: str | None = None, target: Target = None) -> NPD:
    """The settings of one method.

    Args:
        method: a key of ``VARIANTS``.
        name: "shipped" (docs/explanation/paper.md), "paper" (its values and site), or "reference" (what the authors'
            code really does, but with the sign step and one weight for both terms of L_bce on Tiny ImageNet).
        profile: data set, for the values that "paper" and "reference" make depend on it.
        target: the attacker's class or "next"; needed by NPD-TP and NPD-TU, refused by the others.

    Raises:
        BadInputError: unknown method, or a target where none belongs, or none where one does.
    """
    check_choice("method", method, VARIANTS)
    check_choice("preset", name, get_args(Preset))
    if profile is not None:
        check_choice("profile", profile, PROFILES)
    if (target is not None) != (method in KNOWS_TARGET):
        needs = "needs the attacker's class: give target" if target is None else "does not use a target: leave it out"
        raise BadInputError(f"{method} {needs}")
    variant: dict[str, Any] = {**VARIANTS[method], "target": target}
    if name == "shipped":
        strong = method in KNOWS_TARGET or variant["perturbation"] == "universal"
        return NPD(**variant, **(_STRONG if strong else {}))
    weight = 0.1 if method in KNOWS_TARGET else 0.4
    radii = (6.0,) if profile == "tiny_imagenet" else (3.0,)
    paper = NPD(**variant, **_PAPER, radii=radii, asr_weight=weight, bce_weight=weight)
    if name == "paper":
        return paper
    changes = dict(_REFERENCE.get(profile or "", {}))
    if method in KNOWS_TARGET:  # not in the authors' code: the paper's weights stay
        changes = {key: value for key, value in changes.items() if key not in ("asr_weight", "bce_weight")}
    return replace(paper, loss_form="clamped", bce_label="predicted", early_stop=0.6, **changes)
