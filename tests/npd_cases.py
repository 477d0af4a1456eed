"""Settings of the NPD family that several test files go through."""

from dataclasses import replace

from torch import nn

from neural_polarizer.data.images import ImageSet
from neural_polarizer.defenses import Repaired
from neural_polarizer.defenses.npd import NPD
from neural_polarizer.layer.polarizer import Polarizer

SMALL = NPD(
    site="after:features",
    epochs=2,
    batch_size=10,
    radii=(1.0,),
    lr=0.05,
    lr_policy="constant",
    asr_weight=0.4,
    bce_weight=0.4,
)
WARM = replace(SMALL, init="default", warmup_epochs=2, warmup_lr=0.01)

CASES: dict[str, NPD] = {
    "npd": SMALL,
    "npd-tp": replace(SMALL, target=1),
    "npd-tp, all-to-all": replace(SMALL, target="next"),
    "npd-tu": replace(SMALL, perturbation="universal", target=1),
    "npd-up": replace(SMALL, goal="untargeted"),
    "npd-uu": replace(SMALL, goal="untargeted", perturbation="universal"),
    "warm-up": WARM,
    "training statistics": replace(WARM, bn_outer="train_clean_stats"),
    "training statistics, tp": replace(WARM, bn_outer="train_clean_stats", target=1, epochs=1),
    "reference": replace(WARM, loss_form="clamped", bce_label="predicted", early_stop=0.6),
    "radii in turn": replace(SMALL, radii=(0.5, 1.0, 2.0)),
    "radii in turn, universal": replace(SMALL, radii=(0.5, 2.0), perturbation="universal"),
    "cosine": replace(SMALL, lr_policy="cosine", epochs=3),
    "gradient steps, linf": replace(SMALL, step_rule="gradient", norm="linf", radii=(0.05,), step_size=0.02),
    "other weights": replace(SMALL, benign_weight=0.5, asr_weight=1.5, bce_weight=0.1, momentum=0.5, weight_decay=0.1),
    "no inner steps": replace(SMALL, steps=0),
}


def repaired(model: nn.Module, clean: ImageSet, settings: NPD, seed: int = 0) -> Repaired:
    return settings.repair(model, clean, seed=seed)


def polarizer_of(purified: Repaired) -> Polarizer:
    assert purified.polarizer is not None
    return purified.polarizer
