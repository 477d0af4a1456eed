"""Looking for the attacker's class on the frozen network: norms in pixels, at the layer's input, and at the head's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from neural_polarizer.data.images import to_pixels
from neural_polarizer.defenses.engine import Engine
from neural_polarizer.defenses.guard import margins
from neural_polarizer.defenses.stand_ins.belief import Belief, believed
from neural_polarizer.defenses.stand_ins.forms import PixelForm, pixel_forms
from neural_polarizer.defenses.stand_ins.least import Space, StandIns, dense_forms, least_stand_ins
from neural_polarizer.defenses.stand_ins.p_values import combined_p, outlier_p
from neural_polarizer.defenses.stand_ins.program import head_norms
from neural_polarizer.defenses.stand_ins.seen import Seen
from neural_polarizer.defenses.stand_ins.settings import Looks, Search, Settings
from neural_polarizer.models.layers import watching
from neural_polarizer.progress import Progress
from neural_polarizer.rng import stream

BY_CLASS = ("dense", "smooth", "head", "features", "last_map")
"""The norms that tell the attacker's class."""
GAINS = ("dense", "smooth")
"""The forms whose ``gain`` tells it, too."""


@dataclass(frozen=True, eq=False)
class Found:
    """What was found out about the frozen network."""

    belief: Belief  # in each aim
    norms: Mapping[str, Float[Tensor, " k"]]  # of stand-ins by class, those of ``BY_CLASS``; NaN where not looked at
    gains: Mapping[str, Float[Tensor, " k"]]  # of the least ones by class (``gain``), those of ``GAINS``, likewise
    pixels: Mapping[str, StandIns]  # the stand-ins in pixels, by form


def look(at: Seen, last: Seen | None, settings: Settings, *, seed: int, told: Progress) -> Found:
    """Compute the statistics and combine them; a class's norm is the least of its stand-ins'.

    With many classes only the nearest ones and as many others are looked at (``Looks.classes``): a backdoor brings its
    class near, and the others are the crowd that it has to stand out from.  Of these, then, fewer are looked at in
    pixels, which costs most: the most suspicious ones by then, and as many others (``Looks.pixel_classes``).

    It is looked ``at`` the layer's place, and at the ``last`` map, where a backdoor's direction may be clearer; None
    where there is no other place.
    """
    looks, count = settings.looks, at.net.num_classes
    classes = _closely(_behind(at.logits, at.labels), torch.arange(count), looks.classes, stream(seed, "classes"))
    aims = classes.repeat_interleave(looks.features)
    shift_count = min(count - 1, 2 * looks.classes)
    shifts = count + torch.arange(shift_count)
    of_layer = _dense(at, torch.cat([aims, shifts]), settings, stream(seed, "looks in features"), told, "features")
    of_class, of_shift = of_layer.split([len(aims), shift_count])
    norms = {"head": _of_head(at, classes.to(at.net.device), looks), "features": _by_class(of_class, classes, count)}
    norms["last_map"] = torch.full((count,), torch.nan)
    if last is not None:
        of_last = _dense(last, aims, settings, stream(seed, "looks at the last map"), told, "the last map")
        norms["last_map"] = _by_class(of_last, classes, count)
    resolution = max(settings.in_pixels.finest, settings.in_features.finest)
    finely = classes
    if len(classes) < count:
        by_now = combined_p(torch.stack([outlier_p(each.log(), resolution) for each in norms.values()]))
        finely = _closely(by_now, classes, looks.pixel_classes, stream(seed, "classes in pixels"))
    in_pixels: dict[str, StandIns] = {}
    gains: dict[str, Float[Tensor, " k"]] = {}
    for name, form in pixel_forms(tuple(at.net.images.shape[1:]), settings.bank).items():
        in_pixels[name], least = _in_pixels(at, form, finely, settings, stream(seed, f"looks in pixels, {name}"), told)
        norms[name] = _by_class(least.norms.cpu(), finely, count)
        gained = gain(at.in_pixels(form), least, settings, stream(seed, f"gains in pixels, {name}"))
        gains[name] = _by_class(gained, finely, count)
    belief = believed(
        [*(norms[name].log() for name in BY_CLASS), *(-gains[name].log() for name in GAINS)],
        [norms[name].log() for name in (*in_pixels, "features")],
        torch.cat([of_shift, torch.full((count - 1 - shift_count,), torch.nan)]).log(),
        looks,
        resolution,
    )
    return Found(belief, {name: norms[name] for name in BY_CLASS}, gains, in_pixels)


