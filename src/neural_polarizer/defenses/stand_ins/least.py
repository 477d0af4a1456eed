"""Least stand-ins: perturbations that images share, of the smallest norm that still leads them to a class."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

from neural_polarizer.defenses.stand_ins.settings import Search
from neural_polarizer.perturb import each_length, smoothed

Forward = Callable[[Tensor, Tensor], Tensor]
"""Rows of images ``(b,)`` and a perturbation for each ``(b, *shape)``, to logits ``(b, k)``."""


@dataclass(frozen=True, eq=False)
class Space:
    """Where perturbations are looked for: pixels, or the features at one place of the network."""

    forward: Forward  # how images with perturbations become logits; its parameters get no gradients
    labels: Int64[Tensor, " n"]  # of the images
    wanted: Int64[Tensor, "a n"]  # for each aim the label that each image is to get (``wanted_labels``)
    shape: Sequence[int]  # of one perturbation
    unit: float  # of the radii of ``Search``

    def others(self, aim: int) -> Int64[Tensor, " r"]:
        """Rows of the images that do not have the label of ``aim`` yet."""
        return (self.labels != self.wanted[aim]).nonzero()[:, 0]


@dataclass(frozen=True, eq=False)
class StandIns:
    """Perturbations, each shared by all images that do not have its label yet."""

    deltas: Float[Tensor, "m ..."]  # the perturbations
    norms: Float[Tensor, " m"]  # the L2 norms at which they begin to succeed
    success: Float[Tensor, " m"]  # share of the last step's images that went over
    aims: Int64[Tensor, " m"]  # for each its row in the table of wanted labels

    def __len__(self) -> int:
        return len(self.aims)

    def select(self, kept: Bool[Tensor, " m"] | Int64[Tensor, " n"]) -> "StandIns":
        """Those that a mask or rows tell."""
        return StandIns(self.deltas[kept], self.norms[kept], self.success[kept], self.aims[kept])

    def joined(self, other: "StandIns") -> "StandIns":
        """These and others of the same shape."""
        pairs = ((getattr(self, name), getattr(other, name)) for name in ("deltas", "norms", "success", "aims"))
        return StandIns(*(torch.cat(pair) for pair in pairs))


def least_stand_ins(
    space: Space,
    aims: Int64[Tensor, " m"],
    forms: "Forms",
    *,
    search: Search,
    batch_size: int,
    generator: torch.Generator,
    told: Callable[[int, int], None],
    begin: StandIns | None = None,
) -> StandIns:
    """For each aim the smallest perturbation found that most images have in common and that leads them there.

    Decoupled direction and norm (Rony et al. 2019), for perturbations that images share.  In each step fresh images see
    the perturbation; it takes a normalised step down their cross-entropy to the wanted labels; then its length becomes
    the radius, which shrinks where enough images went over and grows where not.

    ``aims`` are rows of ``space.wanted``; ``forms`` what each stand-in may look like; ``begin`` where each goes on
    from. At most ``batch_size`` images are seen at once. The generator (on the CPU) draws images and beginnings;
    ``told`` is called with the steps done and all steps.

    Returns one for each of ``aims``, inside its window, with a norm of at most ``search.cap * space.unit``.  Those
    whose every image has the wanted label already do not succeed.
    """
    begin = _by_chance(space, aims, forms, search, generator) if begin is None else begin
    images = min(search.images, batch_size)
    groups = torch.arange(len(aims)).split(max(1, batch_size // images))
    parts = [(begin.select(group), forms.select(group)) for group in groups]
    others = {aim: space.others(aim) for aim in set(aims.tolist())}
    last, radii = _searched(space, others, parts, images, search, generator, told)
    norms = torch.stack(radii[-max(1, round(search.averaged * search.steps)) :]).log().mean(dim=0).exp()
    idle = torch.tensor([len(others[aim]) == 0 for aim in aims.tolist()], dtype=torch.bool, device=norms.device)
    return StandIns(_of_length(last.deltas, norms), norms, last.success.masked_fill(idle, 0.0), aims)


def _searched(
    space: Space,
    others: Mapping[int, Tensor],
    parts: Sequence[tuple[StandIns, "Forms"]],
    images: int,
    search: Search,
    generator: torch.Generator,
    told: Callable[[int, int], None],
) -> tuple[StandIns, list[Tensor]]:
    """All parts after the last step, joined; and their radii after each."""
    now, radii = [part for part, _ in parts], []
    for step in range(search.steps):
        for place, (_, forms) in enumerate(parts):
            rows = [_drawn(others[aim], images, generator) for aim in now[place].aims.tolist()]
            if rows:
                now[place] = _stepped(space, now[place], forms, torch.stack(rows), step, search)
            told(step * len(parts) + place + 1, search.steps * len(parts))
        radii.append(torch.cat([part.norms for part in now]))
    return functools.reduce(StandIns.joined, now), radii


def _by_chance(space: Space, aims: Tensor, forms: "Forms", search: Search, generator: torch.Generator) -> StandIns:
    """Beginnings inside the first radius."""
    device, radius = space.labels.device, search.start * space.unit
    drawn = torch.randn((len(aims), *space.shape), generator=generator).to(device)
    deltas = forms.fitted(drawn)
    radii = torch.full((len(aims),), radius, device=device)
    return StandIns(_of_length(deltas, search.inside * radii), radii, torch.zeros_like(radii), aims)


def _drawn(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    if len(rows) == 0:
        return torch.zeros(count, dtype=torch.int64, device=rows.device)
    return rows[torch.randint(len(rows), (count,), generator=generator).to(rows.device)]


def _stepped(
    space: Space, now: StandIns, forms: "Forms", rows: Int64[Tensor, "g i"], step: int, search: Search
) -> StandIns:
    """After one step down the cross-entropy of each one's own images; its norm is the next radius."""
    point = now.deltas.clone().requires_grad_()
    labels = space.wanted[now.aims[:, None].to(rows.device), rows]
    logits = space.forward(rows.flatten(), point.repeat_interleave(rows.shape[1], dim=0))
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits, labels.flatten(), reduction="sum"), point)
    success = (logits.argmax(dim=1) == labels.flatten()).float().view(rows.shape).mean(dim=1)
    radii = now.norms
    if step >= search.settle:
        sign = torch.where(success >= search.success, -1.0, 1.0)
        radii = radii * (sign * _between(search.change, search.finest, step, search)).exp()
        radii = radii.clamp_max(search.cap * space.unit)
    stride = _between(search.stride, search.last_stride, step, search)
    moved = now.deltas - _of_length(forms.fitted(gradient), stride * radii)
    return StandIns(_of_length(moved, radii), radii, success, now.aims)


