"""The defense: look, gather stand-ins, learn to disregard them, and stop where it would do harm."""

import time
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from neural_polarizer.data.images import ImageSet
from neural_polarizer.defenses.base import Audit, Purified
from neural_polarizer.defenses.guard import Guarded
from neural_polarizer.defenses.stand_ins.evidence import Belief, told_aim
from neural_polarizer.defenses.stand_ins.looks import Found
from neural_polarizer.defenses.stand_ins.place import Place
from neural_polarizer.defenses.stand_ins.settings import Settings
from neural_polarizer.train import Progress, silent


@dataclass(frozen=True, kw_only=True)
class LeastStandIns(Settings):
    """Learn one inserted affine layer that disregards the smallest perturbations which lead to an attacker's class.

    Source: our own.  The layer and its place in the frozen network are those of Zhu et al., "Neural Polarizer", NeurIPS
    2023, section 3.2; what stands in for the trigger and the objective are not the paper's.

    Its settings are those of ``Settings``.
    """

    revision: ClassVar[int] = 2

    def repair(
        self,
        model: nn.Module,
        clean: ImageSet,
        *,
        seed: int,
        device: torch.device | str = "cpu",
        progress: Progress = silent,
    ) -> Purified:
        """Learn the polarizer for ``model`` from ``clean``; ``model`` is untouched.

        Args:
            model: float pixels in [0, 1] to logits ``(n, k)``.
            clean: the defender's images.
            seed: fixes which images are held out, and all stand-ins and batches: the only randomness.
            device: where to compute.
            progress: told about every step.

        Raises:
            BadInputError: no images, an unknown or unusable site, or a class count that does not fit.
        """
        started = time.perf_counter()
        run = Place(self, model, clean, self.site, seed=seed, device=device, progress=progress)
        cached = time.perf_counter()
        found, belief = run.look()
        looked = time.perf_counter()
        pixels = run.stand_ins(found, belief)
        gathered = time.perf_counter()
        place, learned, reason = run, run.learn(pixels, belief), run.net.site_reason
        for site in run.neighbours if self.site is None else ():
            if learned.guarded.done:
                break
            other = Place(self, model, clean, str(site), seed=seed, device=device, progress=progress)
            again, seen_here = other.look(found)
            if seen_here.likeliest != belief.likeliest:
                pixels = other.stand_ins(again, seen_here)
            tried = other.learn(pixels, seen_here)
            if seen_here.backdoor > belief.backdoor:
                found, belief = again, seen_here
            if tried.guarded.harm < learned.guarded.harm:
                place, learned = other, tried
                reason = f"{site}: of {run.net.site} and the places next to it, the one with the least expected harm"
        learned = place.renew(learned, belief)
        place.keep(learned)
        seconds = {"features": cached - started, "look": looked - cached, "stand_ins": gathered - looked}
        seconds["learn"] = time.perf_counter() - gathered
        accused = belief.p_value < self.looks.level and self.target is None
        return Purified(
            place.net.model.to("cpu").eval().requires_grad_(True),
            place.net.polarizer,
            str(place.net.site),
            learned.history,
            seconds,
            (*place.net.notes, *_remarks(learned.guarded, self.guard.enough)),
            told_aim(belief.likeliest, place.net.num_classes) if accused else self.target,
            _audit(found, belief, place.net.num_classes, self.looks.level),
            reason,
            learned.guarded,
        )


def _remarks(guarded: Guarded, enough: float) -> list[str]:
    if guarded.chosen == 0:
        return [
            f"not purified: nothing helps within the budget of {100 * guarded.budget:.1f} points of accuracy; the "
            "model comes back as it was (a larger guard.max_acc_drop allows more)"
        ]
    found = []
    if guarded.point.drop > guarded.budget:
        found.append(
            f"the expected loss of accuracy, {100 * guarded.point.drop:.1f} points, is above the budget of "
            f"{100 * guarded.budget:.1f}, but within its error; compare both models on test images before you use this"
        )
    if guarded.point.stand_ins > enough:
        found.append(
            f"held-out stand-ins still lead {100 * guarded.point.stand_ins:.0f} % of the images to their class, so a "
            "trigger may still work; more clean images or a larger guard.max_acc_drop may help"
        )
    return found


def _audit(found: Found, belief: Belief, num_classes: int, level: float) -> Audit:
    aim = told_aim(belief.likeliest, num_classes)
    name = "the class next to each image's own" if aim == "next" else f"class {aim}"
    verdict = "stands out" if belief.p_value < level else "is the most suspicious one, but does not stand out"
    summary = f"{name} {verdict} (corrected p {belief.p_value:.2g}, probability of a backdoor {belief.backdoor:.2f})"
    by_class = {f"norm_{name}": [_number(each) for each in values] for name, values in found.norms.items()}
    return Audit(summary, {**by_class, "belief": belief.aims[:num_classes].tolist()})


def _number(value: Tensor) -> float | None:
    number = float(value)
    return number if torch.isfinite(value) else None
