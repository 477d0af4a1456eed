"""The objective: agree with the frozen network's logits, on clean images and where stand-ins lead elsewhere."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from neural_polarizer.defenses.engine import Engine, Values
from neural_polarizer.defenses.schedule import cosine
from neural_polarizer.defenses.stand_ins.settings import Learning, Settings
from neural_polarizer.train.fit import descend


@dataclass(frozen=True, eq=False)
class Carried:
    """Images that carry stand-ins, as the network sees them in front of the layer."""

    values: Values  # as ``Engine.front`` gives them
    moves: Float[Tensor, "m ..."] | None  # of the layer's input; None where the values have them in them
    rows: Int64[Tensor, " m"]  # of the images among those that the network has seen
    led: Int64[Tensor, " m"]  # the labels that they are led to
    aims: Int64[Tensor, " m"]  # of the stand-ins
    which: Int64[Tensor, " m"]  # number of the stand-in

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, kept: Bool[Tensor, " m"] | Int64[Tensor, " n"]) -> "Carried":
        """Those that a mask or rows tell."""
        moves = None if self.moves is None else self.moves[kept]
        values = tuple(value[kept] for value in self.values)
        return Carried(values, moves, self.rows[kept], self.led[kept], self.aims[kept], self.which[kept])


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
class Lesson:
    """What the layer learns from."""

    values: Values  # of the clean images, in front of the layer
    logits: Float[Tensor, "n k"]  # the frozen network's, centred
    carried: Sequence[Carried]  # images with stand-ins, by form
    shares: Sequence[float]  # of each form in a batch
    held: Sequence[Carried]  # the same with stand-ins that nothing is learned from
    unit: float  # standard deviation of the features
    fit: Int64[Tensor, " f"]  # rows of the images that are learned from

    def of(self, fit: Int64[Tensor, " f"]) -> "Lesson":
        """The same from the images ``fit`` only."""
        return replace(self, carried=[each.select(torch.isin(each.rows, fit)) for each in self.carried], fit=fit)


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
    """Minimise disagreement(clean) + weight disagreement(stand-ins) + pull |A - I|^2 / sqrt(n).

    n images are learned from; fewer say less of others.  Half of a batch is clean, the other half carries stand-ins.

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


Batch = tuple[Values, Tensor, tuple[Tensor, Tensor]]
"""Values in front of the layer, moves of its input, the logits that clean images and those with stand-ins want."""


def _objective(
    net: Engine, layer: Layer, lesson: Lesson, learning: Learning, weight: float, batch: Batch
) -> Float[Tensor, ""]:
    values, moves, wanted = batch
    found = net.logits(values, moves).split([len(each) for each in wanted])
    variance = lesson.logits.var()
    clean, led = (disagreement(one, other, variance) for one, other in zip(found, wanted, strict=True))
    return clean + weight * led + learning.pull / math.sqrt(len(lesson.fit)) * layer.pulled()


def _batch(net: Engine, lesson: Lesson, settings: Settings, generator: torch.Generator) -> Batch:
    size, still = settings.batch_size, torch.zeros(1, *net.features.shape, device=net.device)
    rows = lesson.fit[_draw(len(lesson.fit), max(1, size // 2), generator, lesson.fit)]
    parts = [tuple(value[rows] for value in lesson.values)]
    moves = [still.expand(len(rows), *still.shape[1:])]
    forms = torch.multinomial(torch.tensor(lesson.shares), max(1, size // 2), replacement=True, generator=generator)
    led = [lesson.logits[:0]]
    for form, bank in enumerate(lesson.carried):
        some = bank.select(_draw(len(bank), int((forms == form).sum()), generator, lesson.fit))
        parts.append(some.values)
        led.append(lesson.logits[some.rows])
        moves.append(still.expand(len(some), *still.shape[1:]) if some.moves is None else some.moves)
    wanted = (lesson.logits[rows], torch.cat(led))
    return tuple(torch.cat(column) for column in zip(*parts, strict=True)), torch.cat(moves), wanted


def _draw(count: int, size: int, generator: torch.Generator, like: Tensor) -> Int64[Tensor, " s"]:
    return torch.randint(max(1, count), (size if count else 0,), generator=generator).to(like.device)
