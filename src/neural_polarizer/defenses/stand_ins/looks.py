"""Looking for the attacker's class on the frozen network: norms in pixels, at the layer's input, and at the head's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from neural_polarizer.data.images import to_pixels
from neural_polarizer.defenses.engine import Engine
from neural_polarizer.defenses.stand_ins.evidence import Belief, believed
from neural_polarizer.defenses.stand_ins.forms import PixelForm, pixel_forms
from neural_polarizer.defenses.stand_ins.least import StandIns, dense_forms, least_stand_ins
from neural_polarizer.defenses.stand_ins.program import head_norms
from neural_polarizer.defenses.stand_ins.seen import Seen, in_form
from neural_polarizer.defenses.stand_ins.settings import Bank, Looks, Search, Settings
from neural_polarizer.rng import stream
from neural_polarizer.train import Progress

BY_CLASS = ("dense", "head", "features")
"""The norms that tell the attacker's class."""


@dataclass(frozen=True, eq=False)
class Found:
    """What was found out about the frozen network.

    Args:
        belief: in each aim.
        norms: of stand-ins by class: for each form in pixels, "head" and "features"; NaN where not looked at.
        pixels: the stand-ins in pixels, by form.
    """

    belief: Belief
    norms: Mapping[str, Float[Tensor, " k"]]
    pixels: Mapping[str, StandIns]


def look(
    at: Seen,
    looks: Looks,
    bank: Bank,
    *,
    pixels: Search,
    features: Search,
    batch_size: int,
    seed: int,
    told: Progress,
) -> Found:
    """Compute the statistics and combine them; a class's norm is the least of its stand-ins'.

    With many classes only the nearest ones and as many others are looked at (``Looks.classes``): a backdoor brings its
    class near, and the others are the crowd that it has to stand out from.
    """
    net, count = at.net, at.net.num_classes
    classes = _closely(at.logits, at.labels, looks.classes, stream(seed, "classes"))
    norms = {"head": _of_head(at, classes, looks)}
    norms["features"], shifts = _at_layer(
        at, classes, looks, features, batch_size, stream(seed, "looks in features"), told
    )
    in_pixels: dict[str, StandIns] = {}
    for name, form in pixel_forms(tuple(net.images.shape[1:])).items():
        each = _each(form, looks, len(classes))
        in_pixels[name] = found = in_form(
            at,
            form,
            classes.cpu().repeat_interleave(each),
            form.free(len(classes) * each, bank, net.device),
            search=replace(pixels, images=looks.images),
            batch_size=batch_size,
            generator=stream(seed, f"looks in pixels, {name}"),
            told=partial(told, f"look in pixels, {name}"),
        )
        norms[name] = _by_class(found.norms.cpu().view(len(classes), -1).amin(dim=1), classes, count)
    belief = believed(
        [norms[name].log() for name in BY_CLASS],
        [norms[name].log() for name in (*in_pixels, "features")],
        shifts.log(),
        floor=looks.floor,
        prior=looks.prior,
        alternative=looks.alternative,
        resolution=max(pixels.finest, features.finest),
    )
    return Found(belief, {name: norms[name] for name in (*in_pixels, "head", "features")}, in_pixels)


def _by_class(values: Float[Tensor, " c"], classes: Int64[Tensor, " c"], count: int) -> Float[Tensor, " k"]:
    """Values of the classes that were looked at, among all; NaN for the others."""
    found = torch.full((count,), torch.nan)
    found[classes.cpu()] = values
    return found


def _of_head(at: Seen, classes: Int64[Tensor, " c"], looks: Looks) -> Float[Tensor, " k"]:
    """Norms at the head's input by class; NaN where the network has no linear head."""
    head = _head_weight(at.net, to_pixels(at.net.images[:2]))
    if head is None:
        return torch.full((at.net.num_classes,), torch.nan)
    found = head_norms(head, at.logits, at.labels, classes, quantile=looks.quantile, steps=looks.program_steps)
    return _by_class(found.float().cpu(), classes, at.net.num_classes)


