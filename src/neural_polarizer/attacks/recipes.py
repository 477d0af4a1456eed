"""How the victims are trained: the paper's recipe, a short one for a GPU, and one for a laptop without."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, get_args

import torch
from torch import nn

from neural_polarizer.attacks.base import Attack, LearnedTrigger, Workshop
from neural_polarizer.data.images import ImageSet
from neural_polarizer.models.forms import copied
from neural_polarizer.progress import Progress, silent
from neural_polarizer.scales import VictimScale, mirrored
from neural_polarizer.settings import check_choice
from neural_polarizer.train.schedule import Schedule

PAPER_EPOCHS: Mapping[str, int] = {"gtsrb": 50, "tiny_imagenet": 200}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a scale stands for."""

    settings: Mapping[str, Any]  # of the attack, where they differ from its defaults
    schedule: Schedule  # how to train the victim
    width: int | None  # channels of the first stage of ``preactresnet18``; None is its full width
    pgd_steps: int  # towards each adversarial example, for the adaptive attacker


def recipe(kind: type[Attack], *, scale: VictimScale = "paper", profile: str = "none", implant: bool = False) -> Recipe:
    """The recipe of one attack for one kind of images.

    "paper" is 100 epochs (GTSRB 50, Tiny ImageNet 200) of SGD at full width. "laptop" is a network of
    width 16 in few epochs of one-cycle training with small crops: minutes on two cores (docs/research/attacks.md).
    "short" is the full width in twice as many epochs, with the paper's crops.

    Args:
        kind: the attack's class; its ``recipe``, ``laptop`` and ``laptop_epochs`` say what it needs otherwise.
        scale: "paper", "short" or "laptop".
        profile: which data set the images are like, a name of ``PROFILES``.
        implant: fine-tune a trained network, in few epochs at a low rate whatever the scale.

    Raises:
        BadInputError: unknown scale.
    """
    check_choice("scale", scale, get_args(VictimScale))
    flip = mirrored(profile)
    if scale == "paper" and not implant:
        options: dict[str, Any] = {"epochs": PAPER_EPOCHS.get(profile, 100), "flip": flip, **kind.recipe}
        return Recipe(settings={}, schedule=Schedule(**options), width=None, pgd_steps=7)
    epochs, lr, crop = kind.laptop_epochs, 0.1, 2
    if implant:
        epochs, lr = kind.implant_epochs, 0.02
    elif scale == "short":
        epochs, crop = 2 * epochs, 4
    schedule = Schedule(epochs=epochs, policy="one-cycle", lr=lr, crop_padding=crop, flip=flip)
    narrow = scale == "laptop" and not implant
    return Recipe(settings=kind.laptop, schedule=schedule, width=16 if narrow else None, pgd_steps=2)


class Implanted(NamedTuple):
    """A network with a backdoor, in evaluation mode, and the trigger that works on it."""

    model: nn.Module
    trigger: LearnedTrigger


def implant(
    model: nn.Module,
    attack: Attack,
    train: ImageSet,
    *,
    schedule: Schedule | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Progress = silent,
) -> Implanted:
    """Plant a backdoor into a trained network by fine-tuning a copy of it, as an attacker would who uploads it again.

    Args:
        model: float pixels in [0, 1], ``(n, 3, h, w)``, to logits, in float32; left as it was. Attacks that need a
            clean classifier take it.
        attack: what to plant.
        train: the attacker's training images.
        schedule: how to fine-tune; None is the recipe for implants.
        seed: fixes every random choice.
        device: where to compute.
        progress: told about every step.

    Raises:
        BadInputError: the attack cannot work on the images, or training failed.
    """
    attack.check(train)
    workshop = Workshop(
        schedule=schedule or recipe(type(attack), implant=True).schedule,
        seed=seed,
        device=torch.device(device),
        clean_model=lambda: copied(model).cpu().eval(),
        progress=progress,
    )
    planted_into = copied(model).requires_grad_(True)
    planted = attack.plant(planted_into, train, attack.learn(train, workshop), workshop)
    return Implanted(planted_into, LearnedTrigger(attack, planted.state))
