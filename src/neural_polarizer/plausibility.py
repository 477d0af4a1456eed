"""Whether a model makes sense of its images, which small mistake would explain it if not, and what a repair left."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from neural_polarizer.data.images import ImageSet
from neural_polarizer.errors import BadInputError
from neural_polarizer.metrics import predict
from neural_polarizer.models.normalize import PROFILES, Converted, Normalized
from neural_polarizer.train import Progress, silent

CAUSES = (
    "likely causes: the order of the classes (--classes), the normalisation (--profile), the image size (--size), "
    "channels in the order BGR, pixels of another range, or weights of another network"
)
FORCED = "--force (force=True) goes on all the same"


@dataclass(frozen=True, kw_only=True)
class Rules:
    """When a model's answers count as meaningless, and when a mistake is looked for.

    Args:
        level: of the one-sided binomial tests against guessing, and against the accuracy as it is.
        doubtful: below this accuracy, mistakes are looked for.
        ratio: an accuracy that so many times as high by one small change proves a mistake.
        images: at most so many are used to look for mistakes.
        folds: parts of the images; the classes of one are matched by the others.
        low: below this accuracy, a remark is made in any case.
        kept: a repair that leaves less than this share of the accuracy has done harm.
    """

    level: float = 0.01
    doubtful: float = 0.8
    ratio: float = 2.0
    images: int = 256
    folds: int = 5
    low: float = 0.5
    kept: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Remedy:
    """A small change with which the model makes more sense.

    Args:
        what: the change, as in "with --profile cifar10".
        accuracy: with it, in [0, 1].
        hits: images that are right with it, of those that it was tried on.
    """

    what: str
    accuracy: float
    hits: int


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a model makes of clean images.

    Args:
        accuracy: in [0, 1].
        hits: images classified correctly.
        count: images.
        num_classes: K of the model.
        p_value: chance of so many hits by guessing.
        remedy: a change that would help significantly, if one was found.
        guessing: not significantly better than guessing, though a good model would be.
        mistaken: the remedy is so much better that there must be a mistake.
        source: names the images.
        rules: what it was judged by.
        sigmoid: its one output lies in [0, 1] for all images, so it is a probability where a logit is needed.
    """

    accuracy: float
    hits: int
    count: int
    num_classes: int
    p_value: float
    remedy: Remedy | None
    guessing: bool
    mistaken: bool
    source: str
    rules: Rules
    sigmoid: bool = False

    @property
    def meaningless(self) -> bool:
        """Whether a result with this model and these images would mean nothing."""
        return self.guessing or self.mistaken or self.sigmoid

    @property
    def remark(self) -> str | None:
        """What the user should know; None if the model does well enough."""
        share = f"{100 * self.accuracy:.1f} %"
        if self.sigmoid:
            return (
                "the model gives one number from 0 to 1 for each image, as after a sigmoid, where 0 must divide the "
                "two classes; take the sigmoid off (in the code that --arch names, or in Python)"
            )
        said = f"the model classifies only {self.hits} of {self.count} clean images correctly ({share})"
        if self.guessing:
            said += (
                f", no better than guessing among {self.num_classes} classes (binomial test at level "
                f"{self.rules.level:g})"
            )
        if self.remedy is not None:
            return f"{said}; {self.remedy.what} it would be {100 * self.remedy.accuracy:.1f} %"
        return f"{said}; {CAUSES}" if self.guessing or self.accuracy < self.rules.low else None

    def require_sense(self) -> None:
        """Stop where a result would mean nothing.

        Raises:
            BadInputError: it would, with what would help or may be the cause.
        """
        if self.meaningless:
            raise BadInputError(f"{self.source}: {self.remark}; {FORCED}")


