"""The bank of stand-ins in pixels: which are made, and images that carry them."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from neural_polarizer.data.images import to_pixels
from neural_polarizer.defenses.stand_ins.evidence import Belief
from neural_polarizer.defenses.stand_ins.forms import PixelForm, pixel_forms
from neural_polarizer.defenses.stand_ins.learn import Carried
from neural_polarizer.defenses.stand_ins.least import Forms, StandIns, least_stand_ins
from neural_polarizer.defenses.stand_ins.looks import Found, drawn_pairs
from neural_polarizer.defenses.stand_ins.seen import Seen, succeeding
from neural_polarizer.defenses.stand_ins.settings import Settings
from neural_polarizer.perturb import clip
from neural_polarizer.rng import stream
from neural_polarizer.train import Progress

FEATURES = "features"
"""The name of the form of what only the layer's input has in common."""


@dataclass(frozen=True, eq=False)
class PixelBank:
    """Stand-ins in pixels by form."""

    taught: Mapping[str, StandIns]  # to learn from
    held: Mapping[str, StandIns]  # to judge by
    at_layer: Int64[Tensor, " m"]  # aims of those at the layer's input that judge


def pixel_bank(at: Seen, settings: Settings, found: Found, belief: Belief, *, seed: int, told: Progress) -> PixelBank:
    """Stand-ins in pixels, which do not depend on the site, to learn from and to judge by.

    Aims are drawn in proportion to the belief in them, forms in proportion to how far an aim stands out in them.
    To learn from, each keeps a share, whatever the evidence says, and those of the evidence are used again.
    """
    looks, bank, device = settings.looks, settings.bank, at.net.device
    generator = stream(seed, "bank in pixels")
    shapes = pixel_forms(tuple(at.net.images.shape[1:]))
    names = list(shapes)
    forms = belief.forms[:, : len(names)] / belief.forms[:, : len(names)].sum(dim=1, keepdim=True)
    forms = (1 - looks.floor) * forms + looks.floor / len(names)
    drawn = drawn_pairs(belief.aims, forms, names, bank.pixels, generator)
    again = drawn_pairs(belief.aims, forms, names, bank.pixels, generator)
    judging = drawn_pairs(belief.factors.float(), belief.judging(looks.clear), [*names, FEATURES], bank.held, generator)

    def made(form: PixelForm, aims: Tensor, windows: Forms, phase: str) -> StandIns:
        every = least_stand_ins(
            at.in_pixels(form),
            aims,
            windows,
            search=settings.in_pixels,
            batch_size=settings.searched_at_once(form.shape),
            generator=generator,
            told=partial(told, f"{phase} in pixels, {form.name}"),
        )
        return every.select(succeeding(every, settings.in_pixels.cap * form.unit))

    taught, held = {}, {}
    for name, form in shapes.items():
        windows = form.drawn(len(drawn[name]), bank, generator, device)
        free = form.free(len(judging[name]), bank, device)
        kept = found.pixels[name]
        kept = kept.select(torch.isin(kept.aims, again[name]) & (kept.success >= 0.5).cpu())
        taught[name] = made(form, drawn[name], windows, "stand-ins").joined(kept)
        held[name] = made(form, judging[name], free, "held-out stand-ins")
    return PixelBank(taught, held, judging[FEATURES])


@torch.no_grad()
def carrying(
    at: Seen,
    pixels: Mapping[str, StandIns],
    stretch: Float[Tensor, " n"],
    generator: torch.Generator,
    batch_size: int,
) -> tuple[Carried, Tensor, list[int], list[int]]:
    """Images that carry stand-ins in pixels, in front of the layer.

    On each of n images, fewer where fewer can carry it, a stand-in has ``stretch`` times its own length. The generator
    (on the CPU) draws the images; ``batch_size`` are the most at once.

    Returns the images; the labels that they are led to; how many carry each stand-in; its aim.
    """
    parts, rows, led, aims = [], [], [], []
    for stand_ins in pixels.values():
        for delta, aim in zip(stand_ins.deltas, stand_ins.aims.tolist(), strict=True):
            usable = (at.labels != at.wanted[aim]).nonzero()[:, 0]
            chosen = usable[torch.randperm(len(usable), generator=generator)[: len(stretch)].to(usable.device)]
            if len(chosen) == 0:
                continue
            scales = stretch[: len(chosen)].to(chosen.device)
            for part, scale in zip(chosen.split(batch_size), scales.split(batch_size), strict=True):
                deltas = scale.view(-1, 1, 1, 1) * delta
                parts.append(at.net.front(clip(to_pixels(at.net.images[part]) + deltas)))
            rows.append(chosen)
            led.append(at.wanted[aim, chosen])
            aims.append(aim)
    if not parts:
        nothing = torch.zeros(0, dtype=torch.int64, device=at.net.device)
        return Carried(tuple(value[:0] for value in at.values), nothing), nothing, [], []
    values = tuple(torch.cat(column) for column in zip(*parts, strict=True))
    return Carried(values, torch.cat(rows)), torch.cat(led), [len(each) for each in led], aims
