"""The banks of stand-ins: which are made, and images that carry them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from neural_polarizer.data.images import to_pixels
from neural_polarizer.defenses.engine import Values
from neural_polarizer.defenses.stand_ins.belief import Belief
from neural_polarizer.defenses.stand_ins.early import EarlyMap
from neural_polarizer.defenses.stand_ins.forms import PixelForm, pixel_forms
from neural_polarizer.defenses.stand_ins.learn import Carried
from neural_polarizer.defenses.stand_ins.least import StandIns, least_stand_ins
from neural_polarizer.defenses.stand_ins.looks import Found, drawn_pairs
from neural_polarizer.defenses.stand_ins.seen import Seen, succeeding
from neural_polarizer.defenses.stand_ins.settings import Settings
from neural_polarizer.perturb import clip
from neural_polarizer.progress import Progress
from neural_polarizer.rng import stream

FEATURES = "features"
"""The name of the form of what only features have in common."""


@dataclass(frozen=True, eq=False)
class Gathered:
    """Stand-ins by form: those of ``pixel_forms``, and ``FEATURES``."""

    taught: Mapping[str, StandIns]  # to learn from
    shares: Mapping[str, float]  # of each form in what is learned from
    held: Mapping[str, StandIns]  # to judge by


def gathered(
    at: Seen, early: EarlyMap, settings: Settings, found: Found, belief: Belief, *, seed: int, told: Progress
) -> Gathered:
    """Stand-ins to learn from and to judge by.

    Aims are drawn in proportion to the belief in them, forms in proportion to how far an aim stands out in them.
    To learn from, each keeps a share, whatever the evidence says, and those of the evidence are used again.
    """
    looks, bank, device = settings.looks, settings.bank, at.net.device
    generator = stream(seed, "bank")
    shapes = pixel_forms(tuple(at.net.images.shape[1:]), bank)
    names = [*shapes, FEATURES]
    forms = (1 - looks.floor) * belief.forms / belief.forms.sum(dim=1, keepdim=True) + looks.floor / len(names)
    drawn = drawn_pairs(belief.aims, forms, names, bank.taught, generator)
    again = drawn_pairs(belief.aims, forms, names, bank.taught, generator)
    judging = drawn_pairs(belief.factors.float(), belief.judging(looks.clear), names, bank.held, generator)

    def made(form: PixelForm, aims: Tensor, phase: str) -> StandIns:
        every = least_stand_ins(
            at.in_pixels(form),
            aims,
            form.free(len(aims), bank, device),
            search=settings.in_pixels,
            batch_size=settings.searched_at_once(form.shape),
            generator=generator,
            told=partial(told, f"{phase} in pixels, {form.name}"),
        )
        return every.select(succeeding(every, bank.led, settings.in_pixels.cap * form.unit))

    taught, held = {}, {}
    for name, form in shapes.items():
        kept = found.pixels[name]
        kept = kept.select(torch.isin(kept.aims, again[name]) & (kept.success >= bank.led).cpu())
        taught[name] = made(form, drawn[name], "stand-ins").joined(kept)
        held[name] = made(form, judging[name], "held-out stand-ins")
    taught[FEATURES] = early.stand_ins(drawn[FEATURES], bank.dense, generator, told, "stand-ins in features")
    held[FEATURES] = early.stand_ins(judging[FEATURES], 1.0, generator, told, "held-out stand-ins in features")
    return Gathered(taught, {name: len(drawn[name]) / bank.taught for name in names}, held)


Carrier = Callable[[Tensor, Tensor], tuple[Values, Tensor | None]]
"""Rows of images ``(b,)`` and a perturbation for each, to values in front of the layer and moves of its input."""


def in_pixels(at: Seen) -> Carrier:
    """Images with perturbations of their pixels, which keep their range."""

    def carrier(rows: Tensor, deltas: Tensor) -> tuple[Values, None]:
        return at.net.front(clip(to_pixels(at.net.images[rows]) + deltas)), None

    return carrier


def in_features(at: Seen, early: EarlyMap) -> Carrier:
    """Images with perturbations of an earlier map."""

    def carrier(rows: Tensor, deltas: Tensor) -> tuple[Values, Tensor]:
        return tuple(value[rows] for value in at.values), early.moves(rows, deltas)

    return carrier


@torch.no_grad()
def carrying(
    at: Seen,
    stand_ins: StandIns,
    carrier: Carrier,
    stretch: Float[Tensor, " n"],
    generator: torch.Generator,
    batch_size: int,
) -> Carried:
    """Images that carry stand-ins.

    On each of n images, fewer where fewer can carry it, a stand-in has ``stretch`` times its own length. The generator
    (on the CPU) draws the images; ``batch_size`` are the most at once.
    """
    none = at.labels[:0]
    values: list[Values] = []
    moves: list[Tensor] = []
    rows, aims, which = [none], [none], [none]
    for number, (delta, aim) in enumerate(zip(stand_ins.deltas, stand_ins.aims, strict=True)):
        usable = (at.labels != at.wanted[aim]).nonzero()[:, 0]
        chosen = usable[torch.randperm(len(usable), generator=generator)[: len(stretch)].to(usable.device)]
        scales = stretch[: len(chosen)].to(chosen.device).view(-1, *[1] * delta.ndim)
        for part, scale in zip(chosen.split(batch_size), scales.split(batch_size), strict=True):
            if len(part) > 0:
                value, move = carrier(part, scale * delta)
                values.append(value)
                moves.extend([] if move is None else [move])
        rows.append(chosen)
        aims.append(aim.to(chosen.device).expand_as(chosen))
        which.append(torch.full_like(chosen, number))
    row, of = torch.cat(rows), torch.cat(aims)
    joined = tuple(torch.cat(column) for column in zip(*values, strict=True)) or tuple(each[:0] for each in at.values)
    return Carried(joined, torch.cat(moves) if moves else None, row, at.wanted[of, row], of, torch.cat(which))