def _in_pixels(
    at: Seen,
    form: PixelForm,
    classes: Int64[Tensor, " c"],
    settings: Settings,
    generator: torch.Generator,
    told: Progress,
) -> tuple[StandIns, StandIns]:
    """Stand-ins in pixels of one form, and the least of each class, whose norm tells the class; in their order.

    The least of each class is looked for further: many a search ends at what any class has by nature, and one that
    came near a trigger has not arrived.
    """
    looks, each = settings.looks, _each(form, settings.looks, len(classes))
    search = replace(settings.in_pixels, images=looks.images)

    def made(count: int, search: Search, begin: StandIns | None, phase: str) -> StandIns:
        return least_stand_ins(
            at.in_pixels(form),
            classes.repeat_interleave(count),
            form.free(len(classes) * count, settings.bank, at.net.device),
            search=search,
            batch_size=settings.searched_at_once(form.shape),
            generator=generator,
            told=partial(told, phase),
            begin=begin,
        )

    found = made(each, search, None, f"look in pixels, {form.name}")
    best = found.norms.cpu().view(len(classes), each).argmin(dim=1) + each * torch.arange(len(classes))
    least = found.select(best)
    if looks.further == 0:
        return found, least
    finer = replace(search, steps=looks.further, settle=0, change=search.change / 2, stride=search.stride / 2)
    least = made(1, finer, least, f"look further in pixels, {form.name}")
    return found.joined(least), least


@torch.no_grad()
def gain(space: Space, found: StandIns, settings: Settings, generator: torch.Generator) -> Float[Tensor, " m"]:
    """By how much each leads farther beyond the boundary where it is ``Looks.longer`` times as long, in logits.

    The margin of an image is the logit of the wanted label less the largest of the others.  The gain is the mean margin
    with the longer stand-in less that with the least one, over images that the generator (on the CPU) draws; at least
    1e-3, and NaN where all images have the wanted label.  A network has been taught to follow a trigger: towards the
    attacker's class it gains more than where a perturbation only happens to cross a boundary.

    Returns the gains on the CPU.
    """
    looks, size = settings.looks, settings.searched_at_once(space.shape)
    gains = []
    for delta, aim in zip(found.deltas, found.aims.tolist(), strict=True):
        others = space.others(aim)
        rows = others[torch.randperm(len(others), generator=generator)[: looks.gain_images].to(others.device)]
        total = torch.zeros((), device=others.device)
        for part in rows.split(size) if len(rows) else ():
            wanted, deltas = space.wanted[aim, part], delta.expand(len(part), *delta.shape)
            longer, least = (space.forward(part, scale * deltas) for scale in (looks.longer, 1.0))
            total = total + (margins(longer, wanted) - margins(least, wanted)).sum()
        gains.append(total / len(rows) if len(rows) else torch.full_like(total, torch.nan))
    return torch.stack(gains).clamp_min(1e-3).cpu()


def _by_class(values: Float[Tensor, " m"], classes: Int64[Tensor, " c"], count: int) -> Float[Tensor, " k"]:
    """The least value of each class that was looked at, among all; NaN for the others."""
    found = torch.full((count,), torch.nan)
    found[classes.cpu()] = values.view(len(classes), -1).amin(dim=1)
    return found


def _of_head(at: Seen, classes: Int64[Tensor, " c"], looks: Looks) -> Float[Tensor, " k"]:
    """Norms at the head's input by class; NaN where the network has no linear head."""
    head = _head_weight(at.net, to_pixels(at.net.images[:2]))
    if head is None:
        return torch.full((at.net.num_classes,), torch.nan)
    found = head_norms(head, at.logits, at.labels, classes, quantile=looks.quantile, steps=looks.program_steps)
    return _by_class(found.float().cpu(), classes, at.net.num_classes)


