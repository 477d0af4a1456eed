"""How often the test of the evidence accuses a model whose classes are all alike (docs/research/audit.md).

    python benchmarks/false_alarms.py

Simulated: normal logarithms of norms and gains, which share a part, so that measures are correlated.
"""

import torch

from neural_polarizer.defenses.stand_ins.belief import believed
from neural_polarizer.defenses.stand_ins.looks import BY_CLASS, GAINS
from neural_polarizer.defenses.stand_ins.settings import Settings

MODELS = 1500


def accused(classes: int, correlation: float) -> float:
    """Share of the models in which a class stands out."""
    settings, generator, count = Settings(), torch.Generator().manual_seed(0), 0
    for _ in range(MODELS):
        shared = torch.randn(classes, generator=generator) * correlation**0.5
        measures = [
            shared + torch.randn(classes, generator=generator) * (1 - correlation) ** 0.5 for _ in (*BY_CLASS, *GAINS)
        ]
        forms = [measures[BY_CLASS.index(name)] for name in ("dense", "smooth", "features")]
        shifts = torch.randn(classes - 1, generator=generator)
        belief = believed(measures, forms, shifts, settings.looks, settings.in_pixels.finest)
        count += belief.p_value < settings.looks.level
    return count / MODELS


def main() -> None:
    for classes in (6, 10, 43):
        for correlation in (0.0, 0.5, 0.8):
            print(f"{classes} classes, correlation {correlation}: {100 * accused(classes, correlation):.1f} %")


if __name__ == "__main__":
    main()
