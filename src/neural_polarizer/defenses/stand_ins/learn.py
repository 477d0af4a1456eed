"""The objective: agree with the frozen network's logits, on clean images and where stand-ins lead elsewhere."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from neural_polarizer.defenses.engine import Engine, Values
from neural_polarizer.defenses.schedule import cosine
from neural_polarizer.defenses.stand_ins.least import StandIns
from neural_polarizer.defenses.stand_ins.settings import Bank, Learning, Settings
from neural_polarizer.perturb import each_length
from neural_polarizer.train import descend


@dataclass(frozen=True, eq=False)
class Carried:
    """Images that carry stand-ins in pixels, as the network sees them in front of the layer."""

    values: Values  # as ``Engine.front`` gives them
    rows: Int64[Tensor, " m"]  # of the images among those that the network has seen

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, eq=False)
class Change:
    """The difference between a layer and the identity: ``features -> features + mix features + shift``."""

    mix: Tensor
    shift: Tensor


def mean_of(changes: Sequence[Change]) -> Change:
    """The mean, which is what the mean of the layers' outputs is."""
    return Change(
        torch.stack([each.mix for each in changes]).mean(dim=0),
        torch.stack([each.shift for each in changes]).mean(dim=0),
    )


class Layer:
    """The engine's polarizer as an affine map of the channels, A = I + mix; its norm only shifts.

    The layer of ``net`` is calibrated, and its statistics keep their values.
    """

    def __init__(self, net: Engine) -> None:
        self._weight, self._bias = net.polarizer.mix.weight, net.polarizer.norm.bias
        self._identity, self._mean = self._weight.detach().clone(), self._bias.detach().clone()

    @property
    def nothing(self) -> Change:
        """The identity's."""
        return Change(torch.zeros_like(self._identity), torch.zeros_like(self._mean))

    @property
    def change(self) -> Change:
        """A copy of the present difference."""
        return Change(self._weight.detach() - self._identity, self._bias.detach() - self._mean)

    @torch.no_grad()
    def set(self, change: Change, dial: float = 1.0) -> None:
        """Make the difference ``dial`` times ``change``."""
        self._weight.copy_(self._identity + dial * change.mix)
        self._bias.copy_(self._mean + dial * change.shift)

    def frozen(self, yes: bool) -> None:
        """Whether it takes no gradients."""
        self._weight.requires_grad_(not yes)
        self._bias.requires_grad_(not yes)

    def pulled(self) -> Float[Tensor, ""]:
        """|A - I|^2, with a gradient."""
        return (self._weight - self._identity).square().sum()

    def optimizer(self, learning: Learning, unit: float) -> torch.optim.Adam:
        """Adam of both, with the shift's rate in units of ``unit``.

        Its first steps are as long for each weight, so those of an output grow with the number of channels.
        """
        mix = {"params": [self._weight], "lr": learning.lr / len(self._weight)}
        return torch.optim.Adam([mix, {"params": [self._bias], "lr": learning.lr_shift * unit}])


