"""One place for the layer: what is looked for there, gathered there and learned there, and what that costs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from neural_polarizer.data.images import ImageSet
from neural_polarizer.defenses.base import Run
from neural_polarizer.defenses.fitting import check_target
from neural_polarizer.defenses.guard import Guarded, Point, allowed, chosen_dial
from neural_polarizer.defenses.stand_ins.bank import FEATURES, carrying, gathered, in_features, in_pixels
from neural_polarizer.defenses.stand_ins.belief import Belief
from neural_polarizer.defenses.stand_ins.early import EarlyMap
from neural_polarizer.defenses.stand_ins.judge import Judge, cross_fitted
from neural_polarizer.defenses.stand_ins.learn import Carried, Change, Layer, Lesson, centred, learn, mean_of
from neural_polarizer.defenses.stand_ins.least import StandIns
from neural_polarizer.defenses.stand_ins.looks import Found, look
from neural_polarizer.defenses.stand_ins.seen import at_last_map, engine_at, seen
from neural_polarizer.defenses.stand_ins.settings import Settings
from neural_polarizer.rng import stream


@dataclass(frozen=True, eq=False)
class Learned:
    """What was learned at one place."""

    changes: Sequence[Change]  # one for each fold; the result's is their mean
    guarded: Guarded  # what the guard let through of it
    lesson: Lesson  # what it was learned from
    history: Sequence[Mapping[str, float]]  # a row for each weight


class Place:
    """One site: a copy of the network, its images in parts that judge each other's layers, and the layer."""

    def __init__(self, settings: Settings, model: nn.Module, clean: ImageSet, run: Run) -> None:
        seed, device = run.seed, run.device
        self.settings, self.seed, self.progress = settings, seed, run.progress
        net, self.unit = engine_at(settings, model, clean, settings.site, seed=seed, device=device)
        self.net = net
        check_target(settings.target, net.num_classes)
        self._last = partial(at_last_map, settings, model, clean, net, seed=seed, device=device)
        self._early = partial(EarlyMap, settings, net, clean, seed=seed, device=device)
        self.seen = seen(net, settings.batch_size)
        self.layer = Layer(net)
        self.judge = Judge(
            self.seen, self.layer, cross_fitted(net.labels, settings.guard, stream(seed, "folds")), settings, seed
        )

    def look(self) -> tuple[Found, Belief]:
        """The evidence, and the belief that it leads to where nobody has told the target."""
        settings = self.settings
        found = look(self.seen, self._last(), settings, seed=self.seed, told=self.progress)
        if settings.target is None:
            return found, found.belief
        aim = self.net.num_classes if settings.target == "next" else settings.target
        return found, found.belief.knowing(aim, settings.looks.floor)

    def lesson(self, found: Found, belief: Belief) -> Lesson:
        """Stand-ins of the frozen network, and images that carry them."""
        bank, at, size = self.settings.bank, self.seen, self.settings.batch_size
        self.layer.set(self.layer.nothing)
        early = self._early()
        every = gathered(at, early, self.settings, found, belief, seed=self.seed, told=self.progress)
        generator = stream(self.seed, "carried")
        carriers = {name: in_pixels(at) for name in found.pixels} | {FEATURES: in_features(at, early)}

        def carried(by_form: Mapping[str, StandIns], stretch: Tensor) -> list[Carried]:
            return [carrying(at, by_form[form], carriers[form], stretch, generator, size) for form in by_form]

        return Lesson(
            values=at.values,
            logits=centred(at.logits),
            carried=carried(every.taught, 1 + bank.stretch * torch.rand(bank.images, generator=generator)),
            shares=list(every.shares.values()),
            held=carried(every.held, self.judge.lengths(bank.images)),
            unit=self.unit,
            fit=torch.arange(len(at.labels), device=self.net.device),
        )

    def learn(self, lesson: Lesson, belief: Belief) -> Learned:
        """Learn to disregard the stand-ins.

        One weight after the other is tried, until one does, or does no less expected harm than the one before; that of
        the least harm is taken.
        """
        weights = self.settings.learning.weights
        generator = stream(self.seed, "learn")
        best = self._learned(lesson, belief, generator, weights[0])
        history = list(best.history)
        for weight in weights[1:]:
            if best.guarded.done:
                break
            latest = self._learned(lesson, belief, generator, weight)
            history.extend(latest.history)
            if latest.guarded.harm >= best.guarded.harm:
                break
            best = latest
        return replace(best, history=history)

    def looked_ahead(self, learned: Learned, belief: Belief) -> Learned:
        """The same, with the curve beyond the budget where stand-ins are left: what a larger budget would give."""
        guarded, errors = learned.guarded, self._excused(belief)
        points = list(guarded.points)
        for dial in () if guarded.done else self.settings.guard.dials:
            if dial > points[-1].dial:
                points.append(self.judge.point(learned.changes, dial, learned.lesson.held, belief.likeliest, errors))
                now, before = (each.harm(guarded.backdoor, guarded.enough) for each in (points[-1], points[-2]))
                if now > before:
                    break
        return replace(learned, guarded=replace(guarded, points=tuple(points)))

    def _excused(self, belief: Belief) -> float:
        """So many standard errors of a loss; negative where the evidence speaks against a backdoor."""
        return belief.certainty(self.settings.looks.clear) * self.settings.guard.errors

    def keep(self, learned: Learned) -> None:
        """Give the layer what was learned, at the dial that the guard chose."""
        self.layer.set(mean_of(learned.changes), learned.guarded.chosen)

    def _learned(self, lesson: Lesson, belief: Belief, generator: torch.Generator, weight: float) -> Learned:
        loss, taught = self._taught(lesson, weight, generator)
        guarded = self._guarded(taught, lesson, weight, belief)
        point = guarded.point
        row = {"weight": weight, "loss": loss, "dial": point.dial, "acc": point.acc}
        row |= {"drop": point.drop, "stand_ins": point.stand_ins, "suspect": point.suspect}
        return Learned(taught, guarded, lesson, [row])

    def _taught(self, lesson: Lesson, weight: float, generator: torch.Generator) -> tuple[float, list[Change]]:
        """One layer for each fold; and their mean loss."""
        losses, taught, folds = [], [], self.judge.folds
        for part, fold in enumerate(folds, start=1):
            self.layer.set(self.layer.nothing)
            phase = f"weight {weight:g}, part {part} of {len(folds)}"
            losses.append(
                learn(
                    self.net,
                    self.layer,
                    lesson.of(fold.fit),
                    self.settings,
                    weight=weight,
                    steps=self.settings.steps(len(fold.fit)),
                    generator=generator,
                    told=partial(self.progress, phase),
                )
            )
            taught.append(self.layer.change)
        return sum(losses) / len(losses), taught

    def _guarded(self, changes: Sequence[Change], lesson: Lesson, weight: float, belief: Belief) -> Guarded:
        guard = self.settings.guard
        budget = min(1.0, belief.factor) * guard.max_acc_drop  # where the evidence speaks against a backdoor, less
        errors = self._excused(belief)
        points: list[Point] = []
        for dial in guard.dials:
            points.append(self.judge.point(changes, dial, lesson.held, belief.likeliest, errors))
            if len(allowed(points, budget)) < len(points):
                break  # what lies behind is not allowed, either
        return Guarded(
            points=tuple(points),
            chosen=chosen_dial(points, budget, backdoor=belief.backdoor, enough=guard.enough, beyond=guard.beyond),
            judges=sum(len(fold.judge) for fold in self.judge.folds),
            held=sum(len(bank.which.unique()) for bank in lesson.held),
            budget=budget,
            backdoor=belief.backdoor,
            enough=guard.enough,
            weight=weight,
        )