def _at_layer(
    at: Seen,
    classes: Int64[Tensor, " c"],
    looks: Looks,
    search: Search,
    batch_size: int,
    generator: torch.Generator,
    told: Progress,
) -> tuple[Float[Tensor, " k"], Float[Tensor, " s"]]:
    """Norms of dense stand-ins at the layer's input: by class, and by shift of the label from 1 on."""
    count, device = at.net.num_classes, at.net.device
    shift_count = min(count - 1, 2 * looks.classes)
    aims = torch.cat([classes.cpu().repeat_interleave(looks.features), count + torch.arange(shift_count)])
    found = least_stand_ins(
        at.in_features(),
        at.labels,
        at.wanted,
        aims,
        dense_forms(len(aims), at.net.features.shape, device),
        at.net.features.shape,
        unit=at.feature_norm,
        search=search,
        batch_size=batch_size,
        generator=generator,
        told=lambda done, total: told("look in features", done, total),
    )
    of_class, of_shift = found.norms.cpu().split([len(aims) - shift_count, shift_count])
    shifts = torch.full((count - 1,), torch.nan)
    shifts[:shift_count] = of_shift
    return _by_class(of_class.view(len(classes), -1).amin(dim=1), classes, count), shifts


def _each(form: PixelForm, looks: Looks, classes: int) -> int:
    """Stand-ins in pixels of one form for each class."""
    return max(2, round(looks.pixels / classes)) // (2 if form.smooth else 1)


def cost_of_looks(settings: Settings, classes: int) -> str | None:
    """What a look at the classes costs where only some of many are looked at, in a sentence; None for fewer classes.

    Args:
        settings: of the defense or the audit.
        classes: K of the model.
    """
    looks = settings.looks
    closely = 2 * looks.classes
    if classes <= closely:
        return None
    aims = closely * looks.features + min(classes - 1, closely)
    features = aims * settings.in_features.steps * min(settings.in_features.images, settings.batch_size)
    in_pixels = sum(_each(form, looks, closely) for form in pixel_forms((3, 1, 1)).values())
    pixels = closely * in_pixels * settings.in_pixels.steps * min(looks.images, settings.batch_size)
    return (
        f"of {classes:,} classes the {looks.classes} nearest and {looks.classes} others are looked at, with "
        f"{pixels + features:,} images forwards and backwards, however many more classes there are; "
        f"--set looks.classes={max(1, looks.classes // 4)} looks at fewer"
    )


def drawn_aims(belief: Belief, count: int, generator: torch.Generator) -> Int64[Tensor, " m"]:
    """Aims drawn in proportion to the belief in them."""
    return torch.multinomial(belief.aims, count, replacement=True, generator=generator)


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
    logits: Float[Tensor, "n k"], labels: Int64[Tensor, " n"], most: int, generator: torch.Generator
) -> Int64[Tensor, " c"]:
    """The classes that are looked at closely, in their order."""
    count = logits.shape[1]
    if count <= 2 * most:
        return torch.arange(count, device=logits.device)
    behind = logits.amax(dim=1, keepdim=True) - logits
    distance = torch.stack([behind[labels != each, each].median() for each in range(count)])
    order = distance.argsort()
    others = order[most:][torch.randperm(count - most, generator=generator).to(order.device)[:most]]
    return torch.cat([order[:most], others]).sort().values


@torch.no_grad()
def _head_weight(net: Engine, pixels: Tensor) -> Float[Tensor, "k d"] | None:
    """The weight of the linear layer whose outputs are the logits, if there is one."""
    outputs: list[tuple[nn.Module, Tensor]] = []
    handles = [
        module.register_forward_hook(lambda module, _args, output: outputs.append((module, output)))
        for module in net.model.modules()
        if isinstance(module, (nn.Linear, nn.Conv2d))
    ]
    try:
        logits = net.model(pixels)
    finally:
        for handle in handles:
            handle.remove()
    for module, output in reversed(outputs):
        if isinstance(output, Tensor) and output.shape[0] == len(logits) and output.numel() == logits.numel():
            weight = module.weight
            if (
                isinstance(weight, Tensor)
                and torch.equal(output.flatten(1), logits)
                and weight.flatten(1).shape[0] == logits.shape[1]
            ):
                return weight.detach().flatten(1).float()
    return None