def centred(logits: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    """Logits less their mean over the classes, which no answer depends on."""
    return logits - logits.mean(dim=1, keepdim=True)


def disagreement(
    logits: Float[Tensor, "n k"], wanted: Float[Tensor, "n k"], variance: Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """Mean square of the difference of centred logits, in units of their variance; 0 for no images."""
    if len(logits) == 0:
        return logits.sum()
    return (centred(logits) - wanted).square().mean() / variance


@dataclass(frozen=True, eq=False)
class Held:
    """Stand-ins that judge."""

    values: Values  # images that carry those in pixels, as the network sees them in front of the layer
    led: Int64[Tensor, " h"]  # the labels that these are led to
    counts: Sequence[int]  # how many images carry each
    aims: Sequence[int]  # of each
    shifts: StandIns  # those at the layer's input

    def __len__(self) -> int:
        return len(self.counts) + len(self.shifts)


@dataclass(frozen=True, eq=False)
class Lesson:
    """What the layer learns from."""

    values: Values  # of the clean images, in front of the layer
    wanted: Int64[Tensor, "a n"]  # their table of wanted labels
    labels: Int64[Tensor, " n"]  # their true ones
    logits: Float[Tensor, "n k"]  # the frozen network's, centred
    carried: Carried  # images with stand-ins in pixels
    shifts: StandIns  # stand-ins at the layer's input
    held: Held  # stand-ins that nothing is learned from
    unit: float  # standard deviation of the features
    fit: Int64[Tensor, " f"]  # rows of the images that are learned from

    def of(self, fit: Int64[Tensor, " f"]) -> "Lesson":
        """The same from the images ``fit`` only."""
        kept = torch.isin(self.carried.rows, fit)
        carried = Carried(tuple(value[kept] for value in self.carried.values), self.carried.rows[kept])
        return replace(self, carried=carried, fit=fit)


def learn(
    net: Engine,
    layer: Layer,
    lesson: Lesson,
    settings: Settings,
    *,
    weight: float,
    steps: int,
    generator: torch.Generator,
    told: Callable[[int, int], None],
) -> float:
    """Minimise disagreement(clean) + weight (disagreement(pixels) + disagreement(features)) + pull |A - I|^2 / sqrt(n).

    n images are learned from; fewer say less of others.  Half of a batch is clean, a quarter carries stand-ins in
    pixels, a quarter stand-ins at the layer's input; these are stretched and wrapped in noise anew each time.  Images
    that have a stand-in's label already do not carry it.

    ``layer`` goes on from where it is, by ``steps`` of Adam with a cosine schedule; the generator (on the CPU) draws
    the batches; ``told`` is called with the steps done and all steps. Returns the mean loss of the last tenth of the
    steps; NaN without steps.
    """
    optimizer = layer.optimizer(settings.learning, lesson.unit)
    layer.frozen(False)
    rates = [group["lr"] for group in optimizer.param_groups]
    losses = []
    for step in range(steps):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * cosine(step, steps)
        loss = _objective(net, layer, lesson, settings.learning, weight, _batch(net, lesson, settings, generator))
        descend(optimizer, loss)
        losses.append(loss.detach())
        told(step + 1, steps)
    layer.frozen(True)
    return float(torch.stack(losses[-max(1, steps // 10) :]).mean()) if losses else float("nan")


Batch = tuple[Values, Tensor, Sequence[Tensor]]
"""Values in front of the layer, moves of its input, the logits that each part wants; clean, pixels, features."""


def _objective(
    net: Engine, layer: Layer, lesson: Lesson, learning: Learning, weight: float, batch: Batch
) -> Float[Tensor, ""]:
    values, moves, wanted = batch
    found = net.logits(values, moves).split([len(each) for each in wanted])
    variance = lesson.logits.var()
    terms = [disagreement(one, other, variance) for one, other in zip(found, wanted, strict=True)]
    pull = learning.pull / math.sqrt(len(lesson.fit))
    return terms[0] + weight * sum(terms[1:], torch.zeros_like(terms[0])) + pull * layer.pulled()


def _batch(net: Engine, lesson: Lesson, settings: Settings, generator: torch.Generator) -> Batch:
    size = settings.batch_size
    quarter = max(1, size // 4)
    still = torch.zeros(1, *net.features.shape, device=net.device)
    rows = lesson.fit[_draw(len(lesson.fit), max(1, size // 2), generator, lesson.labels)]
    parts = [tuple(value[rows] for value in lesson.values)]
    wanted = [lesson.logits[rows]]
    moves = [still.expand(len(rows), *still.shape[1:])]
    if len(lesson.carried) > 0:
        chosen = _draw(len(lesson.carried), quarter, generator, lesson.labels)
        parts.append(tuple(value[chosen] for value in lesson.carried.values))
        wanted.append(lesson.logits[lesson.carried.rows[chosen]])
        moves.append(still.expand(len(chosen), *still.shape[1:]))
    if len(lesson.shifts) > 0:
        rows, shift = _shifted(lesson, settings.bank, quarter, generator)
        parts.append(tuple(value[rows] for value in lesson.values))
        wanted.append(lesson.logits[rows])
        moves.append(shift)
    return tuple(torch.cat(column) for column in zip(*parts, strict=True)), torch.cat(moves), wanted


def _shifted(lesson: Lesson, bank: Bank, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rows of images and a move of the layer's input for each."""
    shifts, device = lesson.shifts, lesson.labels.device
    rows = lesson.fit[_draw(len(lesson.fit), count, generator, lesson.labels)]
    chosen = _draw(len(shifts), count, generator, lesson.labels)
    fitting = lesson.wanted[shifts.aims.to(device)[chosen], rows] != lesson.labels[rows]
    rows, delta = rows[fitting], shifts.deltas[chosen[fitting]]
    noise = torch.randn(delta.shape, generator=generator).to(device)
    noise = noise * (bank.noise * each_length(delta) / each_length(noise).clamp_min(1e-12))
    stretch = 1 + bank.stretch * torch.rand(len(rows), generator=generator).to(device)
    return rows, stretch.view(-1, *[1] * (delta.ndim - 1)) * (delta + noise)


def _draw(count: int, size: int, generator: torch.Generator, like: Tensor) -> Int64[Tensor, " s"]:
    return torch.randint(count, (size,), generator=generator).to(like.device)