def _dense(
    at: Seen, aims: Int64[Tensor, " m"], settings: Settings, generator: torch.Generator, told: Progress, where: str
) -> Float[Tensor, " m"]:
    """Norms of dense stand-ins at a place inside the network."""
    return least_stand_ins(
        at.in_features(),
        aims,
        dense_forms(len(aims), at.net.features.shape, at.net.device),
        search=settings.in_features,
        batch_size=settings.batch_size,
        generator=generator,
        told=partial(told, f"look in {where}"),
    ).norms.cpu()


def _each(form: PixelForm, looks: Looks, classes: int) -> int:
    """Stand-ins in pixels of one form for each class."""
    return max(2, round(looks.pixels / classes)) // (2 if form.smooth else 1)


def cost_of_looks(settings: Settings, classes: int) -> str | None:
    """What a look at the classes costs where only some of many are looked at, in a sentence; None for fewer classes."""
    looks = settings.looks
    closely, finely = 2 * looks.classes, 2 * min(looks.pixel_classes, looks.classes)
    if classes <= closely:
        return None
    aims = 2 * closely * looks.features + min(classes - 1, closely)  # at the layer's input and at the last map
    features = aims * settings.in_features.steps * min(settings.in_features.images, settings.batch_size)
    in_pixels = sum(_each(form, looks, finely) for form in pixel_forms((3, 1, 1), settings.bank).values())
    steps = in_pixels * settings.in_pixels.steps + 2 * looks.further  # of each form
    pixels = finely * steps * min(looks.images, settings.batch_size)
    return (
        f"of {classes:,} classes the {looks.classes} nearest and {looks.classes} others are looked at, {finely} of "
        f"them in pixels, with {pixels + features:,} images forwards and backwards, however many more classes there "
        f"are; --set looks.pixel_classes={max(1, finely // 4)} looks at fewer"
    )


def drawn_pairs(
    aims: Float[Tensor, " a"],
    forms: Float[Tensor, "a f"],
    names: Sequence[str],
    count: int,
    generator: torch.Generator,
) -> Mapping[str, Int64[Tensor, " m"]]:
    """Aims, drawn with these weights, by the form that is drawn for each."""
    drawn = torch.multinomial(aims, count, replacement=True, generator=generator)
    form = torch.multinomial(forms[drawn], 1, generator=generator)[:, 0]
    return {name: drawn[form == place] for place, name in enumerate(names)}


def _closely(
    scores: Float[Tensor, " k"], classes: Int64[Tensor, " c"], most: int, generator: torch.Generator
) -> Int64[Tensor, " d"]:
    """Of these classes the ``most`` with the lowest scores and as many others, in their order; all if there are fewer.

    All are on the CPU.
    """
    if len(classes) <= 2 * most:
        return classes
    ordered = classes[scores[classes].argsort()]
    others = ordered[most:]
    return torch.cat([ordered[:most], others[torch.randperm(len(others), generator=generator)[:most]]]).sort().values


def _behind(logits: Float[Tensor, "n k"], labels: Int64[Tensor, " n"]) -> Float[Tensor, " k"]:
    """By how much each class is behind the answer, for the median image of another class; on the CPU."""
    behind = logits.amax(dim=1, keepdim=True) - logits
    return torch.stack([behind[labels != each, each].median() for each in range(logits.shape[1])]).cpu()


@torch.no_grad()
def _head_weight(net: Engine, pixels: Tensor) -> Float[Tensor, "k d"] | None:
    """The weight of the linear layer whose outputs are the logits, if there is one."""
    layers = {name: each for name, each in net.model.named_modules() if isinstance(each, nn.Linear | nn.Conv2d)}
    outputs: list[tuple[str, Any]] = []
    with watching(net.model, layers, lambda name, _inputs, output: outputs.append((name, output))):
        logits = net.model(pixels)
    for name, output in reversed(outputs):
        if isinstance(output, Tensor) and output.shape[0] == len(logits) and output.numel() == logits.numel():
            weight = layers[name].weight.detach().flatten(1)
            if torch.equal(output.flatten(1), logits) and len(weight) == logits.shape[1]:
                return weight.float()
    return None