def _between(first: float, last: float, step: int, search: Search) -> float:
    return first + (last - first) * step / max(1, search.steps - 1)


def _of_length(values: Float[Tensor, "m ..."], lengths: Float[Tensor, " m"]) -> Float[Tensor, "m ..."]:
    """The same directions with these lengths."""
    return values / each_length(values).clamp_min(1e-12) * lengths.view(-1, *[1] * (values.ndim - 1))


@dataclass(frozen=True, eq=False)
class Forms:
    """What stand-ins may look like: where they may differ from zero, and how smooth they are."""

    # 1 where a stand-in may differ from zero, else 0; of size 1 along axes that are no places.
    windows: Float[Tensor, "m ..."]
    # Those whose every step a coarse grid could take (``perturb.smoothed``); pictures only.
    smooth: Bool[Tensor, " m"]
    cells: int  # of that grid, a side

    def select(self, group: Int64[Tensor, " g"]) -> "Forms":
        """Those of the stand-ins ``group``."""
        return replace(self, windows=self.windows[group], smooth=self.smooth[group])

    def fitted(self, values: Float[Tensor, "m ..."]) -> Float[Tensor, "m ..."]:
        """Directions as the forms allow them; a linear map."""
        if bool(self.smooth.any()):
            values = values.clone()
            values[self.smooth] = smoothed(values[self.smooth], self.cells)
        return values * self.windows


def dense_forms(count: int, shape: Sequence[int], device: torch.device) -> Forms:
    """Forms of stand-ins that may be anything."""
    return Forms(torch.ones(count, *[1] * len(shape), device=device), torch.zeros(count, dtype=torch.bool), 1)


def drawn_forms(
    count: int,
    shape: Sequence[int],
    axes: Sequence[int],
    *,
    dense: float,
    largest: float,
    generator: torch.Generator,
    device: torch.device,
) -> Forms:
    """``count`` random forms: a share ``dense`` may be anything, the others anything in a random box along ``axes``.

    These are the axes of ``shape`` that are places (height and width, or tokens); without any, all are dense.
    ``largest`` is the longest side of a box, as a share of the axis. The generator (on the CPU) draws them.
    """
    found = dense_forms(count, shape, device)
    windows = torch.ones(count, *(size if axis in axes else 1 for axis, size in enumerate(shape)))
    boxed = torch.rand(count, generator=generator) >= dense
    for place in boxed.nonzero()[:, 0].tolist() if axes else []:
        box = [slice(None)] * len(shape)
        for axis in axes:
            longest = max(1, int(largest * shape[axis]))
            length = int(torch.randint(1, longest + 1, (1,), generator=generator))
            start = int(torch.randint(0, shape[axis] - length + 1, (1,), generator=generator))
            box[axis] = slice(start, start + length)
        windows[place] = 0
        windows[place][tuple(box)] = 1
    return replace(found, windows=windows.to(device))


def wanted_labels(labels: Int64[Tensor, " n"], num_classes: int) -> Int64[Tensor, "a n"]:
    """What each image is to become for each aim: all images class 0, ..., K - 1; then label + 1, ..., + (K - 1) mod K.

    The first K aims are an all-to-one attacker's, the K - 1 others an all-to-all attacker's ("next" is aim K).
    """
    classes = torch.arange(num_classes, device=labels.device)[:, None].expand(-1, len(labels))
    shifts = torch.arange(1, num_classes, device=labels.device)[:, None]
    return torch.cat([classes, (labels + shifts) % num_classes])
