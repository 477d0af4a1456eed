"""Every attack in a size that takes a moment, on images of 32 pixels."""

from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from neural_polarizer.attacks import ATTACKS, Attack, Workshop
from neural_polarizer.attacks.base import TriggerState
from neural_polarizer.data.images import ImageSet
from neural_polarizer.models.normalize import Normalized
from neural_polarizer.train.fit import fit
from neural_polarizer.train.schedule import Schedule
from toys import TinyNet, made, tiny_images

SETTINGS: dict[str, dict[str, Any]] = {
    "input-aware": {"mask_epochs": 1, "widths": (4, 4, 4)},
    "lf": {"images": 6, "passes": 2, "target": 1},
    "ssba": {"bits": 4, "width": 4, "steps": 6, "min_bit_accuracy": 0.0, "min_psnr": 0.0},
    "trojan": {"steps": 20},
    "lc": {"steps": 2},
    "grond": {"steps": 3, "batch": 8},
}
TRAIN, TEST = tiny_images(48, size=32), tiny_images(12, size=32, seed=1)
SCHEDULE = Schedule(epochs=2, batch_size=16, lr=0.02, crop_padding=1, flip=False)


def quick_attack(name: str, **more: Any) -> Attack:
    """The attack called ``name``, small."""
    return ATTACKS[name](**{**SETTINGS.get(name, {}), **more})


def untrained(seed: int = 0) -> nn.Module:
    """A small network behind a normalisation."""
    return made(Normalized(TinyNet(), (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)), seed)


@cache
def _trained() -> nn.Module:
    model = untrained()
    fit(model, TRAIN, Schedule(epochs=6, batch_size=16, lr=0.1, crop_padding=0, flip=False), seed=0)
    return model


def workshop(*, seed: int = 0, checkpoint: Path | None = None, schedule: Schedule = SCHEDULE) -> Workshop:
    """What an attack works with, and a clean model that knows its classes."""
    return Workshop(
        schedule=schedule, seed=seed, device=torch.device("cpu"), clean_model=_trained, checkpoint=checkpoint
    )


def learned(attack: Attack, train: ImageSet = TRAIN, seed: int = 0) -> TriggerState:
    """What the attack's trigger learns."""
    return attack.learn(train, workshop(seed=seed))
