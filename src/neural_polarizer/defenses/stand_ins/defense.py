"""The defense: look, gather stand-ins, learn to disregard them, and stop where it would do harm."""

import time
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from neural_polarizer.data.images import ImageSet, to_pixels
from neural_polarizer.defenses.base import Audit, Purified
from neural_polarizer.defenses.engine import Engine
from neural_polarizer.defenses.guard import Guarded, Point, chosen_dial, expected_drop, margins
from neural_polarizer.defenses.stand_ins.belief import accused, frozen, searched_in_features
from neural_polarizer.defenses.stand_ins.evidence import Belief, told_aim
from neural_polarizer.defenses.stand_ins.learn import Carried, Change, Layer, Lesson, centred, learn
from neural_polarizer.defenses.stand_ins.least import StandIns
from neural_polarizer.defenses.stand_ins.looks import Found, Seen, at_layer, drawn_aims, look, of_all_forms, seen
from neural_polarizer.defenses.stand_ins.settings import Bank, Guard, Learning, Looks, Search, check_ranges
from neural_polarizer.errors import BadInputError
from neural_polarizer.perturb import clip
from neural_polarizer.rng import stream
from neural_polarizer.settings import check_literals
from neural_polarizer.sites import neighbouring_sites
from neural_polarizer.surgery import Site
from neural_polarizer.train import Progress, silent


@dataclass(frozen=True, kw_only=True)
class LeastStandIns:
    """Learn one inserted affine layer that disregards the smallest perturbations which lead to an attacker's class.

    Source: our own.  The layer and its place in the frozen network are those of Zhu et al., "Neural Polarizer", NeurIPS
    2023, section 3.2; what stands in for the trigger and the objective are not the paper's.

    Args:
        target: the attacker's class, "next" for all-to-all, or None: stand-ins are drawn in proportion to the evidence.
        site: ``before:NAME`` or ``after:NAME``; None tries ``sites.choose_site`` and, while stand-ins are left, the
            places next to it.
        batch_size: the most images at once, and those of a step of learning.
        precision: "fp32", or "bf16" autocast (losses stay in float32).
        looks: what is looked at to find the attacker's class.
        in_pixels: how stand-ins in pixels are looked for.
        in_features: likewise at the layer's input.
        bank: how many the layer learns from.
        learning: how it learns.
        guard: what the result may cost.

    Raises:
        BadInputError: a setting is out of its range.
    """

    revision: ClassVar[int] = 1

    target: int | Literal["next"] | None = None
    site: str | None = None
    batch_size: int = 128
    precision: Literal["fp32", "bf16"] = "fp32"
    looks: Looks = field(default_factory=Looks)
    in_pixels: Search = field(default_factory=Search)
    in_features: Search = field(default_factory=searched_in_features)
    bank: Bank = field(default_factory=Bank)
    learning: Learning = field(default_factory=Learning)
    guard: Guard = field(default_factory=Guard)

    def __post_init__(self) -> None:
        check_literals(self)
        for part in (self.looks, self.in_pixels, self.in_features, self.bank, self.learning, self.guard):
            check_ranges(part)
        if self.batch_size < 1:
            raise BadInputError(f"the batch size must be at least 1, got {self.batch_size}")
        if isinstance(self.target, bool):
            raise BadInputError(f"the target must be a class or 'next', got {self.target}")

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
        run = _Run(self, model, clean, self.site, seed=seed, device=device, progress=progress)
        cached = time.perf_counter()
        found, belief = run.look()
        looked = time.perf_counter()
        pixels = run.stand_ins(found, belief)
        gathered = time.perf_counter()
        best, first = run.learn(pixels, belief), run.net.site
        for site in run.neighbours if self.site is None else ():
            if best.guarded.point.stand_ins <= self.guard.enough:
                break
            run = _Run(self, model, clean, str(site), seed=seed, device=device, progress=progress)
            again, seen_here = run.look(found)
            if seen_here.likeliest != belief.likeliest:
                pixels = run.stand_ins(again, seen_here)
            other = run.learn(pixels, seen_here)
            if seen_here.backdoor > belief.backdoor:
                found, belief = again, seen_here
            if other.better_than(best, self.guard.alike):
                reason = f"{site}: of {first} and the places next to it, the one that leaves the fewest stand-ins"
                best = replace(other, reason=reason)
        seconds = {"features": cached - started, "look": looked - cached, "stand_ins": gathered - looked}
        seconds["learn"] = time.perf_counter() - gathered
        return Purified(
            best.net.model.to("cpu").eval().requires_grad_(True),
            best.net.polarizer,
            str(best.net.site),
            best.history,
            seconds,
            (*best.net.notes, *_remarks(best.guarded, self.guard.enough)),
            self.target if self.target is not None else accused(belief, best.net.num_classes, self.looks.level),
            _audit(found, belief, best.net.num_classes, self.looks.level),
            best.reason,
            best.guarded,
        )


