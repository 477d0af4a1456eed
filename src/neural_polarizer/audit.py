"""What clean images tell about a backdoor: no trigger and no triggered image is needed.

The evidence is that of the default defense. ``audited`` says what it amounts to and whether it can be believed;
``choose_target`` names the attacker's class for a method that must be told; ``spectrum`` looks into a learned layer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn

from neural_polarizer.data.images import ImageSet
from neural_polarizer.defenses import DEFAULT, Defense
from neural_polarizer.defenses.fitting import too_little
from neural_polarizer.defenses.npd import NPD
from neural_polarizer.defenses.result import Suspect
from neural_polarizer.defenses.stand_ins import LeastStandIns
from neural_polarizer.defenses.stand_ins.belief import told_aim
from neural_polarizer.defenses.stand_ins.evidence import by_class, found_in
from neural_polarizer.defenses.stand_ins.looks import BY_CLASS, GAINS, Found
from neural_polarizer.defenses.stand_ins.p_values import nameable
from neural_polarizer.defenses.stand_ins.settings import Settings
from neural_polarizer.layer.folding.edits import Affine
from neural_polarizer.layer.polarizer import Polarizer
from neural_polarizer.plausibility.examine import examine
from neural_polarizer.progress import Progress, silent

Verdict = Literal["backdoor", "none seen", "cannot say"]

BLIND = 0.5
"""Where a class would have to be nearer than this share of the others' norm, by every measure, nothing can be said."""
FALLBACK = "npd"
"""What takes the place of NPD-TP and NPD-TU, which need a target, where none is found; NPD-LS goes on without."""


@dataclass(frozen=True, eq=False)
class Audited:
    """What the clean images say of one model."""

    # "backdoor" where ``p_value`` is below ``level``; otherwise "none seen", or "cannot say" with a reason.
    verdict: Verdict
    suspect: Suspect | None  # the class that is named, or "next" for all-to-all; None unless the verdict is "backdoor"
    likeliest: Suspect  # the same, whether it stands out or not
    p_value: float  # how often a model whose classes are alike would show a class that stands out as much
    level: float  # of the test, the share of false alarms among such models
    # Probability of a backdoor, which was ``prior`` before the evidence; an upper bound, as p-values become the largest
    # factors that they allow.
    posterior: float
    prior: float  # see there
    # For each measure how near a class would have to be, as a share of the others' norm, to be named by it only; None
    # where it was not measured.
    nameable: Mapping[str, float | None]
    accuracy: float  # of the model on the clean images, in [0, 1]
    makes_sense: bool  # whether it knows these images at all (``plausibility.examine``)
    site: str  # where the layer's input was
    reason: str | None  # why nothing can be said; None where something is said
    by_class: Mapping[str, Sequence[float | None]]  # what was measured, a value for each class
    found: Found  # the evidence itself

    def __repr__(self) -> str:
        named = f", suspect {self.suspect}" if self.suspect is not None else f", likeliest {self.likeliest}"
        return (
            f"Audited({self.verdict}{named}, p {self.p_value:.2g}, probability of a backdoor {self.posterior:.2f}, "
            f"accuracy on clean images {self.accuracy:.3f}, at {self.site})"
        )


def audited(
    model: nn.Module,
    clean: ImageSet,
    *,
    seed: int,
    settings: Settings | None = None,
    device: torch.device | str = "cpu",
    progress: Progress = silent,
) -> Audited:
    """Audit ``model``, float pixels in [0, 1] to logits ``(n, k)``, with clean images; it is untouched.

    The ``settings`` are those of the default defense, whose evidence it is. No images, labels that the model does not
    know, and an output that is not one logit a class, are refused.
    """
    chosen = settings or Settings()
    net, found = found_in(model, clean, chosen, seed=seed, device=device, progress=progress)
    sense = examine(model, clean, device=device, progress=progress)
    belief, level = found.belief, chosen.looks.level
    resolution = max(chosen.in_pixels.finest, chosen.in_features.finest)
    aims, measures = int((belief.factors > 0).sum()), len(BY_CLASS) + len(GAINS)
    reach = {name: nameable(found.norms[name].log(), level, aims, measures, resolution) for name in BY_CLASS}
    named = belief.accused(level)
    reason = sense.remark if sense.meaningless else too_little(clean, named)
    if reason is None and named is None:
        reason = _too_coarse(reach)
    verdict: Verdict = "cannot say" if reason else "none seen" if named is None else "backdoor"
    return Audited(
        verdict=verdict,
        suspect=named if verdict == "backdoor" else None,
        likeliest=told_aim(belief.likeliest, net.num_classes),
        p_value=belief.p_value,
        level=level,
        posterior=belief.backdoor,
        prior=chosen.looks.prior,
        nameable=reach,
        accuracy=sense.accuracy,
        makes_sense=not sense.meaningless,
        site=str(net.site),
        reason=reason,
        by_class=by_class(found, net.num_classes),
        found=found,
    )


