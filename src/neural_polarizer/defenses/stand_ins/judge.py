"""What judges a layer: images that it was not learned from, harder copies of them, and held-out stand-ins."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from neural_polarizer.data.images import to_pixels
from neural_polarizer.defenses.engine import Values
from neural_polarizer.defenses.guard import Point, expected_drop, margins
from neural_polarizer.defenses.stand_ins.copies import harder
from neural_polarizer.defenses.stand_ins.learn import Carried, Change, Layer, mean_of
from neural_polarizer.defenses.stand_ins.seen import Seen
from neural_polarizer.defenses.stand_ins.settings import Copies, Guard, Settings
from neural_polarizer.rng import stream


@dataclass(frozen=True, eq=False)
class Fold:
    """One part of the clean images judges the layer that is learned from the others."""

    fit: Int64[Tensor, " f"]  # rows to learn from
    judge: Int64[Tensor, " j"]  # rows that judge


def cross_fitted(labels: Int64[Tensor, " n"], guard: Guard, generator: torch.Generator) -> list[Fold]:
    """Parts of about equal size, stratified by class.

    A single image judges and is learned from.
    """
    count = len(labels)
    parts = min(guard.folds, count)
    order = torch.randperm(count, generator=generator).to(labels.device)
    order = order[labels[order].argsort(stable=True)]
    part = torch.empty_like(order)
    part[order] = torch.arange(count, device=labels.device) % parts
    rows = torch.arange(count, device=labels.device)
    return [Fold(rows[part != each] if parts > 1 else rows, rows[part == each]) for each in range(parts)]


class Judge:
    """Measures layers at one place, by the clean images ``seen`` there; ``folds`` are which of them judge which layer.

    ``layer`` keeps the last change that was measured. The seed is that of the harder copies.
    """

    def __init__(self, seen: Seen, layer: Layer, folds: Sequence[Fold], settings: Settings, seed: int) -> None:
        self.seen, self.layer, self.folds = seen, layer, folds
        self._guard, self._bank, self._size = settings.guard, settings.bank, settings.batch_size
        self._copies, self._before = self._harder(settings.copies, seed)

    @torch.no_grad()
    def _harder(self, copies: Copies, seed: int) -> tuple[list[Values], Float[Tensor, "v n"]]:
        """Harder copies of all images, in front of the layer, and the frozen network's margins there."""
        net, generator = self.seen.net, stream(seed, "views")
        views, before = [], []
        for _ in range(max(1, math.ceil(copies.total / len(net.labels)))):
            parts = [net.front(harder(to_pixels(part), copies, generator)) for part in net.images.split(self._size)]
            views.append(tuple(torch.cat(column) for column in zip(*parts, strict=True)))
            before.append(margins(self._logits(views[-1]), net.labels))
        return views, torch.stack(before)

    def point(
        self, changes: Sequence[Change], dial: float, held: Sequence[Carried], likeliest: int, errors: float
    ) -> Point:
        """The network at one point of the dial: what it loses with each fold's layer, what stays with their mean.

        There is one of the ``changes`` for each fold; they are multiplied by ``dial``. Nothing was learned from the
        stand-ins ``held``; ``likeliest`` is the aim that is most likely the attacker's; so many standard ``errors`` of
        a loss are excused, up to ``Guard.excused``.
        """
        of_images, of_copies = [], []  # margins before and after, a column for each image
        for fold, change in zip(self.folds, changes, strict=True):
            self.layer.set(change, dial)
            labels = self.seen.labels[fold.judge]
            after, *after_on_copies = (
                margins(self._logits(tuple(value[fold.judge] for value in values)), labels)
                for values in (self.seen.values, *self._copies)
            )
            of_images.append(torch.stack([margins(self.seen.logits[fold.judge], labels), after]))
            of_copies.append(torch.stack([self._before[:, fold.judge], torch.stack(after_on_copies)]))
        self.layer.set(mean_of(changes), dial)
        before, after = torch.cat(of_images, dim=1)
        lost, error = expected_drop(before[None], after[None])
        lost_on_copies, error_on_copies = expected_drop(*torch.cat(of_copies, dim=2))
        # What is gained on copies makes up for nothing that is lost on originals.
        drop, error = (lost + max(lost_on_copies, 0.0)) / 2, (error + error_on_copies) / 2
        acc = float((after > 0).double().mean())  # a share of images, exact enough to be compared with the budget
        left = self.led(held)
        mean = sum(share * count for share, count in left.values()) / max(1, sum(count for _, count in left.values()))
        suspect, _ = left.get(likeliest, (mean, 0))
        excused = min(errors * math.hypot(error, self._guard.systematic), self._guard.excused)
        return Point(dial, acc, drop, drop - excused, mean, suspect)

    def lengths(self, count: int) -> Float[Tensor, " n"]:
        """How many times its own length a held-out stand-in has on each of ``count`` images."""
        lengths = torch.tensor(self._bank.held_stretch)
        return lengths.repeat(math.ceil(count / len(lengths)))[:count]

    @torch.no_grad()
    def led(self, held: Sequence[Carried]) -> Mapping[int, tuple[float, int]]:
        """For each aim the share of images that its held-out stand-ins lead to their labels, and how many these are.

        ``Guard.quantile`` of its stand-ins.
        """
        shares: dict[int, list[float]] = {}
        for bank in held:
            over = self._logits(bank.values, bank.moves).argmax(dim=1) == bank.led if len(bank) else bank.led
            for stand_in in bank.which.unique():
                its = bank.which == stand_in
                shares.setdefault(int(bank.aims[its][0]), []).append(float(over[its].float().mean()))
        return {
            aim: (float(torch.tensor(each).quantile(self._guard.quantile)), len(each)) for aim, each in shares.items()
        }

    @torch.no_grad()
    def _logits(self, values: Values, moves: Tensor | None = None) -> Float[Tensor, "n k"]:
        found = []
        for start in range(0, len(values[0]), self._size):
            part = slice(start, start + self._size)
            shift = None if moves is None else moves[part]
            found.append(self.seen.net.logits(tuple(value[part] for value in values), shift))
        return torch.cat(found)