def examine(
    model: nn.Module,
    clean: ImageSet,
    *,
    device: torch.device | str = "cpu",
    batch_size: int = 256,
    rules: Rules | None = None,
    progress: Progress = silent,
) -> Finding:
    """Measure the accuracy on clean images and, where it is low, look for a mistake that explains it.

    Tried are the usual normalisations, swapped channels, and the best one-to-one matching of the classes, which is
    chosen on some of the images and judged on the others.

    Args:
        model: float32 pixels in [0, 1] to logits ``(n, k)``; left as it was.
        clean: at least one image.
        device: where to compute.
        batch_size: images in a forward pass.
        rules: what is judged by.
        progress: told about every batch.

    Raises:
        BadInputError: the model's output is not one logit a class.
    """
    rules = rules or Rules()
    labels, found = clean.labels, predict(model, clean, device=device, batch_size=batch_size, progress=progress)
    hits, count, classes = int((found == labels).sum()), len(clean), _class_count(model, clean, device)
    chance, accuracy = 1 / classes, hits / count
    p_value = binomial_tail(hits, count, chance)
    decidable = chance**count <= rules.level
    guessing = decidable and p_value > rules.level and accuracy < (1 + chance) / 2
    remedy, mistaken = None, False
    if accuracy < rules.doubtful:
        rows = torch.arange(count) if count <= rules.images else torch.linspace(0, count - 1, rules.images).long()
        few, before = clean.select(rows), int((found[rows] == labels[rows]).sum())
        tried = [
            *_other_pixels(model, few, device, batch_size),
            *_other_classes(found[rows], few, classes, rules.folds),
        ]
        best = max(tried, key=lambda each: each.hits, default=None)
        if best is not None and best.hits > before:
            share = max(before / len(few), chance)
            if binomial_tail(best.hits, len(few), share) <= rules.level:
                remedy = best
                mistaken = best.accuracy >= rules.ratio * share
    return Finding(
        accuracy=accuracy,
        hits=hits,
        count=count,
        num_classes=classes,
        p_value=p_value,
        remedy=remedy,
        guessing=guessing,
        mistaken=mistaken,
        source=clean.source,
        rules=rules,
        sigmoid=_after_sigmoid(model, clean, device),
    )


def harm_done(before: Finding, after: int, classes: int) -> str | None:
    """What a repair that ruined the model must be told with; None where it left most of the accuracy.

    Args:
        before: what the model made of the clean images.
        after: how many of them the repaired model classifies correctly.
        classes: how many of the model's classes the clean images have.
    """
    rules, share = before.rules, after / before.count
    if after >= before.hits or before.guessing:
        return None
    said = (
        f"do not use the result: accuracy on the clean images fell from {100 * before.accuracy:.1f} % to "
        f"{100 * share:.1f} %"
    )
    chance = 1 / before.num_classes
    lost = after == 0 or (binomial_tail(after, before.count, chance) > rules.level and share < (1 + chance) / 2)
    if lost:
        said += f", no better than guessing among {before.num_classes} classes"
    elif share >= rules.kept * before.accuracy:
        return None
    few = f"they have {classes} of {before.num_classes} classes: " if classes < before.num_classes else ""
    return f"{said}; {few}give more images, of every class, or take gentler settings or another method"


def binomial_tail(hits: int, count: int, share: float) -> float:
    """The probability of at least ``hits`` successes in ``count`` trials of probability ``share``."""
    if hits <= 0 or share >= 1:
        return 1.0
    n, k = torch.tensor(float(count), dtype=torch.float64), torch.arange(hits, count + 1, dtype=torch.float64)
    ways = torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
    logs = ways + k * float(np.log(share)) + (n - k) * float(np.log1p(-share))
    return min(1.0, float(logs.exp().sum()))


class _Changed(nn.Module):
    """A model that sees other pixels, and whose logits pass through a function."""

    def __init__(
        self,
        model: nn.Module,
        change: Callable[[Tensor], Tensor],
        note: Callable[[Tensor], Tensor] = lambda logits: logits,
    ) -> None:
        super().__init__()
        self.model = model
        self.change = change
        self.note = note

    def forward(self, pixels: Float[Tensor, "n c h w"]) -> Tensor:
        return self.note(self.model(self.change(pixels)))


def _class_count(model: nn.Module, clean: ImageSet, device: torch.device | str) -> int:
    """K, read off the logits."""
    widths: list[int] = []

    def note(logits: Tensor) -> Tensor:
        widths.append(int(logits.shape[1]))
        return logits

    predict(_Changed(model, lambda pixels: pixels, note), clean.select(torch.arange(min(2, len(clean)))), device=device)
    return max(2, widths[0])


def _after_sigmoid(model: nn.Module, clean: ImageSet, device: torch.device | str) -> bool:
    """Whether the one output of a yes/no model lies in [0, 1] for some dozens of images."""
    if not any(isinstance(each, Converted) and each.yes_no for each in model.modules()):
        return False
    outputs: list[Tensor] = []

    def note(logits: Tensor) -> Tensor:
        outputs.append(logits[:, 1])
        return logits

    few = clean.select(torch.linspace(0, len(clean) - 1, min(64, len(clean))).long())
    predict(_Changed(model, lambda pixels: pixels, note), few, device=device)
    values = torch.cat(outputs)
    return len(values) > 8 and bool(((values >= 0) & (values <= 1)).all())


