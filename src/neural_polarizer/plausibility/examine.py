"""Whether a model makes sense of its images, which small mistake would explain it if not, and what a repair left."""

from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from neural_polarizer.data.images import ImageSet
from neural_polarizer.errors import BadInputError
from neural_polarizer.metrics import predict
from neural_polarizer.models.normalize import Converted
from neural_polarizer.plausibility.remedies import Changed, Remedy, other_classes, other_pixels
from neural_polarizer.progress import Progress, silent

CAUSES = (
    "likely causes: the order of the classes (--classes), the normalisation (--profile), the image size (--size), "
    "channels in the order BGR, pixels of another range, or weights of another network"
)
FORCED = "--force (force=True) goes on all the same"

LEVEL = 0.01  # of the one-sided binomial tests against guessing, and against the accuracy as it is
DOUBTFUL = 0.8  # below this accuracy, mistakes are looked for
_RATIO = 2.0  # an accuracy that so many times as high by one small change proves a mistake
_MOST_IMAGES = 256  # are used to look for mistakes
_FOLDS = 5  # parts of the images; the classes of one are matched by the others
_LOW = 0.5  # below this accuracy, a remark is made in any case
ACCEPTED_LOSS = 0.02  # of accuracy on clean images, before a repair counts as costly
_KEPT = 0.5  # a repair that leaves less than this share of the accuracy has done harm


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a model makes of clean images."""

    hits: int  # images classified correctly
    count: int  # images
    num_classes: int  # K of the model
    remedy: Remedy | None  # a change that would help significantly, if one was found
    mistaken: bool  # the remedy is so much better that there must be a mistake
    source: str  # names the images
    sigmoid: bool = False  # its one output lies in [0, 1] for all images: a probability, where a logit is needed

    @property
    def accuracy(self) -> float:
        """On the images, in [0, 1]."""
        return self.hits / self.count

    @property
    def guessing(self) -> bool:
        """Not significantly better than guessing, though a good model would be."""
        chance = 1 / self.num_classes
        decidable = chance**self.count <= LEVEL
        by_chance = binomial_tail(self.hits, self.count, chance) > LEVEL
        return decidable and by_chance and self.accuracy < (1 + chance) / 2

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
            said += f", no better than guessing among {self.num_classes} classes (binomial test at level {LEVEL:g})"
        if self.remedy is not None:
            return f"{said}; {self.remedy.what} it would be {100 * self.remedy.accuracy:.1f} %"
        return f"{said}; {CAUSES}" if self.guessing or self.accuracy < _LOW else None

    def require_sense(self) -> None:
        """Refuse what would give a result that means nothing, with what would help or may be the cause."""
        if self.meaningless:
            raise BadInputError(f"{self.source}: {self.remark}; {FORCED}")


def examine(
    model: nn.Module,
    clean: ImageSet,
    *,
    device: torch.device | str = "cpu",
    batch_size: int = 256,
    progress: Progress = silent,
) -> Finding:
    """Measure the accuracy on clean images and, where it is low, look for a mistake that explains it.

    Tried are the usual normalisations, swapped channels, and the best one-to-one matching of the classes, which is
    chosen on some of the images and judged on the others.

    ``model`` maps float32 pixels in [0, 1] to logits ``(n, k)`` and is left as it was; another output is refused, and
    there must be an image.
    """
    found = predict(model, clean, device=device, batch_size=batch_size, progress=progress)
    hits, count = int((found == clean.labels).sum()), len(clean)
    classes = max(2, _logits(model, clean.select(torch.arange(min(2, count))), device).shape[1])
    remedy, mistaken = None, False
    if hits / count < DOUBTFUL:
        remedy, mistaken = _mistake(model, clean, found, classes, device, batch_size)
    return Finding(
        hits=hits,
        count=count,
        num_classes=classes,
        remedy=remedy,
        mistaken=mistaken,
        source=clean.source,
        sigmoid=_after_sigmoid(model, clean, device),
    )


def _mistake(
    model: nn.Module, clean: ImageSet, found: Int64[Tensor, " n"], classes: int, device: torch.device | str, batch: int
) -> tuple[Remedy | None, bool]:
    """The change that helps most, if it helps significantly, and whether it helps so much that it proves a mistake."""
    count = len(clean)
    rows = torch.arange(count) if count <= _MOST_IMAGES else torch.linspace(0, count - 1, _MOST_IMAGES).long()
    few, before = clean.select(rows), int((found[rows] == clean.labels[rows]).sum())
    tried = (other_pixels(model, few, device, batch), other_classes(found[rows], few, classes, _FOLDS))
    best = max(chain(*tried), key=lambda each: each.hits, default=None)
    share = max(before / len(few), 1 / classes)
    if best is None or best.hits <= before or binomial_tail(best.hits, len(few), share) > LEVEL:
        return None, False
    return best, best.accuracy >= _RATIO * share


def harm_done(before: Finding, after: int, classes: int) -> str | None:
    """What a repair that ruined the model must be told with; None where it left most of the accuracy.

    The repaired model classifies ``after`` of the clean images correctly, which are of so many of its ``classes``.
    """
    share = after / before.count
    if after >= before.hits or before.guessing:
        return None
    said = (
        f"do not use the result: accuracy on the clean images fell from {100 * before.accuracy:.1f} % to "
        f"{100 * share:.1f} %"
    )
    chance = 1 / before.num_classes
    lost = after == 0 or (binomial_tail(after, before.count, chance) > LEVEL and share < (1 + chance) / 2)
    if lost:
        said += f", no better than guessing among {before.num_classes} classes"
    elif share >= _KEPT * before.accuracy:
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


def _after_sigmoid(model: nn.Module, clean: ImageSet, device: torch.device | str) -> bool:
    """Whether the one output of a yes/no model lies in [0, 1] for some dozens of images."""
    if not any(isinstance(each, Converted) and each.yes_no for each in model.modules()):
        return False
    few = clean.select(torch.linspace(0, len(clean) - 1, min(64, len(clean))).long())
    values = _logits(model, few, device)[:, 1]
    return len(values) > 8 and bool(((values >= 0) & (values <= 1)).all())


def _logits(model: nn.Module, images: ImageSet, device: torch.device | str) -> Float[Tensor, "n k"]:
    seen: list[Tensor] = []
    predict(Changed(model, note=seen.append), images, device=device)
    return torch.cat(seen)