@dataclass(frozen=True, eq=False)
class _Result:
    """What was learned at one site; the network has it."""

    net: Engine
    guarded: Guarded
    history: list[dict[str, float]]
    reason: str | None

    def better_than(self, other: "_Result", alike: float) -> bool:
        """Fewer held-out stand-ins work; where these are alike, less accuracy is lost."""
        gap = self.guarded.point.stand_ins - other.guarded.point.stand_ins
        return gap < -alike or (abs(gap) <= alike and self.guarded.point.drop < other.guarded.point.drop)


class _Run:
    """One site: the network, its images in two parts, and the layer.

    Args:
        settings: of the method.
        model: untouched.
        clean: the defender's images.
        site: None chooses one.
        seed: of all that is drawn.
        device: where to compute.
        progress: told about every step.
    """

    def __init__(
        self,
        settings: LeastStandIns,
        model: nn.Module,
        clean: ImageSet,
        site: str | None,
        *,
        seed: int,
        device: torch.device | str,
        progress: Progress,
    ) -> None:
        self.settings, self.seed, self.progress = settings, seed, progress
        self.net, self.unit = frozen(
            model,
            clean,
            site,
            batch_size=settings.batch_size,
            precision=settings.precision,
            seed=seed,
            device=device,
        )
        net = self.net
        if isinstance(settings.target, int) and not 0 <= settings.target < net.num_classes:
            raise BadInputError(f"the target class must lie in 0..{net.num_classes - 1}, got {settings.target}")
        fit, held = held_out(net.labels, settings.guard, stream(seed, "held out"))
        self.seen = seen(net, fit, settings.batch_size)
        self.judges = seen(net, held, settings.batch_size)
        self.held_out = len(fit) < len(net.labels)
        self.layer = Layer(net)

    @property
    def neighbours(self) -> list[Site]:
        """The sites next to this one, where the network chose its site itself."""
        return neighbouring_sites(self.net.sites, self.net.site)

    def look(self, known: Found | None = None) -> tuple[Found, Belief]:
        """The evidence; what does not depend on the site is taken from ``known``."""
        settings = self.settings
        found = look(
            self.seen,
            settings.looks,
            pixels=settings.in_pixels,
            features=settings.in_features,
            batch_size=settings.batch_size,
            seed=self.seed,
            told=self.progress,
            known=known,
        )
        if settings.target is None:
            return found, found.belief
        aim = self.net.num_classes if settings.target == "next" else settings.target
        return found, found.belief.knowing(aim, settings.looks.floor)

    def stand_ins(self, found: Found, belief: Belief) -> StandIns:
        """Stand-ins in pixels, which do not depend on the site: of all forms, and the dense ones of the evidence."""
        settings, bank = self.settings, self.settings.bank
        generator = stream(self.seed, "bank in pixels")
        windows = of_all_forms(
            self.seen,
            drawn_aims(belief, bank.pixels, generator),
            bank=bank,
            search=settings.in_pixels,
            batch_size=settings.batch_size,
            generator=generator,
            told=self.progress,
            phase="stand-ins in pixels",
        )
        kept = drawn_aims(belief, bank.pixels, generator)
        return windows.joined(
            found.pixels.select(torch.isin(found.pixels.aims, kept) & (found.pixels.success >= 0.5).cpu())
        )

    def learn(self, pixels: StandIns, belief: Belief) -> _Result:
        """Learn with these stand-ins in pixels and new ones at the layer's input; the layer has the result."""
        change, guarded, history = self._learned(self._gathered(pixels, belief), belief)
        self.layer.set(change, guarded.chosen)
        return _Result(self.net, guarded, history, self.net.site_reason)

    def _gathered(self, pixels: StandIns, belief: Belief) -> tuple[Lesson, Carried, Tensor]:
        """Both banks, and held-out stand-ins on the images that judge, with the labels that they lead to."""
        settings, bank = self.settings, self.settings.bank
        generator = stream(self.seed, "bank")
        shifts = at_layer(
            self.seen,
            drawn_aims(belief, bank.features, generator),
            dense=bank.features_dense,
            search=settings.in_features,
            batch_size=settings.batch_size,
            generator=generator,
            told=self.progress,
            phase="stand-ins in features",
        )
        held = torch.arange(len(pixels)) % 4 == 3
        stretch = torch.rand(bank.images, generator=generator)
        carried, _ = self._carried(self.seen, pixels.select(~held), 1 + bank.stretch * stretch, generator)
        longest = torch.full_like(stretch, 1 + bank.stretch)
        tried, led = self._carried(self.judges, pixels.select(held), longest, generator)
        at = self.seen
        lesson = Lesson(at.values, at.wanted, at.labels, centred(at.logits), carried, shifts, self.unit)
        return lesson, tried, led

    @torch.no_grad()
    def _carried(
        self, at: Seen, stand_ins: StandIns, stretch: Tensor, generator: torch.Generator
    ) -> tuple[Carried, Tensor]:
        """Images with stand-ins in pixels, in front of the layer, and the labels that they are led to."""
        bank, parts, rows, led = self.settings.bank, [], [], []
        for delta, aim in zip(stand_ins.deltas, stand_ins.aims.tolist(), strict=True):
            usable = (at.labels != at.wanted[aim]).nonzero()[:, 0]
            chosen = usable[torch.randperm(len(usable), generator=generator)[: bank.images].to(usable.device)]
            scales = stretch[: len(chosen)].to(chosen.device)
            for part, scale in zip(
                chosen.split(self.settings.batch_size), scales.split(self.settings.batch_size), strict=True
            ):
                pixels = to_pixels(self.net.images[at.rows[part]]) + scale.view(-1, 1, 1, 1) * delta
                parts.append(self.net.front(clip(pixels)))
            rows.append(chosen)
            led.append(at.wanted[aim, chosen])
        if not parts:
            nothing = torch.zeros(0, dtype=torch.int64, device=self.net.device)
            return Carried(tuple(value[:0] for value in at.values), nothing), nothing
        values = tuple(torch.cat(column) for column in zip(*parts, strict=True))
        return Carried(values, torch.cat(rows)), torch.cat(led)

    def _learned(
        self, gathered: tuple[Lesson, Carried, Tensor], belief: Belief
    ) -> tuple[Change, Guarded, list[dict[str, float]]]:
        """Try what is cheap first, and stop as soon as held-out stand-ins no longer work.

        For each weight: learn from the frozen network's stand-ins; then, round by round, from renewed ones, too, as
        long as the strongest dial is within the budget.  Of all that was tried, that is taken which leaves the fewest
        held-out stand-ins within the budget, the earliest of those that are alike.
        """
        settings, learning, guard = self.settings, self.settings.learning, self.settings.guard
        first, tried, led = gathered
        generator = stream(self.seed, "learn")
        untouched = self.layer.change
        found: list[tuple[Change, Guarded]] = []
        history: list[dict[str, float]] = []

        def taught(lesson: Lesson, weight: float, rounds: int) -> Guarded:
            phase = f"weight {weight:g}" + (f", round {rounds}" if rounds else "")
            steps = learning.round_steps if rounds else learning.steps
            loss = self._taught(lesson, weight, steps, generator, phase)
            guarded = self._guarded(tried, led, weight, rounds, guard.max_acc_drop * belief.backdoor)
            found.append((self.layer.change, guarded))
            point = guarded.point
            history.append(
                {"weight": weight, "round": float(rounds), "loss": loss, "dial": point.dial, "acc": point.acc}
                | {"drop": point.drop, "stand_ins": point.stand_ins}
            )
            return guarded

        for weight in learning.weights:
            self.layer.set(untouched)
            lesson = first
            latest = taught(lesson, weight, 0)
            while latest.rounds < learning.rounds and latest.within_budget and latest.point.stand_ins > guard.enough:
                renewed = at_layer(
                    self.seen,
                    drawn_aims(belief, learning.renewed, generator),
                    dense=1.0,
                    search=settings.in_features,
                    batch_size=settings.batch_size,
                    generator=generator,
                    told=self.progress,
                    phase=f"renewed stand-ins {latest.rounds + 1}",
                )
                if len(renewed) == 0:
                    break
                lesson = replace(lesson, shifts=lesson.shifts.joined(renewed))
                latest = taught(lesson, weight, latest.rounds + 1)
            if min(guarded.point.stand_ins for _, guarded in found) <= guard.enough:
                break
        fewest = min(guarded.point.stand_ins for _, guarded in found)
        change, guarded = next(pair for pair in found if pair[1].point.stand_ins <= fewest + guard.alike)
        return change, guarded, history

    def _taught(self, lesson: Lesson, weight: float, steps: int, generator: torch.Generator, phase: str) -> float:
        learned = (self.net.polarizer.mix.weight, self.net.polarizer.norm.bias)
        for parameter in learned:
            parameter.requires_grad_(True)
        loss = learn(
            self.net,
            self.layer,
            lesson,
            learning=self.settings.learning,
            bank=self.settings.bank,
            weight=weight,
            steps=steps,
            batch_size=self.settings.batch_size,
            generator=generator,
            told=self.progress,
            phase=phase,
        )
        for parameter in learned:
            parameter.requires_grad_(False)
        return loss

    def _guarded(self, tried: Carried, led: Tensor, weight: float, rounds: int, budget: float) -> Guarded:
        guard, change = self.settings.guard, self.layer.change
        points = tuple(self._point(change, dial, tried, led) for dial in guard.dials)
        chosen = chosen_dial(points, budget, alike=guard.alike, beyond=guard.beyond)
        return Guarded(points, chosen, len(self.judges.labels), self.held_out, budget, weight, rounds)

    def _point(self, change: Change, dial: float, tried: Carried, led: Tensor) -> Point:
        """The network at one point of the dial; the layer stays as it was."""
        before = self.layer.change
        self.layer.set(change, dial)
        try:
            logits = self._logits(self.judges.values)
            over = (self._logits(tried.values).argmax(dim=1) == led).float() if len(led) else torch.zeros(1)
        finally:
            self.layer.set(before)
        labels = self.judges.labels
        after = margins(logits, labels)
        drop, error = expected_drop(margins(self.judges.logits, labels), after)
        least = drop - self.settings.guard.errors * error
        return Point(dial, float((after > 0).float().mean()), drop, least, float(over.mean()))

    @torch.no_grad()
    def _logits(self, values: tuple[Tensor, ...]) -> Float[Tensor, "n k"]:
        size = self.settings.batch_size
        return torch.cat(
            [self.net.logits(tuple(value[at : at + size] for value in values)) for at in range(0, len(values[0]), size)]
        )


