"""The defense: look, gather stand-ins, learn to disregard them, and stop where it would do harm."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

from torch import nn

from neural_polarizer.data.images import ImageSet
from neural_polarizer.defenses.base import Defense, Run
from neural_polarizer.defenses.guard import Guarded
from neural_polarizer.defenses.result import Audit, Outcome
from neural_polarizer.defenses.stand_ins.evidence import by_class, summary
from neural_polarizer.defenses.stand_ins.looks import cost_of_looks
from neural_polarizer.defenses.stand_ins.place import Place
from neural_polarizer.defenses.stand_ins.settings import Settings


@dataclass(frozen=True, kw_only=True)
class LeastStandIns(Settings, Defense):
    """Learn one inserted affine layer that disregards the smallest perturbations which lead to an attacker's class.

    Source: our own.  The layer and its place in the frozen network are those of Zhu et al., "Neural Polarizer", NeurIPS
    2023, section 3.2; what stands in for the trigger and the objective are not the paper's.

    Its settings are those of ``Settings``.
    """

    title: ClassVar[str] = "NPD-LS"
    story: ClassVar[tuple[str, ...]] = (
        "Because the trigger is unknown, the smallest perturbations that lead most images to one class were looked "
        "for, in pixels and in features, mostly towards the classes that the evidence points to, and used in its "
        "place.",
    )
    inserts: ClassVar[bool] = True
    revision: ClassVar[int] = 19
    least_images: ClassVar[int] = 1
    smoke: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {
            "looks.pixels": 10,
            "looks.program_steps": 20,
            "in_pixels.steps": 3,
            "in_features.steps": 3,
            "bank.taught": 6,
            "bank.held": 2,
            "learning.steps": 5,
            "copies.total": 1,
            "guard.folds": 2,
        }
    )

    def cost_of_classes(self, images: int, classes: int) -> str | None:  # noqa: ARG002 (it does not depend on them)
        """That of the looks (``cost_of_looks``)."""
        return cost_of_looks(self, classes)

    def _run(self, model: nn.Module, clean: ImageSet, run: Run) -> Outcome:
        with run.timed("features"):
            place = Place(self, model, clean, run)
        with run.timed("look"):
            found, belief = place.look()
        with run.timed("stand_ins"):
            lesson = place.lesson(found, belief)
        with run.timed("learn"):
            learned = place.looked_ahead(place.learn(lesson, belief), belief)
            place.keep(learned)
        return Outcome(
            place.net.model,
            polarizer=place.net.polarizer,
            site=str(place.net.site),
            history=learned.history,
            notes=(*place.net.notes, *_remarks(learned.guarded, self.guard.max_acc_drop)),
            suspect=found.belief.accused(self.looks.level) if self.target is None else self.target,
            audit=Audit(summary(found.belief, self.looks.level), by_class(found, place.net.num_classes)),
            site_reason=place.net.site_reason,
            guarded=learned.guarded,
        )


def _remarks(guarded: Guarded, allowed: float) -> list[str]:
    if guarded.chosen == 0:
        return [f"not purified: {_why_not(guarded, allowed)}; the model comes back as it was"]
    found = []
    if guarded.over(guarded.lost):
        found.append(
            f"on clean images that it has not learned from, the layer loses {100 * guarded.lost:.1f} points of "
            f"accuracy, more than the budget of {100 * guarded.budget:.1f}, but within its error; compare both models "
            "on test images before you use this"
        )
    if not guarded.done:
        found.append(
            f"held-out stand-ins still lead {100 * guarded.point.suspect:.0f} % of the images to the most suspicious "
            f"class, so a trigger may still work; more clean images may help, or {_allowing_more(guarded, allowed)}"
        )
    return found


def _allowing_more(guarded: Guarded, allowed: float) -> str:
    """What a larger budget would give; ``allowed`` is ``guard.max_acc_drop``, the budget before the evidence."""
    if guarded.better is None:
        return "a larger guard.max_acc_drop"
    needed = max(guarded.better.drop, guarded.better.least_drop)
    needed *= allowed / guarded.budget if guarded.budget > 0 else 1.0
    return (
        f"guard.max_acc_drop={math.ceil(1000 * needed) / 1000:g}, which is expected to lose "
        f"{100 * max(guarded.better.drop, 0.0):.1f} points of accuracy and to leave "
        f"{100 * guarded.better.suspect:.0f} %"
    )


def _why_not(guarded: Guarded, allowed: float) -> str:
    if guarded.held == 0:
        return (
            "no perturbation that the search can reach leads most images to a class, so that nothing stands in for a "
            "trigger (a larger in_pixels.cap reaches further)"
        )
    if guarded.points[0].stand_ins <= guarded.enough:
        return "the perturbations that judge lead no images to a class, even without a layer"
    return (
        f"nothing helps within the budget of {100 * guarded.budget:.1f} points of accuracy; what may help is "
        f"{_allowing_more(guarded, allowed)}"
    )