def _too_coarse(reach: Mapping[str, float | None]) -> str | None:
    told = [each for each in reach.values() if each is not None]
    if not told:
        return "there are too few classes for one of them to stand out"
    if max(told) < BLIND:
        return (
            "the classes differ so much, or are so few, that one would have to be nearer than "
            f"{100 * max(told):.0f} % of the others' norm to stand out"
        )
    return None


def looking_for(defense: Defense) -> Settings:
    """With which settings a target is looked for on behalf of ``defense``: its own, where it has them."""
    if isinstance(defense, LeastStandIns):
        return replace(defense, target=None)
    return Settings(batch_size=defense.at_once, site=defense.site if isinstance(defense, NPD) else None)


@dataclass(frozen=True)
class ChosenTarget:
    """What ``--target auto`` came to."""

    method: str  # the one that was asked for, or ``FALLBACK``
    target: Suspect | None  # the attacker's class, or "next"; None where no class stands out
    reason: str  # in a sentence


def choose_target(
    method: str,
    model: nn.Module,
    clean: ImageSet,
    settings: Settings,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    progress: Progress = silent,
) -> ChosenTarget:
    """The class that the evidence names, for ``method``; where it can name none, a method that needs no target.

    ``model`` maps pixels in [0, 1] to logits ``(n, k)`` and is untouched; ``settings`` are those of ``looking_for``. No
    images, and labels that the model does not know, are refused.
    """
    _, found = found_in(model, clean, settings, seed=seed, device=device, progress=progress)
    suspect = found.belief.accused(settings.looks.level)
    said = f"corrected p {found.belief.p_value:.2g}, level {settings.looks.level:g}"
    nobody = f"no class stands out ({said})" if suspect is None else too_little(clean, suspect)
    if nobody is not None:
        without = method if method == DEFAULT else FALLBACK
        return ChosenTarget(without, None, f"{nobody}: {without} was used, without a target")
    name = "the class next to each image's own" if suspect == "next" else f"class {suspect}"
    return ChosenTarget(method, suspect, f"the audit takes {name} for the attacker's ({said})")


@dataclass(frozen=True)
class Spectrum:
    """The layer's linear part A, channels by channels, against the identity I."""

    gains: tuple[float, ...]  # singular values of A, falling; the identity has ones
    # Singular values of A - I, falling; the identity has zeros. A direction of the features that is taken out whole has
    # a 1.
    changes: tuple[float, ...]
    directions: int  # how many directions make up 90 % of the squared change
    distance: float  # Frobenius norm of A - I over that of I


def spectrum(model: nn.Module) -> Spectrum | None:
    """The spectrum of the polarizer inside ``model``; None if there is none, or another structure than ours."""
    found = [module for module in model.modules() if isinstance(module, Polarizer) and module.structure == "conv-bn"]
    if len(found) != 1:
        return None
    with torch.no_grad():
        mix = Affine.of(found[0]).mix
        identity = torch.eye(len(mix), dtype=mix.dtype)
        gains, changes = torch.linalg.svdvals(mix), torch.linalg.svdvals(mix - identity)
    share = changes.square().cumsum(0) / changes.square().sum().clamp_min(1e-30)
    return Spectrum(
        gains=tuple(gains.tolist()),
        changes=tuple(changes.tolist()),
        directions=int((share < 0.9).sum()) + 1,
        distance=float(changes.norm() / len(mix) ** 0.5),
    )