def held_out(
    labels: Int64[Tensor, " n"], guard: Guard, generator: torch.Generator
) -> tuple[Int64[Tensor, " f"], Int64[Tensor, " h"]]:
    """Rows to learn from and rows that judge, stratified by class; all rows in both where too few would judge."""
    rows = torch.arange(len(labels), device=labels.device)
    if round(guard.held_out * len(labels)) < guard.least:
        return rows, rows
    order = torch.randperm(len(labels), generator=generator).to(labels.device)
    order = order[labels[order].argsort(stable=True)]
    place = torch.arange(len(labels), device=labels.device)
    judging = ((place + 1) * guard.held_out).floor() > (place * guard.held_out).floor()
    return order[~judging].sort().values, order[judging].sort().values


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
    if not guarded.held_out:
        found.append(
            f"with {guarded.judges} clean images none could be held out, so the real loss of accuracy may be several "
            "points larger than expected; compare both models on test images before you use this"
        )
    return found


def _audit(found: Found, belief: Belief, num_classes: int, level: float) -> Audit:
    aim = told_aim(belief.likeliest, num_classes)
    name = (
        "the class next to each image's own"
        if aim == "next"
        else f"class {aim}"
        if isinstance(aim, int)
        else "another shift of the labels"
    )
    verdict = "stands out" if belief.p_value < level else "is the most suspicious one, but does not stand out"
    summary = f"{name} {verdict} (corrected p {belief.p_value:.2g}, probability of a backdoor {belief.backdoor:.2f})"
    by_class = {f"norm_{name}": [_number(each) for each in values] for name, values in found.norms.items()}
    return Audit(summary, {**by_class, "belief": belief.aims[:num_classes].tolist()})


def _number(value: Tensor) -> float | None:
    number = float(value)
    return number if torch.isfinite(value) else None
