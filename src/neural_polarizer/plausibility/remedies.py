"""Small changes with which a model makes more sense of its images: other pixels, or its classes in another order."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from neural_polarizer.data.images import ImageSet
from neural_polarizer.data.labels import turns
from neural_polarizer.metrics import predict
from neural_polarizer.models.normalize import PROFILES, Normalized

_Numbers = tuple[tuple[float, ...], tuple[float, ...]]  # means and standard deviations


@dataclass(frozen=True, kw_only=True)
class Remedy:
    """A small change with which the model makes more sense."""

    what: str  # as in "with --profile cifar10"
    accuracy: float  # with it, in [0, 1]
    hits: int  # images that are right with it, of those that it was tried on


class Changed(nn.Module):
    """A model that sees other pixels, and whose logits are noted; no hooks, as not every module calls them."""

    def __init__(
        self,
        model: nn.Module,
        change: Callable[[Tensor], Tensor] = lambda pixels: pixels,
        note: Callable[[Tensor], object] = lambda _logits: None,
    ) -> None:
        super().__init__()
        self.model = model
        self.change = change
        self.note = note

    def forward(self, pixels: Float[Tensor, "n c h w"]) -> Tensor:
        logits = self.model(self.change(pixels))
        self.note(logits)
        return logits


def other_pixels(model: nn.Module, clean: ImageSet, device: torch.device | str, batch_size: int) -> Iterator[Remedy]:
    """The accuracy with other normalisations and with swapped channels."""
    if clean.images.shape[1] != 3:
        return
    inside = next((module for module in model.modules() if isinstance(module, Normalized)), None)
    for name, (mean, std) in _normalisations(inside).items():
        for swapped in (False, True):
            if name is None and not swapped:
                continue
            change = _change(inside, mean, std, swapped)
            try:
                found = predict(Changed(model, change), clean, device=device, batch_size=batch_size)
            except (RuntimeError, ValueError, TypeError):  # some networks look at their pixels
                continue
            hits = int((found == clean.labels).sum())
            yield Remedy(what=_pixels_said(name, mean, std, swapped), accuracy=hits / len(clean), hits=hits)


def _normalisations(inside: Normalized | None) -> dict[str | None, _Numbers]:
    """Mean and standard deviation by the value of --profile; under None what the model has, or none."""
    now = ((0.0,) * 3, (1.0,) * 3) if inside is None else (_three(inside.mean), _three(inside.std))
    named = {**PROFILES, "0.5/0.5": ((0.5,) * 3, (0.5,) * 3), "0/0.003921569": ((0.0,) * 3, (1 / 255,) * 3)}
    del named["gtsrb"]  # as "none"
    found: dict[str | None, _Numbers] = {None: now}
    found.update((name, each) for name, each in named.items() if not np.allclose(each, now, rtol=0.0, atol=1e-6))
    return found


def _three(values: Tensor) -> tuple[float, ...]:
    return tuple(float(value) for value in values.detach().flatten().expand(3))


def _change(
    inside: Normalized | None, mean: tuple[float, ...], std: tuple[float, ...], swapped: bool
) -> Callable[[Tensor], Tensor]:
    """Pixels that come out of the model's own normalisation as if it were another."""

    def change(pixels: Tensor) -> Tensor:
        seen = pixels.flip(1) if swapped else pixels
        centre, spread = (pixels.new_tensor(numbers).view(1, -1, 1, 1) for numbers in (mean, std))
        values = (seen - centre) / spread
        return values if inside is None else values * inside.std + inside.mean

    return change


def _pixels_said(name: str | None, mean: tuple[float, ...], std: tuple[float, ...], swapped: bool) -> str:
    numbers = ", ".join(str([float(f"{value:.4g}") for value in values]) for values in (mean, std))
    said = [] if name is None else [f"--profile {name} (Python: Normalized(model, {numbers}))"]
    if swapped:
        said.append("its channels in the order BGR (swap them in the first convolution, or in front of the network)")
    return f"with {' and '.join(said)}"


def other_classes(found: Int64[Tensor, " n"], clean: ImageSet, classes: int, folds: int) -> Iterator[Remedy]:
    """The accuracy with the classes in another order."""
    labels, answers = clean.labels.numpy(), found.numpy()
    turn = turns(labels)
    hits = 0
    for fold in range(folds):
        inside = turn % folds == fold
        there = _matching(labels[~inside], answers[~inside])
        hits += sum(there.get(int(y)) == int(p) for y, p in zip(labels[inside], answers[inside], strict=True))
    names = {place: (clean.own or clean.classes)[label] for label, place in sorted(_matching(labels, answers).items())}
    whole = len(names) == classes
    shown = [names[place] for place in range(classes)] if whole else [f"{names[place]}: {place}" for place in names]
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    form = "in the order" if whole else "under the numbers"
    what = f"with its classes {form} {', '.join(shown[:12])}{more} (--classes FILE; Python: classes=)"
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