def _other_pixels(model: nn.Module, clean: ImageSet, device: torch.device | str, batch_size: int) -> Iterator[Remedy]:
    """The accuracy with other normalisations and with swapped channels."""
    inside = next((module for module in model.modules() if isinstance(module, Normalized)), None)
    colours = clean.images.shape[1]
    if colours != 3:
        return
    for name, (mean, std) in _normalisations(inside).items():
        for swapped in (False, True):
            if name is None and not swapped:
                continue
            change = _change(inside, mean, std, swapped)
            try:
                found = predict(_Changed(model, change), clean, device=device, batch_size=batch_size)
            except (RuntimeError, ValueError, TypeError):  # some networks look at their pixels
                continue
            hits = int((found == clean.labels).sum())
            yield Remedy(what=_pixels_said(name, mean, std, swapped), accuracy=hits / len(clean), hits=hits)


def _normalisations(inside: Normalized | None) -> dict[str | None, tuple[tuple[float, ...], tuple[float, ...]]]:
    """Mean and standard deviation by the value of --profile; under None what the model has, or none."""
    now = ((0.0,) * 3, (1.0,) * 3) if inside is None else (_three(inside.mean), _three(inside.std))
    named = {**PROFILES, "0.5/0.5": ((0.5,) * 3, (0.5,) * 3), "0/0.003921569": ((0.0,) * 3, (1 / 255,) * 3)}
    others: dict[str | None, tuple[tuple[float, ...], tuple[float, ...]]] = {
        name: numbers
        for name, numbers in named.items()
        if name != "gtsrb" and not np.allclose(numbers, now, rtol=0.0, atol=1e-6)
    }
    return {None: now, **others}


def _three(values: Tensor) -> tuple[float, ...]:
    return tuple(float(value) for value in values.detach().flatten().expand(3))


def _change(
    inside: Normalized | None, mean: tuple[float, ...], std: tuple[float, ...], swapped: bool
) -> Callable[[Tensor], Tensor]:
    """Pixels that come out of the model's own normalisation as if it were another."""

    def change(pixels: Tensor) -> Tensor:
        values = pixels.flip(1) if swapped else pixels
        centre, spread = (pixels.new_tensor(numbers).view(1, -1, 1, 1) for numbers in (mean, std))
        values = (values - centre) / spread
        return values if inside is None else values * inside.std + inside.mean

    return change


def _pixels_said(name: str | None, mean: tuple[float, ...], std: tuple[float, ...], swapped: bool) -> str:
    numbers = ", ".join(str([float(f"{value:.4g}") for value in values]) for values in (mean, std))
    said = [] if name is None else [f"--profile {name} (Python: Normalized(model, {numbers}))"]
    if swapped:
        said.append("its channels in the order BGR (swap them in the first convolution, or in front of the network)")
    return f"with {' and '.join(said)}"


def _other_classes(found: Int64[Tensor, " n"], clean: ImageSet, classes: int, folds: int) -> Iterator[Remedy]:
    """The accuracy with the classes in another order."""
    labels, answers = clean.labels.numpy(), found.numpy()
    turn = np.zeros(len(labels), dtype=np.int64)  # how many images of the same class come before
    for label in np.unique(labels):
        turn[labels == label] = np.arange((labels == label).sum())
    hits = 0
    for fold in range(folds):
        inside = turn % folds == fold
        there = _matching(labels[~inside], answers[~inside])
        hits += sum(there.get(int(y)) == int(p) for y, p in zip(labels[inside], answers[inside], strict=True))
    names = {place: clean.classes[label] for label, place in _matching(labels, answers).items()}
    shown = [names.get(place, "?") for place in range(min(classes, 12))]
    more = f" and {classes - 12} more" if classes > 12 else ""
    what = f"with its classes in the order {', '.join(shown)}{more} (--classes FILE; Python: classes=)"
    yield Remedy(what=what, accuracy=hits / len(labels), hits=hits)


def _matching(labels: np.ndarray, answers: np.ndarray) -> dict[int, int]:
    """To each class of the labels one answer of its own, the most frequent pairs first."""
    pairs, counts = np.unique(np.stack([labels, answers]), axis=1, return_counts=True)
    there: dict[int, int] = {}
    taken: set[int] = set()
    for place in np.argsort(-counts, kind="stable"):
        label, answer = int(pairs[0, place]), int(pairs[1, place])
        if label not in there and answer not in taken:
            there[label] = answer
            taken.add(answer)
    return there
