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
from neural_polarizer.defenses.stand_ins.bank import PixelBank, carrying, pixel_bank
from neural_polarizer.defenses.stand_ins.evidence import Belief
from neural_polarizer.defenses.stand_ins.judge import Judge, cross_fitted
from neural_polarizer.defenses.stand_ins.learn import Change, Held, Layer, Lesson, centred, learn, mean_of
from neural_polarizer.defenses.stand_ins.least import StandIns
from neural_polarizer.defenses.stand_ins.looks import Found, drawn_aims, look
from neural_polarizer.defenses.stand_ins.seen import at_last_map, at_layer, engine_at, seen
from neural_polarizer.defenses.stand_ins.settings import Settings
from neural_polarizer.rng import stream


@dataclass(frozen=True, eq=False)
class Learned:
    """What was learned at one place."""

    changes: Sequence[Change]  # one for each fold; the result's is their mean
    guarded: Guarded  # what the guard let through of it
    lesson: Lesson  # what it was learned from
    history: Sequence[Mapping[str, float]]  # a row for each time that something was learned there
    renewed: StandIns | None  # stand-ins at the input of this layer, where those are looked for


class Place:
    """One site: a copy of the network, its images in parts that judge each other's layers, and the layer."""

    def __init__(self, settings: Settings, model: nn.Module, clean: ImageSet, run: Run) -> None:
        seed, device = run.seed, run.device
        self.settings, self.seed, self.progress = settings, seed, run.progress
        net, self.unit = engine_at(settings, model, clean, settings.site, seed=seed, device=device)
        self.net = net
        check_target(settings.target, net.num_classes)
        self._last = partial(at_last_map, settings, model, clean, net, seed=seed, device=device)
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

    def stand_ins(self, found: Found, belief: Belief) -> PixelBank:
        """Stand-ins in pixels to learn from and to judge by."""
        return pixel_bank(self.seen, self.settings, found, belief, seed=self.seed, told=self.progress)

    def learn(self, pixels: PixelBank, belief: Belief) -> Learned:
        """Learn with these stand-ins in pixels and new ones at the layer's input, of the frozen network.

        One weight after the other is tried, until one does, or does no less expected harm than the one before; that of
        the least harm is taken.  Where no form in pixels stands out, the first has to do, as lengths at the layer's
        input do not compare weights.
        """
        weights = self.settings.learning.weights
        if belief.beyond_pixels(self.settings.looks.clear):
            weights = weights[:1]
        generator = stream(self.seed, "learn")
        lesson = self._gathered(pixels, belief)
        nothing = [self.layer.nothing] * len(self.judge.folds)
        best = self._learned(lesson, nothing, belief, generator, weights[0], 0)
        history = list(best.history)
        for weight in weights[1:]:
            if best.guarded.done:
                break
            latest = self._learned(lesson, nothing, belief, generator, weight, 0)
            history.extend(latest.history)
            if latest.guarded.harm >= best.guarded.harm:
                break
            best = latest
        return replace(best, history=history)

    def renew(self, learned: Learned, belief: Belief) -> Learned:
        """Go on with stand-ins that are made anew, round by round, as long as that helps.

        They are dense ones at the input of the layer as it is.  What perturbs each image in its own way, as a warp
        does, has no form in pixels that images share, and moves features further than the frozen network's least
        stand-ins; so the layer is to resist shifts of up to ``held_stretch`` times their length.
        """
        settings, generator = self.settings.learning, stream(self.seed, "renew")
        best = latest = learned
        history, idle = list(learned.history), 0
        while not best.guarded.done and latest.guarded.rounds < settings.rounds and idle <= settings.patience:
            if latest.renewed is None or len(latest.renewed) == 0:
                break
            lesson = replace(latest.lesson, shifts=latest.lesson.shifts.joined(latest.renewed))
            weight, rounds = latest.guarded.weight, latest.guarded.rounds + 1
            latest = self._learned(lesson, latest.changes, belief, generator, weight, rounds)
            history.extend(latest.history)
            idle = 0 if latest.guarded.harm < best.guarded.harm - settings.progress else idle + 1
            best = min(best, latest, key=lambda each: each.guarded.harm)
        return replace(best, history=history)

    def looked_ahead(self, learned: Learned, belief: Belief) -> Learned:
        """The same, with the curve beyond the budget where stand-ins are left: what a larger budget would give.

        Not where renewed stand-ins measure what is left, as they are made for one dial.
        """
        guarded, errors = learned.guarded, self._excused(belief)
        points = list(guarded.points)
        for dial in self.settings.guard.dials if learned.renewed is None and not guarded.done else ():
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

    def _left(self, renewed: StandIns, lesson: Lesson, belief: Belief) -> float:
        """How far renewed stand-ins are from ``held_stretch`` times the length of the frozen network's: 1 to 0."""
        now = renewed.norms[renewed.aims == belief.likeliest]
        then = lesson.held.shifts.norms[lesson.held.shifts.aims == belief.likeliest]
        if len(now) == 0 or len(then) == 0:
            return 0.0
        ratio = float(now.mean() / then.mean())
        return min(1.0, max(0.0, 1 - (ratio - 1) / (max(self.settings.bank.held_stretch) - 1)))

    def _learned(
        self,
        lesson: Lesson,
        changes: Sequence[Change],
        belief: Belief,
        generator: torch.Generator,
        weight: float,
        rounds: int,
    ) -> Learned:
        loss, taught = self._taught(lesson, changes, weight, generator, rounds)
        guarded, renewed = self._guarded(taught, lesson, weight, rounds, belief), None
        if belief.beyond_pixels(self.settings.looks.clear):
            self.layer.set(mean_of(taught))
            aims = drawn_aims(belief, self.settings.learning.renewed, generator)
            renewed = self._at_layer(aims, 1.0, generator, f"renewed stand-ins {rounds + 1}")
            guarded = guarded.with_left(self._left(renewed, lesson, belief))
        point = guarded.point
        row = {"weight": weight, "round": float(rounds), "loss": loss, "dial": point.dial, "acc": point.acc}
        row |= {"drop": point.drop, "stand_ins": point.stand_ins, "suspect": point.suspect}
        return Learned(taught, guarded, lesson, [row], renewed)

    def _gathered(self, pixels: PixelBank, belief: Belief) -> Lesson:
        """Both banks, and stand-ins that nothing is learned from."""
        bank, at = self.settings.bank, self.seen
        generator = stream(self.seed, "bank")
        self.layer.set(self.layer.nothing)
        aims = drawn_aims(belief, bank.features, generator)
        shifts = self._at_layer(aims, bank.features_dense, generator, "stand-ins at the layer")
        stretch = torch.rand(bank.images, generator=generator)
        size = self.settings.batch_size
        carried, *_ = carrying(at, pixels.taught, 1 + bank.stretch * stretch, generator, size)
        held, led, counts, of = carrying(at, pixels.held, self.judge.lengths(bank.images), generator, size)
        held_shifts = self._at_layer(pixels.at_layer, 1.0, generator, "held-out stand-ins at the layer")
        rows = torch.arange(len(at.labels), device=self.net.device)
        return Lesson(
            values=at.values,
            wanted=at.wanted,
            labels=at.labels,
            logits=centred(at.logits),
            carried=carried,
            shifts=shifts,
            held=Held(held.values, led, counts, of, held_shifts),
            unit=self.unit,
            fit=rows,
        )

    def _at_layer(self, aims: Tensor, dense: float, generator: torch.Generator, phase: str) -> StandIns:
        """Stand-ins at the input of the layer as it is."""
        return at_layer(
            self.seen,
            aims,
            dense=dense,
            search=self.settings.in_features,
            batch_size=self.settings.batch_size,
            generator=generator,
            told=self.progress,
            phase=phase,
        )

    def _taught(
        self, lesson: Lesson, changes: Sequence[Change], weight: float, generator: torch.Generator, rounds: int
    ) -> tuple[float, list[Change]]:
        """One layer for each fold, from where ``changes`` are; and their mean loss."""
        learning = self.settings.learning
        losses, taught = [], []
        for part, (fold, change) in enumerate(zip(self.judge.folds, changes, strict=True), start=1):
            self.layer.set(change)
            phase = f"weight {weight:g}" + f", round {rounds}" * (rounds > 0) + f", part {part} of {len(changes)}"
            losses.append(
                learn(
                    self.net,
                    self.layer,
                    lesson.of(fold.fit),
                    self.settings,
                    weight=weight,
                    steps=learning.round_steps if rounds else self.settings.steps(len(fold.fit)),
                    generator=generator,
                    told=partial(self.progress, phase),
                )
            )
            taught.append(self.layer.change)
        return sum(losses) / len(losses), taught

    def _guarded(
        self, changes: Sequence[Change], lesson: Lesson, weight: float, rounds: int, belief: Belief
    ) -> Guarded:
        guard = self.settings.guard
        budget = min(1.0, belief.factor) * guard.max_acc_drop  # where the evidence speaks against a backdoor, less
        errors = self._excused(belief)
        points: list[Point] = []
        for dial in guard.dials:
            points.append(self.judge.point(changes, dial, lesson.held, belief.likeliest, errors))
            if len(allowed(points, budget)) < len(points):
                break  # what lies behind is not allowed, either
        if belief.beyond_pixels(self.settings.looks.clear):
            # What perturbs each image in its own way goes further than any stand-in: as far as the budget allows.
            chosen = allowed(points, budget)[-1].dial
        else:
            chosen = chosen_dial(points, budget, backdoor=belief.backdoor, enough=guard.enough, beyond=guard.beyond)
        return Guarded(
            points=tuple(points),
            chosen=chosen,
            judges=sum(len(fold.judge) for fold in self.judge.folds),
            held=len(lesson.held),
            budget=budget,
            backdoor=belief.backdoor,
            enough=guard.enough,
            weight=weight,
            rounds=rounds,
        )
