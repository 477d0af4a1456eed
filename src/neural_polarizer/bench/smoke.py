"""The smallest form of attacks and defenses: no result to be believed, but every step of it is taken."""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from neural_polarizer.attacks import Attack
from neural_polarizer.defenses import Defense
from neural_polarizer.runs.attack import Victim
from neural_polarizer.settings import changed

SMOKE_DATA = "digits"
SMOKE_IMAGES, FEWER_IMAGES = 1000, 100
SMOKE_CLEAN = 50

_SMALL: Mapping[str, tuple[int, int]] = MappingProxyType(
    {
        "preactresnet18": (4, SMOKE_IMAGES),
        "vgg19": (4, SMOKE_IMAGES),
        "vgg19_bn": (4, SMOKE_IMAGES),
        "densenet161": (6, FEWER_IMAGES),
        "inception_v3": (2, FEWER_IMAGES),
    }
)
"""Widths, and numbers of training images."""

_ATTACKS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "input-aware": {"mask_epochs": 1, "widths": (4, 4, 4)},
        "lf": {"images": 20, "passes": 2, "deepfool_steps": 30},
        "ssba": {"bits": 4, "width": 4, "steps": 6, "min_bit_accuracy": 0.0, "min_psnr": 0.0},
        "trojan": {"steps": 20},
        "lc": {"steps": 2},
        "grond": {"steps": 5},
    }
)


def small_attack(attack: Attack, name: str) -> Attack:
    """The attack in a moment."""
    found: Attack = changed(attack, _ATTACKS.get(name, {}))
    return found


def small_victim(victim: Victim) -> tuple[Victim, int]:
    """The victim in a moment, and the number of its training images."""
    hardening = victim.schedule.adversarial
    schedule = replace(victim.schedule, epochs=1, batch_size=32, adversarial=hardening and replace(hardening, steps=1))
    if victim.architecture != "preactresnet18":  # deep networks learn nothing at all in 30 steps
        schedule = replace(schedule, epochs=3, batch_size=16, optimizer="sgd", lr=0.02, weight_decay=5e-4)
    width, images = _SMALL.get(victim.architecture, (None, FEWER_IMAGES))
    return replace(victim, width=width, schedule=schedule), images


def small_defense(defense: Defense) -> Defense:
    """The defense in a moment; methods of one's own say themselves how."""
    found: Defense = changed(defense, defense.smoke)
    return found
