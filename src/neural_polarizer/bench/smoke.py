"""The smallest form of attacks and defenses: no result to be believed, but every step of it is taken."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

from neural_polarizer.attacks import Attack
from neural_polarizer.defenses import Defense
from neural_polarizer.runs.attack import Victim
from neural_polarizer.settings import changed

SMOKE_DATA = "digits"
SMOKE_IMAGES, FEWER_IMAGES = 1000, 100
SMOKE_CLEAN = 50

Method = TypeVar("Method", Attack, Defense)

_SMALL: Mapping[str, tuple[int, int]] = {
    "preactresnet18": (4, SMOKE_IMAGES),
    "vgg19": (4, SMOKE_IMAGES),
    "vgg19_bn": (4, SMOKE_IMAGES),
    "densenet161": (6, FEWER_IMAGES),
    "inception_v3": (2, FEWER_IMAGES),
}
"""Widths, and numbers of training images."""


def small(method: Method) -> Method:
    """An attack or a defense in a moment; each says itself how."""
    found: Method = changed(method, method.smoke)
    return found


def small_victim(victim: Victim) -> tuple[Victim, int]:
    """The victim in a moment, and the number of its training images."""
    hardening = victim.schedule.adversarial
    schedule = replace(victim.schedule, epochs=1, batch_size=32, adversarial=hardening and replace(hardening, steps=1))
    if victim.architecture != "preactresnet18":  # deep networks learn nothing at all in 30 steps
        schedule = replace(schedule, epochs=3, batch_size=16, optimizer="sgd", lr=0.02, weight_decay=5e-4)
    width, images = _SMALL.get(victim.architecture, (None, FEWER_IMAGES))
    return replace(victim, width=width, schedule=schedule), images
